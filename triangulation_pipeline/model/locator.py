"""What every locator is: the contract of an architecture, and the posterior that it answers.

Shapes: B batch, K hypotheses, C components of the mixture. Positions are (east, north) of the network's frame, metres.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.physics.layout import Layout

LEAST_FREEDOM = 2.1


@dataclass(frozen=True)
class Mixture:
    """The posterior of each row, a mixture of bivariate Student's t, and what the loss takes beside it."""

    log_weight_BC: Tensor  # minus infinity for a component that is none; the others sum to 1
    mean_m_BC2: Tensor
    scale_tril_m_BC3: Tensor  # lower Cholesky factor of the scale matrix: first, cross, second
    freedom_BC: Tensor  # above 2
    fix_m_BK2: Tensor  # where each hypothesis has been moved to
    bound_m_BK: Tensor  # rms error that the row's information allows there, without gradient; infinite if there is none

    @property
    def en_m_B2(self) -> Tensor:
        """The mean."""
        return (self.log_weight_BC.exp()[..., None] * self.mean_m_BC2).sum(1)


class Locator(nn.Module, ABC):
    """A model that gives the posterior of a transmitter's position, for any network.

    ``prepare`` once for each row, on the CPU; then ``forward`` as often as the row is met. Any number of rows is taken,
    also none, and the answer for a row does not depend on the other rows.
    """

    @abstractmethod
    def prepare(self, layout: Layout, measurements: Measurements) -> LocatorInputs:
        """The rows of calibrated measurements of one layout, with the hypotheses to begin from, on the CPU. No
        parameter has part in it, so that training prepares its rows once."""

    @abstractmethod
    def forward(self, inputs: LocatorInputs) -> Mixture:
        """The posterior of each row."""


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with zero weights and biases: its head starts at its prior."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def freedom(raw: Tensor) -> Tensor:
    """Degrees of freedom from raw numbers, 4 from 0; above 2, so that every covariance exists."""
    return LEAST_FREEDOM + (4.0 - LEAST_FREEDOM) * raw.clamp(-5, 5).exp()
