"""Hypotheses of transmitters' places, with what speaks for each.

Shapes: B rows, K hypotheses, F features, W receivers.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.model.inputs import HYPOTHESIS_FEATURES
from triangulation_pipeline.model.receptions import Receptions

Float = NDArray[np.floating]


@dataclass(frozen=True)
class Hypotheses:
    """At most K of each row. The first is always alive."""

    alive: NDArray[np.bool_]  # (B, K)
    places_m: Float  # (B, K, 2) east and north
    spread_m: Float  # (B, K, 3) Cholesky factor of the covariance: first, cross, second
    features: Float  # (B, K, F)
    level: Float  # (B, K, W) how far each level is off what is expected, in sigmas

    @classmethod
    def empty(cls, n: int, hypotheses: int, width: int) -> Self:
        """Room for n rows."""
        shape = (n, hypotheses)
        return cls(
            np.zeros(shape, bool),
            np.zeros((*shape, 2), np.float32),
            np.ones((*shape, 3), np.float32),
            np.zeros((*shape, HYPOTHESIS_FEATURES), np.float32),
            np.zeros((*shape, width), np.float32),
        )

    def put(self, rows: slice | NDArray[np.integer], part: Self) -> None:
        """Puts those of some rows in their place."""
        for f in fields(self):
            values = getattr(part, f.name)
            getattr(self, f.name)[rows, ..., : values.shape[-1]] = values


def features(
    rows: Receptions, alive: NDArray[np.bool_], log_mass: Float, levels: Float, by_times: tuple[Float, ...] | None
) -> Float:
    """(B, K, F) what is known of each hypothesis.

    Parameters
    ----------
    rows : Receptions
        B rows.
    alive : ndarray of bool, shape (B, K)
        Which hypotheses there are.
    log_mass : ndarray, shape (B, K)
        The logarithm of the probability of each, up to a constant of the row.
    levels : ndarray, shape (B, K)
        The cost of the levels.
    by_times : tuple of ndarray, shape (B, K), or None
        Costs of the arrival times, Gaussian and late ones and Cauchy's; how far the place is from the first, in sigmas;
        and the cost of being outside. None for rows that were summed over cells.

    Returns
    -------
    ndarray, shape (B, K, F)
        The first is the logarithm of the share.
    """
    mass = np.where(alive, log_mass, np.float32(-1e9))
    mass = mass - mass.max(1, keepdims=True)
    log_share = np.maximum(mass - np.log(np.exp(mass).sum(1, keepdims=True)), np.float32(-15))
    timed, levelled = np.maximum(rows.timed.sum(0), 1)[:, None], np.maximum(rows.levelled.sum(0), 1)[:, None]
    found = np.zeros((*alive.shape, HYPOTHESIS_FEATURES), np.float32)
    found[..., 0] = log_share
    found[..., 2] = levels / levelled
    if by_times is not None:
        times, cauchy, apart, outside = by_times
        found[..., 1] = times / timed
        found[..., 3] = cauchy / timed
        found[..., 4] = np.log1p(apart)
        found[..., 5] = np.minimum(outside, 20)
        found[..., 8] = 1.0
    found[..., 6] = alive.sum(1, keepdims=True)
    found[..., 7] = np.log(timed)
    return found
