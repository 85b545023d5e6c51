"""What every locator is: the contract of an architecture.

Shapes: B batch, R receivers. Positions are (east, north) of the network's frame, metres; covariances come as lower
Cholesky factors in metres.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triangulation_pipeline.model.inputs import LocatorInputs


@dataclass(frozen=True)
class FitData:
    """Training rows with their true positions, and the clock bias of each site that was estimated on them."""

    inputs: LocatorInputs
    target_m_B2: Tensor
    site_bias_m_R: Tensor


@dataclass(frozen=True)
class Located:
    """Positions after each round (the last is the answer), the Cholesky factor of its covariance, and which rows were
    solved by arrival times (the others were regressed)."""

    rounds_m_B2: tuple[Tensor, ...]
    scale_tril_m_B22: Tensor
    solved_B: Tensor

    @property
    def en_m_B2(self) -> Tensor:
        """The answer."""
        return self.rounds_m_B2[-1]


class Locator(nn.Module, ABC):
    """A model that gives positions with covariances. It is used in this order:

    ``fit`` once, on training rows; ``initial_fix`` once for each row; then ``forward`` as often as the row is met. Any
    number of rows is taken, also none, and the answer for a row does not depend on the other rows. What a receiver
    reports that did not hear the transmission, or did not time it, does not matter to ``forward``.

    ``covariance_scale`` is a scalar buffer that multiplies all covariances: 1 while training, fitted by the calibration
    after it. The loss reaches every parameter through ``forward`` alone.
    """

    covariance_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("covariance_scale", torch.tensor(1.0))

    @abstractmethod
    def fit(self, data: FitData) -> None:
        """Sets what is estimated from training rows without gradients, such as the scaling of inputs; in buffers, so
        that checkpoints hold it. Parameters are left alone."""

    @abstractmethod
    def initial_fix(self, inputs: LocatorInputs) -> Tensor:
        """Positions (B, 2) to begin from, finite, without gradient. They depend on buffers alone, so that training
        computes them once."""

    @abstractmethod
    def forward(self, inputs: LocatorInputs, initial_m_B2: Tensor) -> Located:
        """Positions and covariances, from the positions that ``initial_fix`` gave for the same rows."""


def cholesky(raw_B3: Tensor) -> Tensor:
    """Lower 2x2 factors from (log diagonal, log diagonal, off-diagonal), (B, 2, 2)."""
    first, second = raw_B3[:, 0].clamp(-8, 8).exp(), raw_B3[:, 1].clamp(-8, 8).exp()
    return torch.stack([first, torch.zeros_like(first), raw_B3[:, 2], second], dim=-1).view(-1, 2, 2)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with zero weights and biases: its head starts at its prior."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
