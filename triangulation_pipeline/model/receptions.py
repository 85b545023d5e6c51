"""Measurements as the search for hypotheses takes them: each row by its own receivers.

Shapes: W receivers that hear, S silent receivers, B rows. Receivers come first, so that a sum over them is a sum of
whole arrays.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.inputs import FARTHEST_M
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.layout import Layout

Float = NDArray[np.floating]

# Of the silent receivers those nearest to the levels' centre count: the others would not hear it anyway.
NEAREST_SILENT = 12


@dataclass(frozen=True)
class Receptions:
    """Receivers with arrival times stand first, then the others that hear; and beside them the silent ones that count.
    Masks are 0 or 1. A level that was not reported is 0 and not levelled."""

    site_m: Float  # (3, W, B)
    hears: Float  # (W, B)
    timed: Float  # (W, B)
    levelled: Float  # (W, B)
    toa_m: Float  # (W, B) as a range, less the median of the row; 0 if there is none
    sigma_m: Float  # (W, B) 1 if there is none
    power_dbm: Float  # (W, B)
    silent_m: Float  # (3, S, B)
    silent: Float  # (S, B)
    floor_dbm: Float  # (S, B)
    altitude_m: Float  # (B,)
    low_m: Float  # (2, B) corners of the service area, east and north
    high_m: Float  # (2, B)

    @classmethod
    def of(cls, layout: Layout, measurements: Measurements) -> Self:
        """Those of calibrated measurements of a layout."""
        hears = measurements.signal_present
        timed = measurements.toa_present & hears
        has_level = np.isfinite(measurements.power_dbm)
        levelled = hears & has_level
        power_dbm = np.where(has_level, measurements.power_dbm, np.float32(0.0))
        site_m = layout.network.site_enu_m
        low_m, high_m = layout.areas_m(measurements)
        count = hears.sum(1)
        row, width = np.arange(len(hears)), max(1, int(count.max(initial=0)))
        order = np.argsort(-(timed.astype(np.int8) + hears), axis=1, kind="stable")[:, :width].T
        is_timed = timed[row, order]
        range_m = np.where(is_timed, SPEED_OF_LIGHT_M_PER_NS * measurements.toa_ns[row, order], np.inf)
        middle = (np.maximum(is_timed.sum(0), 1) - 1) // 2
        median_m = np.sort(range_m, axis=0)[middle, row]
        away_m = range_m - np.where(np.isfinite(median_m), median_m, 0.0)
        hearing = hears[row, order]
        silent, silent_m, floor_dbm = _nearest_silent(site_m, hears, has_level, levelled, power_dbm)
        return cls(
            site_m=_single(site_m.T[:, order] * hearing),
            hears=_single(hearing),
            timed=_single(is_timed),
            levelled=_single(levelled[row, order]),
            toa_m=_single(np.where(is_timed, np.clip(away_m, -FARTHEST_M, FARTHEST_M), 0.0)),
            sigma_m=_single(np.where(is_timed, SPEED_OF_LIGHT_M_PER_NS * measurements.toa_sigma_ns[row, order], 1.0)),
            power_dbm=_single(power_dbm[row, order]),
            silent_m=_single(silent_m),
            silent=_single(silent),
            floor_dbm=_single(floor_dbm),
            altitude_m=_single(measurements.tx_altitude_m),
            low_m=_single(low_m.T),
            high_m=_single(high_m.T),
        )

    def __len__(self) -> int:
        return len(self.altitude_m)

    @property
    def longer_m(self) -> Float:
        """(B,) the longer side of the service area; the other one differs little."""
        return (self.high_m - self.low_m).max(0)

    @property
    def area_m(self) -> Float:
        """(B,) standard deviation of a place in the area."""
        return self.longer_m * np.float32(1 / math.sqrt(12))

    def take(self, rows: NDArray[np.integer]) -> Self:
        """The rows that indices pick."""
        return type(self)(**{f.name: np.take(getattr(self, f.name), rows, axis=-1) for f in fields(self)})

    def part(self, rows: slice) -> Self:
        """Rows that stand side by side, without padding that none of them needs."""
        width, number = (int(mask[:, rows].sum(0).max(initial=0)) for mask in (self.hears, self.silent))
        narrow: dict[str, Any] = {name: getattr(self, name)[..., rows] for name in ("altitude_m", "low_m", "high_m")}
        for name in ("site_m", "hears", "timed", "levelled", "toa_m", "sigma_m", "power_dbm"):
            narrow[name] = getattr(self, name)[..., : max(1, width), rows]
        for name in ("silent_m", "silent", "floor_dbm"):
            narrow[name] = getattr(self, name)[..., :number, rows]
        return type(self)(**narrow)


def _single(values: NDArray) -> Float:
    return np.ascontiguousarray(values, dtype=np.float32)


def _nearest_silent(
    site_m: NDArray, hears: NDArray, has_level: NDArray, levelled: NDArray, power_dbm: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Which there are (S, B), their places (3, S, B) and noise floors (S, B): the silent receivers nearest to the
    centre of the received power."""
    number = min(NEAREST_SILENT, int((~hears & has_level).sum(1).max(initial=0)))
    if not number:
        return np.zeros((0, len(hears))), np.zeros((3, 0, len(hears))), np.zeros((0, len(hears)))
    level_db = np.where(levelled, power_dbm, -np.inf).astype(np.float64)
    peak_db = np.where(levelled.any(1), level_db.max(1), 0.0)
    power = 10 ** ((level_db - peak_db[:, None]) / 10)
    centre_m = (power @ site_m[:, :2]) / np.maximum(power.sum(1), 1.0)[:, None]
    away_m2 = ((centre_m[:, None] - site_m[:, :2]) ** 2).sum(-1)
    away_m2[hears | ~has_level] = np.inf
    nearest = np.argsort(away_m2, axis=1, kind="stable")[:, :number].T
    row = np.arange(len(hears))
    return np.isfinite(away_m2[row, nearest]), site_m.T[:, nearest], power_dbm[row, nearest]
