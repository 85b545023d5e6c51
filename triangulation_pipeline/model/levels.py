"""What a scenario says of received levels, and of who hears at all.

Shapes: W receivers that hear, S receivers that tell by detection alone, B rows, Q places.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.model.arrays import total
from triangulation_pipeline.model.arrivals import log_normal
from triangulation_pipeline.model.receptions import Receptions
from triangulation_pipeline.physics.propagation import path_loss_function
from triangulation_pipeline.physics.scenario import Scenario

Float = NDArray[np.floating]

# Losses are read from a table over the logarithm of the range, from 1 m on.
_NODES, _FARTHEST_M = 1024, 4e6


@dataclass(frozen=True)
class LevelFit:
    """Levels at places, with the level that is common to a transmission at its likeliest."""

    off: Float  # (W, B, Q) how far each is off what is expected, in sigmas
    best_dbm: Float  # (B, Q) the common level
    precision: Float  # (B, 1) of that


class Levels:
    """What a scenario says of levels and of detection, with the level that is common to a transmission Gaussian."""

    def __init__(self, scenario: Scenario) -> None:
        step = math.log(_FARTHEST_M) / (_NODES - 1)
        range_km = np.exp(step * np.arange(_NODES)) / 1e3
        loss_db = path_loss_function(scenario)(range_km) - scenario.tx_antenna_gain_dbi - scenario.rx_antenna_gain_dbi
        self._per_step = 1 / step
        self._loss_db = loss_db.astype(np.float32)
        self._rise_db = np.diff(self._loss_db, append=self._loss_db[-1:])
        self._link_db = float(scenario.link_level_sigma_db)
        self._mean_dbm = scenario.mean_tx_power_dbm
        self._precision = 1 / max(scenario.common_level_variance_db2, 0.01)
        self._threshold_db = scenario.detection_threshold_db
        self._width2_db2 = self._link_db**2 + scenario.detection_width_db**2

    def _loss(self, distance_m: Float) -> tuple[Float, Float]:
        """Median loss less the antennas' gains, dB, and how much it rises from node to node."""
        at = np.minimum(np.log(distance_m) * self._per_step, _NODES - 1.001)
        index = at.astype(np.intp)
        rise_db = self._rise_db[index]
        return self._loss_db[index] + (at - index.astype(np.float32)) * rise_db, rise_db

    def fit(self, rows: Receptions, distance_m: Float) -> tuple[LevelFit, Float]:
        """The levels at ranges (W, B, Q), and their slope (W, B, Q) by the logarithm of the range, in sigmas."""
        levelled = rows.levelled[..., None]
        loss_db, rise_db = self._loss(distance_m)
        per_link = 1 / self._link_db**2
        common_dbm = (rows.power_dbm[..., None] + loss_db) * levelled
        precision = total(levelled) * per_link + self._precision
        best_dbm = (total(common_dbm) * per_link + self._mean_dbm * self._precision) / precision
        off = (common_dbm - best_dbm) * (levelled / self._link_db)
        return LevelFit(off, best_dbm, precision), rise_db * (self._per_step / self._link_db)

    def cost(self, rows: Receptions, fit: LevelFit, judged_m: Float) -> Float:
        """(B, Q) minus log likelihood up to a constant of the row, with the ranges (S, B, Q) of those that tell by
        detection alone."""
        beyond_db = fit.best_dbm - self._mean_dbm
        cost = total(fit.off * fit.off) * 0.5 + beyond_db * beyond_db * (self._precision / 2)
        if len(judged_m):
            margin_db = fit.best_dbm - self._loss(judged_m)[0] - (rows.floor_dbm + self._threshold_db)[..., None]
            judged = rows.judged[..., None]
            log_probability = log_normal(margin_db * judged / (self._width2_db2 + 1 / fit.precision) ** 0.5)
            cost = cost - total(log_probability * np.abs(judged))
        return cost
