"""What training minimises, per row: a mean over batches, weighted by their rows, is a mean over rows."""

import math

import torch
from torch import Tensor

from triangulation_pipeline.model.locator import Mixture

DISTANCE_WEIGHT = 0.2
FARTHEST_BOUNDS = 300.0


def locator_loss(mixture: Mixture, target_m_B2: Tensor) -> Tensor:
    """The loss of each row, (B,), nats: minus the log density of the true position, plus a share of a robust distance.

    The distance ``sqrt(1 + d^2 / s^2) - 1`` is that of the hypothesis nearest to the truth, in units of the bound that
    the row's information allows there. In any other unit a few rows of bad geometry decide the gradient. Beyond 300
    bounds it is constant.
    """
    offset_m_BK2 = mixture.fix_m_BK2 - target_m_B2[:, None]
    squared_BK = offset_m_BK2.square().sum(-1) / mixture.bound_m_BK.square()
    robust_BK = ((squared_BK + 1).sqrt() - 1).masked_fill(mixture.bound_m_BK.isinf(), FARTHEST_BOUNDS)
    nearest_B = robust_BK.clamp_max(FARTHEST_BOUNDS).amin(1)
    return DISTANCE_WEIGHT * nearest_B - log_density(mixture, target_m_B2)


def log_density(mixture: Mixture, en_m_B2: Tensor) -> Tensor:
    """Logarithm of the posterior density at positions (B, 2), in nats per square metre, (B,)."""
    first, cross, second = mixture.scale_tril_m_BC3.unbind(-1)
    offset_m = en_m_B2[:, None] - mixture.mean_m_BC2
    x = offset_m[..., 0] / first
    y = (offset_m[..., 1] - cross * x) / second
    freedom = mixture.freedom_BC
    student = -(freedom + 2) / 2 * torch.log1p((x * x + y * y) / freedom)
    volume = first.log() + second.log() + math.log(2 * math.pi)
    return torch.logsumexp(mixture.log_weight_BC + student - volume, dim=1)
