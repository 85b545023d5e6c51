"""Error statistics: metres on the mean earth, over samples, never over batches. An empty subset has none (None)."""

import math

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


def rmse_m(distance_m: Float) -> float | None:
    """sqrt(mean(d^2)), metres."""
    return float(np.sqrt(np.mean(np.square(distance_m, dtype=np.float64)))) if len(distance_m) else None


def median_of_bounds_m(bound_m: Float) -> float | None:
    """The median error, metres, that an efficient estimator would have on rows with these rms bounds (n,): half of its
    errors lie below, ``mean(1 - exp(-d^2 / bound^2)) = 1/2`` for circular Gaussian errors. Rows without a bound (NaN)
    are left out."""
    known = np.asarray(bound_m, np.float64)[np.isfinite(bound_m)]
    if not len(known):
        return None
    low, high = known.min() * 0.8, known.max()  # of equal bounds the median is 0.83 of them
    for _ in range(40):
        middle = (low + high) / 2
        if np.mean(-np.expm1(-np.square(middle / known))) < 0.5:
            low = middle
        else:
            high = middle
    return float((low + high) / 2)


def distance_statistics(distance_m: Float) -> dict[str, float | int | None]:
    """``count``, ``rmse_m``, ``mean_m``, ``p50_m``, ``p68_m``, ``p95_m``, ``p99_m``, ``max_m`` of distances (n,)."""
    values = (
        [None] * 6
        if not len(distance_m)
        else [
            float(np.mean(distance_m, dtype=np.float64)),
            *(float(p) for p in np.percentile(distance_m, (50, 68, 95, 99))),
            float(np.max(distance_m)),
        ]
    )
    names = ("mean_m", "p50_m", "p68_m", "p95_m", "p99_m", "max_m")
    return {"count": len(distance_m), "rmse_m": rmse_m(distance_m), **dict(zip(names, values, strict=True))}


def chi_square_2(probability: float) -> float:
    """The NEES below which a share ``probability`` of two-dimensional Gaussian errors lies: -2 ln(1 - p)."""
    return -2 * math.log1p(-probability)


def coverage(nees: Float, probability: float) -> float | None:
    """Share of errors within the ``probability`` ellipse."""
    return float(np.mean(nees <= chi_square_2(probability))) if len(nees) else None
