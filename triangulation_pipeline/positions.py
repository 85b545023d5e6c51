"""Positions with the covariances of their errors, which every locator gives, and statistics of errors.

Errors are metres on the mean earth. Statistics are over samples, never over batches; an empty subset has none (None).
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triangulation_pipeline.frame import LocalFrame, haversine_m

Float = NDArray[np.floating]


@dataclass(frozen=True)
class Positions:
    """n positions on the surface at a known altitude, each with the covariance of its error, in a network's frame.

    Both hold NaN on a row without a fix; the covariance alone does where nothing is known of the error. Raises
    ValueError where the shapes are others.
    """

    en_m: NDArray[np.float64]  # (n, 2) east and north
    covariance_m2: NDArray[np.float64]  # (n, 2, 2)

    def __post_init__(self) -> None:
        n = len(self.en_m)
        for name, shape in (("en_m", (n, 2)), ("covariance_m2", (n, 2, 2))):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} must have the shape {shape}, it has {found}")

    def __len__(self) -> int:
        return len(self.en_m)

    @classmethod
    def of_points(cls, en_m: NDArray[np.float64]) -> Self:
        """Positions (n, 2) of whose errors nothing is known."""
        return cls(en_m, np.full((len(en_m), 2, 2), np.nan))

    def error_m(
        self, frame: LocalFrame, altitude_m: float | NDArray[np.float64], lat: ArrayLike, lon: ArrayLike
    ) -> NDArray[np.float64]:
        """(n,) distances from the true places (degrees); NaN for a position that is none or lies off the earth."""
        # Beyond the earth's radius the frame has no surface.
        with np.errstate(invalid="ignore", over="ignore"):
            found_lat, found_lon = frame.geodetic(self.en_m, altitude_m)
            return haversine_m(found_lat, found_lon, np.asarray(lat), np.asarray(lon))

    def nees(self, truth_en_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) normalised estimation error squared ``e^T S^-1 e``, from the true places (n, 2): mean 2 where the
        covariances are right. NaN where S is not positive definite."""
        error_m = truth_en_m - self.en_m
        (ee, en), (ne, nn) = self.covariance_m2.transpose(1, 2, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            determinant = ee * nn - en * ne
            definite = (determinant > 0) & (ee > 0) & np.isfinite(determinant)
            e, n = error_m.T
            scaled = e * e * nn - e * n * (en + ne) + n * n * ee
            return np.where(definite, scaled / np.where(definite, determinant, 1.0), np.nan)

    def rms_m(self) -> NDArray[np.float64]:
        """(n,) rms error that the covariances claim: the square root of their trace; NaN where that is not positive."""
        trace = np.trace(self.covariance_m2, axis1=1, axis2=2)
        return np.sqrt(np.where(trace > 0, trace, np.nan))


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
