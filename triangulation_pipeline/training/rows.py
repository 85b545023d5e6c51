"""The rows of a split as tensors, prepared once for all epochs, and the batches that they are trained in."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triangulation_pipeline.calibration import calibrated
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.samples import Samples

# As many rows are prepared at once, so that nothing but the inputs themselves takes memory with the number of rows.
PREPARED_AT_ONCE = 8192


@dataclass(frozen=True)
class PreparedRows:
    """The rows of a split as a locator takes them, and what its metrics need beside them. Rows of one layout stand
    together, and positions are in the frame of the row's own network."""

    inputs: LocatorInputs
    target_m_B2: Tensor
    layouts: tuple[tuple[Layout, slice], ...]  # which rows are of which layout
    tx_altitude_m: NDArray[np.float64]
    tx_lat: NDArray[np.float64]
    tx_lon: NDArray[np.float64]
    gdop: NDArray[np.float32]
    crlb_m: NDArray[np.float32]

    @classmethod
    def of(cls, model: Locator, dataset: DatasetSpec, samples: Samples, device: torch.device) -> Self:
        """The rows of a dataset, at least one, by the calibration that the file of each row's network holds."""
        inputs, targets, layouts = [], [], []
        groups: list[NDArray[np.int64]] = []
        first = 0
        for layout, rows in dataset.by_layout(samples):
            layouts.append((layout, slice(first, first + len(rows))))
            first += len(rows)
            groups.append(rows)
            for i in range(0, len(rows), PREPARED_AT_ONCE):
                part = calibrated(layout, samples.take(rows[i : i + PREPARED_AT_ONCE]))
                inputs.append(model.prepare(layout, part))
                targets.append(torch.as_tensor(part.tx_en_m(layout.network.frame), dtype=torch.float32))
        order = np.concatenate(groups)
        return cls(
            inputs=LocatorInputs.concatenate(inputs).to(device),
            target_m_B2=torch.cat(targets).to(device),
            layouts=tuple(layouts),
            tx_altitude_m=samples.tx_altitude_m[order],
            tx_lat=samples.tx_lat[order],
            tx_lon=samples.tx_lon[order],
            gdop=samples.gdop[order],
            crlb_m=samples.crlb_m[order],
        )

    def __len__(self) -> int:
        return len(self.tx_lat)

    def batch(self, rows: Tensor) -> tuple[LocatorInputs, Tensor]:
        """Inputs and targets of the rows picked by indices, as wide as the row that most receivers heard."""
        inputs = self.inputs.take(rows)
        return inputs.narrowed(int(inputs.num_hearing_B.max())), self.target_m_B2[rows]

    def error_m(self, en_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance (n,) of a position (n, 2) of each row from the true place, metres, on a sphere of the mean earth
        radius; in the plane for a position beyond that radius, where the frame has no surface."""
        parts = [
            Positions.of_points(en_m[rows]).error_m(
                layout.network.frame, self.tx_altitude_m[rows], self.tx_lat[rows], self.tx_lon[rows]
            )
            for layout, rows in self.layouts
        ]
        on_sphere_m, off_m = np.concatenate(parts), en_m - self.target_m_B2.cpu().numpy()
        return np.where(np.isnan(on_sphere_m), np.hypot(*off_m.T), on_sphere_m)


def batches(num_hearing_B: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """The indices of all rows in random order, in batches of ``batch_size`` (one of them is the rest).

    Rows that the same number of receivers heard stand together, or those of the next number, so that little of a batch
    is padding.
    """
    shuffled = torch.randperm(len(num_hearing_B), generator=generator)
    by_width = shuffled[num_hearing_B.cpu()[shuffled].argsort(stable=True)]
    parts = by_width.split(batch_size)
    return [parts[i] for i in torch.randperm(len(parts), generator=generator)]


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
