"""What receivers reported of transmissions, and nothing of the truth: the columns that locators take."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

# Little-endian: digests are taken over these very bytes. Tables and COPY follow the second list.
TRANSMISSION_DTYPES: dict[str, str] = {"time_ns": "<i8", "frequency_hz": "<i8", "tx_altitude_m": "<f8"}
RECEIVER_DTYPES: dict[str, str] = {
    "signal_present": "|b1",
    "toa_present": "|b1",
    "snr_db": "<f4",
    "power_dbm": "<f4",
    "frequency_offset_hz": "<f4",
    "toa_ns": "<f8",
    "toa_sigma_ns": "<f4",
}


@dataclass(frozen=True)
class Measurements:
    """n transmissions as r receivers of one network measured them, stored as one array per column.

    The receivers stand in the order of the network's sites. If ``signal_present`` is false, ``power_dbm`` holds the
    noise floor and ``snr_db`` 0. A noise floor of NaN means that nobody knows whether the receiver listened, and so its
    silence says nothing. If ``signal_present`` is true, ``power_dbm`` and ``snr_db`` are NaN where they were not
    reported. If ``toa_present`` is false, ``toa_ns`` and ``toa_sigma_ns`` hold 0. ``toa_ns`` counts from ``time_ns``,
    and the time of emission is unknown: only differences between receivers carry information.

    Raises ValueError if a column has another shape or dtype than declared.
    """

    time_ns: NDArray[np.int64]  # (n,) nanoseconds of UTC since 1970, without leap seconds
    frequency_hz: NDArray[np.int64]  # (n,) carrier
    tx_altitude_m: NDArray[np.float64]  # (n,) of the transmitter over the ellipsoid, known or assumed
    signal_present: NDArray[np.bool_]  # (n, r)
    toa_present: NDArray[np.bool_]  # (n, r)
    snr_db: NDArray[np.float32]  # (n, r)
    power_dbm: NDArray[np.float32]  # (n, r)
    frequency_offset_hz: NDArray[np.float32]  # (n, r)
    toa_ns: NDArray[np.float64]  # (n, r)
    toa_sigma_ns: NDArray[np.float32]  # (n, r)

    def __post_init__(self) -> None:
        n, r = len(self), self.num_sites
        for name, (dtype, shape) in self._declared(n, r).items():
            column = getattr(self, name)
            if column.dtype != np.dtype(dtype) or column.shape != shape:
                raise ValueError(f"{name} must be {dtype} {shape}, is {column.dtype.str} {column.shape}")

    @classmethod
    def _declared(cls, n: int, r: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of each column."""
        by_row: dict[str, tuple[str, tuple[int, ...]]] = {
            name: (dtype, (n,)) for name, dtype in TRANSMISSION_DTYPES.items()
        }
        return by_row | {name: (dtype, (n, r)) for name, dtype in RECEIVER_DTYPES.items()}

    def __len__(self) -> int:
        return len(self.time_ns)

    @property
    def num_sites(self) -> int:
        """Receivers of the network: the length of every per-receiver row."""
        return self.signal_present.shape[1]

    @property
    def num_detections(self) -> NDArray[np.int64]:
        """(n,) how many receivers detected each transmission."""
        return self.signal_present.sum(1)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Self:
        """The rows that a mask, indices or a slice picks.

        Parameters
        ----------
        rows : ndarray of bool, shape (n,), ndarray of int, or slice

        Returns
        -------
        Measurements
            Of the same type: the rows of ``Samples`` are ``Samples``.
        """
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def of_sites(self, sites: int) -> Self:
        """The same rows with the first receivers alone. Rows of random layouts are as wide as the widest layout.

        Parameters
        ----------
        sites : int
            How many receivers are kept.

        Returns
        -------
        Measurements
            Of the same type.
        """
        return replace(self, **{name: getattr(self, name)[:, :sites] for name in RECEIVER_DTYPES})

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """All rows in one object.

        Parameters
        ----------
        batches : sequence of Measurements
            Of one network, at least one.

        Returns
        -------
        Measurements
            The rows in the order given, of the type on which this is called.
        """
        return cls(**{f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(cls)})
