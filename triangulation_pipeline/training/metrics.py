"""Error statistics: metres on the mean earth, over samples, never over batches. An empty subset has none (None)."""

import math

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


def rmse_m(distance_m: Float) -> float | None:
    """sqrt(mean(d^2)), metres."""
    return float(np.sqrt(np.mean(np.square(distance_m, dtype=np.float64)))) if len(distance_m) else None


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
