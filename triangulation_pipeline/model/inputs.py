"""From a batch of samples to the tensors that a locator takes. Shapes: B batch, R receivers."""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS


@dataclass(frozen=True)
class LocatorInputs:
    """What a network measures of n transmissions, and nothing of the truth.

    ``toa_m_BR`` is the arrival time as a distance, less its median over the row's receivers: the emission time is
    unknown, and small numbers keep their digits in float32. Frequency offsets are left out: those of a static emitter
    tell nothing of its position.
    """

    present_BR: Tensor  # bool
    snr_db_BR: Tensor
    power_dbm_BR: Tensor
    toa_present_BR: Tensor  # bool
    toa_m_BR: Tensor
    sigma_m_BR: Tensor

    def __len__(self) -> int:
        return len(self.present_BR)

    def take(self, rows: Tensor | slice) -> Self:
        """The rows picked by indices or a slice."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


def locator_inputs(measurements: Measurements) -> LocatorInputs:
    """Tensors (float32, bool) of measurements, row by row."""
    toa_ns = np.where(measurements.toa_present, measurements.toa_ns, np.inf)
    count = measurements.toa_present.sum(1)
    # Lower median of the present arrival times; rows without any hold zeros.
    middle = np.sort(toa_ns, axis=1)[np.arange(len(measurements)), np.maximum(count - 1, 0) // 2]
    toa_m = (measurements.toa_ns - np.where(count > 0, middle, 0.0)[:, None]) * SPEED_OF_LIGHT_M_PER_NS
    sigma_m = measurements.toa_sigma_ns * SPEED_OF_LIGHT_M_PER_NS
    return LocatorInputs(
        present_BR=torch.from_numpy(measurements.signal_present.copy()),
        snr_db_BR=torch.from_numpy(measurements.snr_db.copy()),
        power_dbm_BR=torch.from_numpy(measurements.power_dbm.copy()),
        toa_present_BR=torch.from_numpy(measurements.toa_present.copy()),
        toa_m_BR=torch.from_numpy(np.where(measurements.toa_present, toa_m, 0.0).astype(np.float32)),
        sigma_m_BR=torch.from_numpy(np.where(measurements.toa_present, sigma_m, 1.0).astype(np.float32)),
    )
