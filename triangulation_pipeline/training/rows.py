"""The rows of a split as tensors on the training device."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triangulation_pipeline.model.inputs import LocatorInputs, locator_inputs
from triangulation_pipeline.model.locator import FitData, Locator
from triangulation_pipeline.model.spec import LocatorSpec
from triangulation_pipeline.samples import Samples


@dataclass
class SplitTensors:
    """A split as tensors on a device, and as arrays what its metrics need beside them. ``initial_m`` is set by
    ``find_initial_fixes``."""

    inputs: LocatorInputs
    initial_m: Tensor = field(init=False)  # (n, 2), of the locator that is trained
    target_m: Tensor  # (n, 2)
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    gdop: NDArray[np.float32]
    crlb_m: NDArray[np.float32]

    @classmethod
    def of(cls, spec: LocatorSpec, batch: Samples, device: torch.device) -> Self:
        """The rows of a batch, in its order, with targets in the frame of the spec's network."""
        target_m = batch.tx_en_m(spec.network.frame)
        return cls(
            inputs=locator_inputs(batch).to(device),
            target_m=torch.as_tensor(target_m, dtype=torch.float32).to(device),
            lat=batch.tx_lat,
            lon=batch.tx_lon,
            gdop=batch.gdop,
            crlb_m=batch.crlb_m,
        )

    def __len__(self) -> int:
        return len(self.lat)

    def find_initial_fixes(self, model: Locator) -> None:
        """Where the fitted locator begins on each row."""
        self.initial_m = model.initial_fix(self.inputs)


def fit_data(spec: LocatorSpec, train: Samples, rows: SplitTensors) -> FitData:
    """What a locator is fitted on: the rows of the training split, as a batch and as its tensors."""
    return FitData(
        inputs=rows.inputs,
        target_m_B2=rows.target_m,
        site_bias_m_R=torch.zeros(train.num_sites, device=rows.target_m.device),
    )


def filter_by_snr(train: Samples, min_snr_db: float | None) -> Samples:
    """The rows whose mean SNR over the receivers that detected them is at least ``min_snr_db``; all if it is None.

    Raises ValueError if no row is left.
    """
    if min_snr_db is not None:
        mean_snr_db = (train.snr_db * train.signal_present).sum(1) / np.maximum(train.num_detections, 1)
        train = train.take(mean_snr_db >= min_snr_db)
    if not len(train):
        raise ValueError(
            "the training split has no rows" + ("" if min_snr_db is None else f" above min_snr_db {min_snr_db:g}")
        )
    return train
