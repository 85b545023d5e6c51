"""Measurements as the search for hypotheses takes them: each row by its own receivers.

Shapes: W receivers that hear, S receivers that tell by detection alone, B rows. Receivers come first, so that a sum
over them is a sum of whole arrays.
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
from triangulation_pipeline.physics.propagation import noise_floor_dbm

Float = NDArray[np.floating]

# Of the silent receivers those nearest to the levels' centre count: the others would not hear it anyway.
NEAREST_SILENT = 12


@dataclass(frozen=True)
class Receptions:
    """Receivers with arrival times stand first, then the others that hear. Beside them stand those that tell by
    detection alone: who hears and reports no level, and the silent ones that count. Masks are 0 or 1. A level that was
    not reported is 0 and not levelled."""

    site_m: Float  # (3, W, B)
    hears: Float  # (W, B)
    timed: Float  # (W, B)
    levelled: Float  # (W, B)
    toa_m: Float  # (W, B) as a range, less the median of the row; 0 if there is none
    sigma_m: Float  # (W, B) 1 if there is none
    power_dbm: Float  # (W, B)
    judged_m: Float  # (3, S, B)
    judged: Float  # (S, B) 1 of one that hears, -1 of a silent one, 0 in the padding
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
        floors_dbm = noise_floor_dbm(layout.scenario, [site.noise_figure_db for site in layout.network.sites])
        judged, judged_m, floor_dbm = _judged_by_detection(site_m, hears, has_level, power_dbm, floors_dbm)
        return cls(
            site_m=_single(site_m.T[:, order] * hearing),
            hears=_single(hearing),
            timed=_single(is_timed),
            levelled=_single(levelled[row, order]),
            toa_m=_single(np.where(is_timed, np.clip(away_m, -FARTHEST_M, FARTHEST_M), 0.0)),
            sigma_m=_single(np.where(is_timed, SPEED_OF_LIGHT_M_PER_NS * measurements.toa_sigma_ns[row, order], 1.0)),
            power_dbm=_single(power_dbm[row, order]),
            judged_m=_single(judged_m),
            judged=_single(judged),
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
        width, number = (int((mask[:, rows] != 0).sum(0).max(initial=0)) for mask in (self.hears, self.judged))
        narrow: dict[str, Any] = {name: getattr(self, name)[..., rows] for name in ("altitude_m", "low_m", "high_m")}
        for name in ("site_m", "hears", "timed", "levelled", "toa_m", "sigma_m", "power_dbm"):
            narrow[name] = getattr(self, name)[..., : max(1, width), rows]
        for name in ("judged_m", "judged", "floor_dbm"):
            narrow[name] = getattr(self, name)[..., :number, rows]
        return type(self)(**narrow)


def _single(values: NDArray) -> Float:
    return np.ascontiguousarray(values, dtype=np.float32)


def _judged_by_detection(
    site_m: NDArray, hears: NDArray, has_level: NDArray, power_dbm: NDArray, floors_dbm: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """What each tells (S, B), 1 that it hears and -1 that it does not, their places (3, S, B) and noise floors (S, B):
    receivers that hear without a level, and the silent ones nearest to the centre of the received power."""
    tells = np.where(hears, ~has_level, np.where(has_level, -1, 0))
    number = min(int((tells > 0).sum(1).max(initial=0)) + NEAREST_SILENT, int((tells != 0).sum(1).max(initial=0)))
    if not number:
        return np.zeros((0, len(hears))), np.zeros((3, 0, len(hears))), np.zeros((0, len(hears)))
    # Without any level, all that hear count alike.
    levelled = hears & (has_level | ~(hears & has_level).any(1, keepdims=True))
    level_db = np.where(levelled, power_dbm, -np.inf).astype(np.float64)
    peak_db = np.where(levelled.any(1), level_db.max(1), 0.0)
    power = 10 ** ((level_db - peak_db[:, None]) / 10)
    centre_m = (power @ site_m[:, :2]) / np.maximum(power.sum(1), 1.0)[:, None]
    away_m2 = ((centre_m[:, None] - site_m[:, :2]) ** 2).sum(-1)
    away_m2 = np.select([tells > 0, tells == 0], [-1.0, np.inf], away_m2)
    nearest = np.argsort(away_m2, axis=1, kind="stable")[:, :number].T
    row, counts = np.arange(len(hears)), (tells > 0).sum(1) + NEAREST_SILENT
    judged = np.where(np.arange(number)[:, None] < counts, tells[row, nearest], 0)
    return judged, site_m.T[:, nearest], np.where(hears, floors_dbm, power_dbm)[row, nearest]
