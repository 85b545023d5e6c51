"""Statistics of position errors: over samples, never over batches; None for an empty subset."""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


def rmse_m(distance_m: Float) -> float | None:
    """sqrt(mean(d^2)), metres."""
    return float(np.sqrt(np.mean(np.square(distance_m, dtype=np.float64)))) if len(distance_m) else None


def median_of_bounds_m(bound_m: Float) -> float | None:
    """The median error of an efficient estimator on rows with different bounds.

    Half of its errors lie below it: ``mean(1 - exp(-d^2 / bound^2)) = 1/2`` for circular Gaussian errors. For equal
    bounds it is 0.83 of them.

    Parameters
    ----------
    bound_m : ndarray, shape (n,)
        Bounds of the rms error, metres; rows without a bound (NaN) are left out.

    Returns
    -------
    float or None
        Metres; None if no row has a bound.
    """
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
    """Statistics of position errors.

    Parameters
    ----------
    distance_m : ndarray, shape (n,)
        Errors, metres.

    Returns
    -------
    dict
        ``count``, ``rmse_m``, ``mean_m``, ``p50_m``, ``p68_m``, ``p95_m``, ``p99_m`` and ``max_m``; all but the count
        are None if there are no errors.
    """
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


def coverage(content: Float, level: float) -> float | None:
    """Share of the truths within the regions of a probability.

    Parameters
    ----------
    content : ndarray, shape (n,)
        Content at the truths, as of ``MixturePositions.content_at``; NaN counts as outside.
    level : float
        Probability of the regions, 0 to 1.

    Returns
    -------
    float or None
        None if there are no truths.
    """
    return float(np.mean(content <= level)) if len(content) else None
