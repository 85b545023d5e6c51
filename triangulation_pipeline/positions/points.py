"""Positions with the covariances of their errors.

Errors are metres on a sphere of the mean earth radius.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triangulation_pipeline.frame import LocalFrame, haversine_m


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

    def rms_m(self) -> NDArray[np.float64]:
        """The rms error that the covariances claim.

        Returns
        -------
        ndarray, shape (n,)
            Square root of the trace, metres; NaN if the trace is not positive.
        """
        trace = np.trace(self.covariance_m2, axis1=1, axis2=2)
        return np.sqrt(np.where(trace > 0, trace, np.nan))
