"""The local east-north frame of all geometry, the surface of the earth in it, and distances over the earth.

Altitudes are metres above the WGS-84 ellipsoid, latitudes (``lat``) and longitudes (``lon``) are WGS-84 degrees.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pymap3d
from numpy.typing import ArrayLike, NDArray

WGS84_A_M = 6378137.0
WGS84_B_M = 6356752.314245179
MEAN_EARTH_RADIUS_M = 6371008.8

Float = NDArray[np.float64]


@dataclass(frozen=True)
class ServiceArea:
    """A rectangle of the local frame, in metres east and north of its origin."""

    east_min_m: float
    east_max_m: float
    north_min_m: float
    north_max_m: float

    @property
    def diagonal_m(self) -> float:
        """Length of the diagonal, metres."""
        return float(np.hypot(self.east_max_m - self.east_min_m, self.north_max_m - self.north_min_m))

    def contains(self, en_m: Float) -> NDArray[np.bool_]:
        """Whether each position lies in the rectangle.

        Parameters
        ----------
        en_m : ndarray, shape (n, 2)
            East and north, metres.

        Returns
        -------
        ndarray of bool, shape (n,)
        """
        east, north = en_m[:, 0], en_m[:, 1]
        return (
            (east >= self.east_min_m)
            & (east <= self.east_max_m)
            & (north >= self.north_min_m)
            & (north <= self.north_max_m)
        )

    def cell_centres(self, cells: int) -> Float:
        """Middles of the cells of a regular division.

        Parameters
        ----------
        cells : int
            Cells per side.

        Returns
        -------
        ndarray, shape (cells^2, 2)
            East and north, metres; east varies fastest.
        """
        middles = (np.arange(cells) + 0.5) / cells
        east, north = np.meshgrid(
            self.east_min_m + middles * (self.east_max_m - self.east_min_m),
            self.north_min_m + middles * (self.north_max_m - self.north_min_m),
        )
        return np.stack([east.ravel(), north.ravel()], axis=-1)


@dataclass(frozen=True)
class LocalFrame:
    """East-north-up tangent frame at a point of the WGS-84 ellipsoid, in metres.

    A transmitter at a known altitude is a pair (east, north). The third coordinate follows from the ellipsoid, in
    closed form and without cancellation, so ranges are true WGS-84 slant ranges in float32 too.

    Parameters
    ----------
    lat, lon : float
        The point where the frame touches the ellipsoid, WGS-84 degrees.
    """

    lat: float
    lon: float

    def enu_m(self, lat: ArrayLike, lon: ArrayLike, altitude_m: ArrayLike) -> NDArray[np.float64]:
        """East, north and up of geodetic coordinates.

        Parameters
        ----------
        lat, lon : array_like, shape (...)
            WGS-84 latitude and longitude, degrees.
        altitude_m : array_like, shape (...) or ()
            Altitude above the ellipsoid, metres.

        Returns
        -------
        ndarray, shape (..., 3), float64
            East, north and up, metres.
        """
        return np.stack(
            pymap3d.geodetic2enu(
                np.asarray(lat, float), np.asarray(lon, float), np.asarray(altitude_m, float), self.lat, self.lon, 0.0
            ),
            axis=-1,
        )

    def en_m(self, lat: ArrayLike, lon: ArrayLike, altitude_m: ArrayLike) -> NDArray[np.float64]:
        """East and north of geodetic coordinates.

        Parameters
        ----------
        lat, lon : array_like, shape (...)
            WGS-84 latitude and longitude, degrees.
        altitude_m : array_like, shape (...) or ()
            Altitude above the ellipsoid, metres.

        Returns
        -------
        ndarray, shape (..., 2), float64
            East and north, metres.
        """
        return self.enu_m(lat, lon, altitude_m)[..., :2]

    def geodetic(
        self, en_m: NDArray[np.floating], altitude_m: float | Float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latitude and longitude of positions at a known altitude.

        Parameters
        ----------
        en_m : ndarray, shape (..., 2)
            East and north, metres.
        altitude_m : float, or ndarray of shape (...)
            Altitude above the ellipsoid, metres: one for all positions, or one for each.

        Returns
        -------
        lat, lon : ndarray, shape (...), float64
            WGS-84 degrees; NaN for a position beyond the earth's radius, where the frame has no surface.
        """
        en_m = np.asarray(en_m, np.float64)
        up_m, _ = surface_up_m(en_m, self.surface_coefficients, altitude_m)
        lat, lon, _ = pymap3d.enu2geodetic(en_m[..., 0], en_m[..., 1], up_m, self.lat, self.lon, 0.0)
        return np.asarray(lat), np.asarray(lon)

    @cached_property
    def surface_coefficients(self) -> tuple[float, float, float, float, float]:
        """Coefficients (k_ee, k_nn, k_nu, k_uu, g) for ``surface_up_m``: the ellipsoid as a quadric in this frame."""
        sin, cos = np.sin(np.radians(self.lat)), np.cos(np.radians(self.lat))
        a2, b2 = WGS84_A_M**2, WGS84_B_M**2
        normal_radius_m = a2 / np.sqrt(a2 * cos**2 + b2 * sin**2)
        # Multiplied by a^2, so that every coefficient is of order one (g: of order a).
        return (
            1.0,
            float(sin**2 + cos**2 * a2 / b2),
            float(sin * cos * (a2 / b2 - 1.0)),
            float(cos**2 + sin**2 * a2 / b2),
            float(normal_radius_m),
        )


def surface_up_m(
    en_m: Any, coefficients: tuple[float, float, float, float, float], altitude_m: Any
) -> tuple[Any, tuple[Any, Any]]:
    """Up coordinate of the surface at an altitude over the ellipsoid, and its gradient, at (east, north).

    Only arithmetic is used, so NumPy arrays and torch tensors share the formula. ``docs/physics.md`` derives it.

    Parameters
    ----------
    en_m : ndarray or Tensor, shape (..., 2)
        East and north, metres.
    coefficients : tuple of float
        ``LocalFrame.surface_coefficients``.
    altitude_m : float, or array of shape (...)
        Altitude above the ellipsoid, metres: one for all positions, or one for each.

    Returns
    -------
    up_m : shape (...)
        Up coordinate, metres. It is the root of ``k_uu z^2 + 2 (g + k_nu n) z + k_ee e^2 + k_nn n^2 = 0``, written so
        that it loses no digits near z = 0, lifted along the normal: ``z + h sqrt(1 + |grad z|^2)``, which is right to
        first order in h over the earth's radius.
    gradient : pair of shape (...)
        d up / d east and d up / d north.
    """
    k_ee, k_nn, k_nu, k_uu, g = coefficients
    east, north = en_m[..., 0], en_m[..., 1]
    half_b = g + k_nu * north
    c = k_ee * east * east + k_nn * north * north
    root = (half_b * half_b - k_uu * c) ** 0.5
    z = -c / (half_b + root)
    slope_e = -k_ee * east / root
    slope_n = -(k_nn * north + k_nu * z) / root
    return z + altitude_m * (1.0 + slope_e * slope_e + slope_n * slope_n) ** 0.5, (slope_e, slope_n)


def haversine_m(lat_a: Float, lon_a: Float, lat_b: Float | float, lon_b: Float | float) -> Float:
    """Great-circle distance on a sphere of the mean earth radius.

    Parameters
    ----------
    lat_a, lon_a, lat_b, lon_b : ndarray, shape (...)
        The two places, degrees; the second may be one for all.

    Returns
    -------
    ndarray, shape (...)
        Distance, metres.
    """
    lat_a, lon_a, lat_b, lon_b = (np.radians(x) for x in (lat_a, lon_a, lat_b, lon_b))
    h = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return 2 * MEAN_EARTH_RADIUS_M * np.arcsin(np.sqrt(h))
