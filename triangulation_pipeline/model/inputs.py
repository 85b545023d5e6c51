"""The rows that a locator takes: what the receivers that hear a transmission measured, and where to begin.

Shapes: B batch, W the receivers that hear a row, K hypotheses, F features. Rows that fewer receivers hear are padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

# Beyond it no transmitter on earth can be, so that absurd arrival times stay finite in float32.
FARTHEST_M = 2e7
# Delayed paths are at least so likely to a locator, whatever the scenario says: the likelihoods stay finite.
LEAST_DELAYED = 2e-3
# Numbers that describe a hypothesis beside its place, see ``start``.
HYPOTHESIS_FEATURES = 9


@dataclass(frozen=True)
class LocatorInputs:
    """n transmissions, each by the receivers that hear it, and the hypotheses of their places. Nothing of the truth,
    and nothing that names a site: the receivers of a row may stand in any order, and rows of different networks may
    stand side by side.

    ``Locator.prepare`` makes it. Numbers are float32. Positions are in the frame of each row's own network.
    """

    site_m_B3W: Tensor  # east, north, up
    hears_BW: Tensor  # bool; false in the padding
    timed_BW: Tensor  # bool; whether there is an arrival time
    toa_m_BW: Tensor  # arrival time as a range, less the median of the row; 0 if there is none
    sigma_m_BW: Tensor  # its standard deviation; 1 if there is none
    level_BKW: Tensor  # level less what the hypothesis expects, in standard deviations of a link; 0 in the padding
    level_slope_B: Tensor  # derivative of the expected level by the logarithm of the range, in the same unit
    altitude_m_B: Tensor  # of the transmitter over the ellipsoid
    surface_B5: Tensor  # ``LocalFrame.surface_coefficients``
    delay_probability_B: Tensor  # of a path without line of sight
    delay_mean_m_B: Tensor
    area_m_B: Tensor  # standard deviation of a place anywhere in the service area
    alive_BK: Tensor  # bool; the first hypothesis always is, the others if they are distinct and likely enough
    hypothesis_m_BK2: Tensor
    spread_m_BK3: Tensor  # Cholesky factor of its covariance: first, cross, second
    hypothesis_features_BKF: Tensor

    def __len__(self) -> int:
        return len(self.hears_BW)

    @property
    def num_hearing_B(self) -> Tensor:
        """(B,) int64, how many receivers hear each row."""
        return self.hears_BW.sum(1)

    def take(self, rows: Tensor | slice) -> Self:
        """The rows that a mask, indices or a slice picks."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def to(self, device: torch.device) -> Self:
        """All tensors on a device."""
        if self.hears_BW.device == device:
            return self
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def narrowed(self, width: int) -> Self:
        """The same rows with ``width`` places for receivers: at least as many as hear any of them."""
        return type(self)(**{f.name: _widened(getattr(self, f.name), width, f.name) for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """All rows in one object, padded to the widest part."""
        width = max(part.hears_BW.shape[1] for part in parts)
        wide = [part.narrowed(width) for part in parts]
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in wide]) for f in fields(cls)})


def _widened(values: Tensor, width: int, name: str) -> Tensor:
    """With ``width`` places for receivers, if they are the last axis of the field."""
    if not name.endswith("W"):
        return values
    return torch.nn.functional.pad(values, (0, width - values.shape[-1]), value=1.0 if name == "sigma_m_BW" else 0.0)
