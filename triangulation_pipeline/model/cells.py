"""The posterior of a row summed over the cells of the service area, finely where it lies: for rows with fewer than
three arrival times. That of two arrival times is cut into parts across its longer axis.

Shapes: W receivers, B rows, Q cells, K hypotheses. Positions are (2, B, Q), east and north.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from triangulation_pipeline.model.arrays import total
from triangulation_pipeline.model.arrivals import robust_residual
from triangulation_pipeline.model.hypotheses import Hypotheses, features
from triangulation_pipeline.model.receptions import Receptions
from triangulation_pipeline.model.search import CELL_NUMBERS, Area, unit_cells
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES

Float = NDArray[np.floating]


class Cells(Area):
    """The hypotheses of the rows of one layout that have fewer than three arrival times."""

    def hypotheses(self, rows: Receptions) -> Hypotheses:
        """The posterior summed over cells: those of the area, then as many where the posterior lies."""
        found = Hypotheses.empty(len(rows), self.config.hypotheses, len(rows.hears))
        step = max(1, CELL_NUMBERS // (len(rows.hears) * self.config.fine_cells_per_side**2))
        for chunk in (slice(first, first + step) for first in range(0, len(rows), step)):
            found.put(chunk, self._of_few(rows.part(chunk)))
        return found

    def _of_few(self, rows: Receptions) -> Hypotheses:
        """The same of rows that are computed at once."""
        side, unit = self.config.fine_cells_per_side, unit_cells(self.config.fine_cells_per_side) + np.float32(0.5)
        low_m, high_m = rows.low_m[..., None], rows.high_m[..., None]
        for _ in range(2):
            cell_m = (high_m - low_m) / side
            en_m = low_m + cell_m * unit
            share = self._shares(rows, en_m, cell_m)
            middle_m, variance_m2 = _moments(share, en_m)
            reach_m = 3 * np.sqrt(variance_m2[:2, :, None]) + cell_m
            low_m = np.maximum(middle_m[..., None] - reach_m, rows.low_m[..., None])
            high_m = np.minimum(middle_m[..., None] + reach_m, rows.high_m[..., None])
        parts = self.config.hypotheses
        along = _along_longer_axis(en_m - middle_m[..., None], variance_m2)
        edges = ndtri(np.arange(1, parts) / parts).astype(np.float32)
        # Two arrival times leave a hyperbola, which one ellipse fits badly. What levels leave fills an ellipse, and its
        # parts would together be flatter than it is, and reach farther out of the area.
        is_hyperbola = (total(rows.timed) == LEAST_ARRIVAL_TIMES - 1)[:, None]
        part = (along[..., None] > edges).sum(-1) * is_hyperbola
        within_part = share[:, None] * (part[:, None] == np.arange(parts)[:, None])
        mass = within_part.sum(-1)
        # The likeliest first: it is the one that is always alive.
        order = np.argsort(-mass, axis=1, kind="stable")
        row = np.arange(len(rows))[:, None]
        within_part, mass = within_part[row, order], mass[row, order]
        alive = mass > math.exp(self.config.least_log_share)
        mass = np.maximum(mass, np.float32(1e-30))
        places_m, variance_m2 = _moments(within_part / mass[..., None], en_m[:, :, None])
        places_m = np.where(alive, places_m, middle_m[..., None])
        variance_m2 = np.where(alive, variance_m2, np.array([1, 1, 0], np.float32)[:, None, None])
        variance_m2[:2] += cell_m * cell_m * np.float32(1 / 12)
        fit, _ = self.levels.fit(rows, self.distances_m(rows, places_m))
        cost = self.level_cost(rows, fit, places_m)
        return Hypotheses(
            alive=alive,
            places_m=np.moveaxis(places_m, 0, -1),
            spread_m=_cholesky(variance_m2),
            features=features(rows, alive, np.log(mass), cost, None),
            level=np.moveaxis(fit.off, 0, -1),
        )

    def _shares(self, rows: Receptions, en_m: Float, cell_m: Float) -> Float:
        """(B, Q) posterior probability of each cell."""
        distance_m = self.distances_m(rows, en_m)
        fit, _ = self.levels.fit(rows, distance_m)
        timed, sigma_m = rows.timed[..., None], rows.sigma_m[..., None]
        blur_m = np.float32(0.35) * cell_m.max(0)
        variance_m2 = sigma_m * sigma_m + blur_m * blur_m
        residual_m, _ = robust_residual(rows.toa_m[..., None] - distance_m, variance_m2, timed)
        cost = self.level_cost(rows, fit, en_m) + total(timed * np.log1p(residual_m * residual_m / variance_m2))
        share = np.exp(cost.min(-1, keepdims=True) - cost)
        return share / share.sum(-1, keepdims=True)


def _moments(share: Float, en_m: Float) -> tuple[Float, Float]:
    """Mean (2, ...), and variances by east and north and covariance (3, ...), of shares (..., Q) at (2, ..., Q)."""
    middle_m = (share * en_m).sum(-1)
    east_m, north_m = en_m - middle_m[..., None]
    return middle_m, np.stack(
        [(share * a * b).sum(-1) for a, b in ((east_m, east_m), (north_m, north_m), (east_m, north_m))]
    )


def _along_longer_axis(offset_m: Float, variance_m2: Float) -> Float:
    """(B, Q) offsets (2, B, Q) along the longer axis of variances (3, B), in its standard deviations."""
    ee, nn, en = variance_m2[..., None]
    angle = np.arctan2(2 * en, ee - nn) / 2
    difference = ee - nn
    variance = (ee + nn) / 2 + np.sqrt(difference * difference / 4 + en * en)
    east_m, north_m = offset_m
    return (east_m * np.cos(angle) + north_m * np.sin(angle)) / np.sqrt(np.maximum(variance, 1))


def _cholesky(variance_m2: Float) -> Float:
    """(..., 3) first, cross, second of variances by east and north and covariance (3, ...)."""
    ee, nn, en = variance_m2
    first = np.sqrt(ee)
    return np.stack([first, en / first, np.sqrt(np.maximum(nn - en * en / ee, 1))], -1)
