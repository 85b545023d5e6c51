"""What training minimises, per row: a mean over batches, weighted by their rows, is a mean over rows."""

import math

import torch
from torch import Tensor

from triangulation_pipeline.model.locator import Located

SOLVED_SCALE_M = 30.0
REGRESSED_SCALE_M = 30e3
STUDENT_T_FREEDOM = 4.0
NLL_WEIGHT = 0.5


def locator_loss(located: Located, target_m_B2: Tensor) -> Tensor:
    """The loss of each row, (B,): a position error plus the negative log-likelihood of the position.

    Solved rows: a robust distance, ``sqrt(1 + d^2 / s^2) - 1``, averaged over the rounds, and the likelihood of
    Student's t with 4 degrees of freedom, which has heavier tails than the Gaussian: non-line-of-sight rows must not
    inflate the covariances of all rows. Regressed rows: squared error and the Gaussian itself, whose optimum is the
    posterior mean.
    """
    solved = located.solved_B
    error = (torch.stack(located.rounds_m_B2) - target_m_B2) / SOLVED_SCALE_M
    robust = (error.square().sum(-1).add(1).sqrt() - 1).mean(0)
    squared = ((located.en_m_B2 - target_m_B2) / REGRESSED_SCALE_M).square().sum(-1)
    nees = normalised_error_squared(located, target_m_B2)
    diagonal = located.scale_tril_m_B22.diagonal(dim1=-2, dim2=-1)
    log_volume = diagonal.log().sum(-1) + math.log(2 * math.pi)
    student = (STUDENT_T_FREEDOM + 2) / 2 * (nees / STUDENT_T_FREEDOM).log1p()
    position = torch.where(solved, robust, squared)
    return position + NLL_WEIGHT * (log_volume + torch.where(solved, student, nees / 2))


def normalised_error_squared(located: Located, target_m_B2: Tensor) -> Tensor:
    """NEES, (B,): the squared error in units of the predicted covariance; its mean is 2 if that is right."""
    error = target_m_B2 - located.en_m_B2
    tril = located.scale_tril_m_B22
    first = error[:, 0] / tril[:, 0, 0]
    second = (error[:, 1] - tril[:, 1, 0] * first) / tril[:, 1, 1]
    return first.square() + second.square()
