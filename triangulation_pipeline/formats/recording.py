"""Recordings: measurements of transmissions with their ids, what is known of the truth, and where each came from."""

import gzip
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from triangulation_pipeline.formats.columns import FIELDS, PLACE_FIELDS
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.outputs import replaced_file
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.validation import expanded

REFUSED_COLUMNS = ("line", "transmission_id", "column", "value", "reason")


@dataclass(frozen=True)
class Recording:
    """n transmissions of a measurement file, and the rows of it that were refused.

    ``latitude``, ``longitude`` and ``altitude_m`` are NaN where they are not known. ``refused`` has a row for each
    refused row of the file: ``line``, ``transmission_id``, ``column``, ``value`` (cut short) and ``reason``.
    """

    receivers: tuple[str, ...]  # names of the sites, in the order of the measurements
    measurements: Measurements
    transmission_id: NDArray[np.object_]  # (n,) str
    latitude: NDArray[np.float64]  # (n,) degrees
    longitude: NDArray[np.float64]  # (n,) degrees
    altitude_m: NDArray[np.float64]  # (n,) above the ellipsoid
    line: NDArray[np.int64]  # (n,) of the first row of each transmission; of Parquet and data frames the row's number
    refused: pd.DataFrame

    def __len__(self) -> int:
        return len(self.measurements)

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """(n,) whether the place of the transmitter is known."""
        return np.isfinite(self.latitude)

    @property
    def reasons(self) -> pd.Series:
        """How many rows were refused for each reason, the most frequent first."""
        return self.refused["reason"].value_counts()

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Self:
        """The transmissions that a mask, indices or a slice picks. ``refused`` stays as it is.

        Parameters
        ----------
        rows : ndarray of bool, shape (n,), ndarray of int, or slice

        Returns
        -------
        Recording
        """
        picked = {name: getattr(self, name)[rows] for name in ("transmission_id", *PLACE_FIELDS, "line")}
        return replace(self, measurements=self.measurements.take(rows), **picked)

    @classmethod
    def concatenate(cls, blocks: Sequence[Self]) -> Self:
        """All transmissions and refused rows in one object.

        Parameters
        ----------
        blocks : sequence of Recording
            Of one network, at least one.

        Returns
        -------
        Recording
        """
        if len(blocks) == 1:
            return blocks[0]
        names = ("transmission_id", *PLACE_FIELDS, "line")
        joined: dict[str, Any] = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
        joined["measurements"] = Measurements.concatenate([block.measurements for block in blocks])
        joined["refused"] = pd.concat([block.refused for block in blocks], ignore_index=True)
        return replace(blocks[0], **joined)


def recording_of(samples: Samples, network: ReceiverNetwork, withhold: float = 0.0) -> Recording:
    """Simulated samples as if they had been recorded.

    Parameters
    ----------
    samples : Samples
        n rows of the network.
    network : ReceiverNetwork
        The network that measured them.
    withhold : float
        The share of transmissions whose place is left out, 0 to 1. Which ones follows from their ids alone.

    Returns
    -------
    Recording
        The ids of the transmissions are the UUIDs of the samples; ``line`` counts from 1.

    Raises
    ------
    ValueError
        If ``withhold`` is out of range, or the samples are of another number of sites.
    """
    if not 0 <= withhold <= 1:
        raise ValueError(f"withhold must be 0 to 1, got {withhold:g}")
    if samples.num_sites != len(network.sites):
        raise ValueError(f"the network has {len(network.sites)} sites, the samples are of {samples.num_sites}")
    # The last 32 bits of the id: the first decide the split.
    share = np.ascontiguousarray(samples.sample_id[:, 12:]).view(">u4")[:, 0] / 2.0**32
    known = share >= withhold
    digits = np.frombuffer(samples.sample_id.tobytes().hex().encode(), "S32").astype("U32").astype(object)
    columns = {name: getattr(samples, name) for name in Measurements.__dataclass_fields__}
    return Recording(
        tuple(site.name for site in network.sites),
        Measurements(**columns),
        digits,
        np.where(known, samples.tx_lat, np.nan),
        np.where(known, samples.tx_lon, np.nan),
        np.where(known, samples.tx_altitude_m, np.nan),
        np.arange(1, len(samples) + 1),
        pd.DataFrame(columns=list(REFUSED_COLUMNS)),
    )


def write_measurements(recording: Recording, path: str | Path) -> None:
    """Writes the long form as CSV: a row for each receiver that detected a transmission.

    What is read back is equal to the bit, except for transmissions that no receiver detected: they leave no row.

    Parameters
    ----------
    recording : Recording
        Of any network.
    path : str or Path
        The file; it is packed if its name ends in ``.gz``. A file that exists is replaced, at once.

    Raises
    ------
    ValueError
        If the file cannot be written, or if an id has a line break.
    """
    seen = recording.measurements
    row, site = np.nonzero(seen.signal_present | seen.toa_present)
    timed = seen.toa_present[row, site]

    def of_reception(values: NDArray, given: NDArray[np.bool_] | None = None) -> pa.Array:
        picked = values[row, site]
        absent = np.isnan(picked) if given is None else ~given
        return pa.array(picked, mask=absent)

    def of_transmission(values: NDArray) -> pa.Array:
        return pa.array(values, mask=np.isnan(values)).take(pa.array(row))

    columns = {
        "transmission_id": pa.array(recording.transmission_id, pa.string()).take(pa.array(row)),
        "time": pa.array(seen.time_ns).take(pa.array(row)),
        "receiver": pa.array(recording.receivers).take(pa.array(site)),
        "toa_ns": of_reception(seen.toa_ns, timed),
        "toa_sigma_ns": of_reception(seen.toa_sigma_ns, timed),
        "rssi_dbm": of_reception(seen.power_dbm, seen.signal_present[row, site] & ~np.isnan(seen.power_dbm[row, site])),
        "snr_db": of_reception(seen.snr_db),
        "frequency_hz": pa.array(seen.frequency_hz).take(pa.array(row)),
        "frequency_offset_hz": of_reception(seen.frequency_offset_hz),
        **{name: of_transmission(getattr(recording, name)) for name in PLACE_FIELDS},
    }
    table = pa.table({name: columns[name] for name in FIELDS})
    names = "".join([*recording.receivers, *recording.transmission_id])
    if re.search(r"[\r\n]", names):
        raise ValueError("a transmission_id with a line break cannot be written as CSV")
    # Arrow would quote every text.
    style: Literal["needed", "none"] = "needed" if re.search('[",]', names) else "none"
    target = expanded(path)
    with (
        replaced_file(target) as raw,
        gzip.GzipFile(fileobj=raw, mode="wb") if target.suffix == ".gz" else nullcontext(raw) as file,
    ):
        file.write((",".join(FIELDS) + "\n").encode())
        pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=False, quoting_style=style))
