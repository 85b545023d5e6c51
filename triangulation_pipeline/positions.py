"""Positions with the covariances of their errors, which every locator returns, and statistics of errors.

Errors are metres on a sphere of the mean earth radius. Statistics are over samples, never over batches; for an empty
subset they are None.
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

    In a row without a position both are NaN. If nothing is known of the error, the covariance alone is NaN. Raises
    ValueError if an array has another shape.
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
        """Positions without covariances.

        Parameters
        ----------
        en_m : ndarray, shape (n, 2)
            East and north, metres.

        Returns
        -------
        Positions
            With NaN as covariances.
        """
        return cls(en_m, np.full((len(en_m), 2, 2), np.nan))

    def error_m(
        self, frame: LocalFrame, altitude_m: float | NDArray[np.float64], lat: ArrayLike, lon: ArrayLike
    ) -> NDArray[np.float64]:
        """Distance of each position from the true place.

        Parameters
        ----------
        frame : LocalFrame
            The frame of the positions.
        altitude_m : float or ndarray, shape (n,)
            Altitude of the transmitters above the ellipsoid, metres.
        lat, lon : array_like, shape (n,)
            True places, WGS-84 degrees.

        Returns
        -------
        ndarray, shape (n,)
            Great-circle distance, metres; NaN for a row without a position, or with one beyond the earth's radius.
        """
        # Beyond the earth's radius the frame has no surface.
        with np.errstate(invalid="ignore", over="ignore"):
            found_lat, found_lon = frame.geodetic(self.en_m, altitude_m)
            return haversine_m(found_lat, found_lon, np.asarray(lat), np.asarray(lon))

    def nees(self, truth_en_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Normalised estimation error squared, ``e^T S^-1 e``: mean 2 if the covariances are right.

        Parameters
        ----------
        truth_en_m : ndarray, shape (n, 2)
            True places, east and north, metres.

        Returns
        -------
        ndarray, shape (n,)
            NEES; NaN if the covariance is not positive definite.
        """
        error_m = truth_en_m - self.en_m
        (ee, en), (ne, nn) = self.covariance_m2.transpose(1, 2, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            determinant = ee * nn - en * ne
            definite = (determinant > 0) & (ee > 0) & np.isfinite(determinant)
            e, n = error_m.T
            scaled = e * e * nn - e * n * (en + ne) + n * n * ee
            return np.where(definite, scaled / np.where(definite, determinant, 1.0), np.nan)

    def log_density(self, en_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithm of the Gaussian density with these covariances.

        Parameters
        ----------
        en_m : ndarray, shape (n, 2)
            Places, east and north, metres.

        Returns
        -------
        ndarray, shape (n,)
            Nats per square metre; NaN if the covariance is not positive definite.
        """
        return -0.5 * self.nees(en_m) - self._log_volume()

    def _log_volume(self) -> NDArray[np.float64]:
        """(n,) logarithm of ``2 pi sqrt(det S)``; NaN if the determinant is not positive."""
        (ee, en), (ne, nn) = self.covariance_m2.transpose(1, 2, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            determinant = ee * nn - en * ne
            return np.log(2 * np.pi) + 0.5 * np.log(np.where(determinant > 0, determinant, np.nan))

    def rms_m(self) -> NDArray[np.float64]:
        """The rms error that the covariances claim.

        Returns
        -------
        ndarray, shape (n,)
            Square root of the trace, metres; NaN if the trace is not positive.
        """
        trace = np.trace(self.covariance_m2, axis1=1, axis2=2)
        return np.sqrt(np.where(trace > 0, trace, np.nan))


@dataclass(frozen=True)
class StudentPositions(Positions):
    """Positions with densities that are bivariate Student's t; ``covariance_m2`` holds their scale matrices.

    With infinitely many degrees of freedom a density is Gaussian. Raises ValueError if an array has another shape.
    """

    freedom: NDArray[np.float64]  # (n,) degrees of freedom

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freedom.shape != (len(self),):
            raise ValueError(f"freedom must have the shape {(len(self),)}, it has {self.freedom.shape}")

    def log_density(self, en_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithm of the density.

        Parameters
        ----------
        en_m : ndarray, shape (n, 2)
            Places, east and north, metres.

        Returns
        -------
        ndarray, shape (n,)
            Nats per square metre; NaN if the scale matrix is not positive definite.
        """
        finite = np.where(np.isfinite(self.freedom), self.freedom, 1.0)
        student = -(finite + 2) / 2 * np.log1p(self.nees(en_m) / finite) - self._log_volume()
        return np.where(np.isfinite(self.freedom), student, super().log_density(en_m))


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


def chi_square_2(probability: float) -> float:
    """The NEES below which a share ``probability`` of two-dimensional Gaussian errors lies: -2 ln(1 - p)."""
    return -2 * math.log1p(-probability)


def coverage(nees: Float, probability: float) -> float | None:
    """Share of the errors within the error ellipse of a probability.

    Parameters
    ----------
    nees : ndarray, shape (n,)
        Normalised estimation errors squared, as of ``Positions.nees``.
    probability : float
        Probability of the ellipse, 0 to 1.

    Returns
    -------
    float or None
        None if there are no errors.
    """
    return float(np.mean(nees <= chi_square_2(probability))) if len(nees) else None
