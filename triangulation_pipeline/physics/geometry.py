"""Ranges, dilution of precision and the Cramér-Rao bound, in closed form (without LAPACK: the same bits everywhere).

Positions are (east, north) of the network's frame, metres, on the surface at a known altitude (``surface_up_m``).
Information is Fisher's on such a position, (..., 2, 2), 1 / m^2.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.frame import LocalFrame, surface_up_m
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES, ReceiverNetwork
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS

Float = NDArray[np.float64]
# If the determinant of an information matrix over the square of its trace is below it, the matrix is singular.
LEAST_DETERMINANT = 1e-12


@dataclass(frozen=True, eq=False)
class Geometry:
    """The sites of a network, and the altitude of transmitters over the ellipsoid: one for all, or one per row (n,)."""

    network: ReceiverNetwork
    altitude_m: float | Float

    def take(self, rows: NDArray[np.integer]) -> Self:
        """The geometry of some rows.

        Parameters
        ----------
        rows : ndarray of int, shape (m,)
            Indices of the rows.

        Returns
        -------
        Geometry
            With the altitudes of these rows, or the one altitude of all.
        """
        return self if np.ndim(self.altitude_m) == 0 else replace(self, altitude_m=np.asarray(self.altitude_m)[rows])

    def ranges_m(self, en_m: Float) -> tuple[Float, Float]:
        """WGS-84 slant ranges to every site, and their gradients.

        Parameters
        ----------
        en_m : ndarray, shape (..., 2)
            Positions, east and north of the network's frame, metres.

        Returns
        -------
        distance : ndarray, shape (..., r)
            Range to each site, metres.
        gradient : ndarray, shape (..., r, 2)
            Its derivative by east and north, without unit.
        """
        return ranges_m(self.network.frame, self.network.site_enu_m, en_m, self.altitude_m)


def ranges_m(frame: LocalFrame, site_enu_m: Float, en_m: Float, altitude_m: float | Float) -> tuple[Float, Float]:
    """WGS-84 slant ranges to places of a frame, and their gradients.

    Parameters
    ----------
    frame : LocalFrame
        The frame of all coordinates.
    site_enu_m : ndarray, shape (r, 3)
        East, north and up of the places that ranges are to, metres.
    en_m : ndarray, shape (..., 2)
        East and north of the positions, metres.
    altitude_m : float, or ndarray of shape (...)
        Altitude of the positions over the ellipsoid, metres: one for all, or one for each.

    Returns
    -------
    distance : ndarray, shape (..., r)
        Range to each place, metres.
    gradient : ndarray, shape (..., r, 2)
        Its derivative by east and north, without unit.
    """
    up_m, (slope_e, slope_n) = surface_up_m(en_m, frame.surface_coefficients, altitude_m)
    de = en_m[..., 0, None] - site_enu_m[:, 0]
    dn = en_m[..., 1, None] - site_enu_m[:, 1]
    du = up_m[..., None] - site_enu_m[:, 2]
    distance = np.sqrt(de * de + dn * dn + du * du)
    gradient = np.stack([de + du * slope_e[..., None], dn + du * slope_n[..., None]], axis=-1)
    return distance, gradient / distance[..., None]


def inside_hull(site_en_m: Float, en_m: Float) -> NDArray[np.bool_]:
    """Whether positions lie within the convex hull of the sites: no half-plane through them is free of sites.

    Parameters
    ----------
    site_en_m : ndarray, shape (r, 2)
        East and north of the sites, metres.
    en_m : ndarray, shape (n, 2)
        The positions, in the same frame.

    Returns
    -------
    ndarray of bool, shape (n,)
        False everywhere if all sites stand in one line.
    """
    east, north = np.moveaxis(site_en_m - en_m[:, None], -1, 0)
    bearing = np.sort(np.arctan2(north, east), axis=1)
    gap = np.diff(bearing, axis=1, append=bearing[:, :1] + 2 * np.pi)
    return gap.max(1) < np.pi * (1 - 1e-9)


def time_difference_information(gradient: Float, weight: Float) -> Float:
    """Fisher information of pseudo-ranges with an unknown common time.

    The time is eliminated by the Schur complement, which equals differencing with the covariance ``I + 1 1^T``.

    Parameters
    ----------
    gradient : ndarray, shape (n, r, 2)
        Gradients of the ranges.
    weight : ndarray, shape (n, r)
        One over the variance of each range, 1 / m^2; zero without an arrival time.

    Returns
    -------
    ndarray, shape (n, 2, 2)
        Information on (east, north), 1 / m^2.
    """
    total = weight.sum(-1)
    safe = np.where(total > 0, total, 1.0)
    mean_e = (weight * gradient[..., 0]).sum(-1) / safe
    mean_n = (weight * gradient[..., 1]).sum(-1) / safe
    # Centred sums: no cancellation when all receivers lie in one direction.
    de = gradient[..., 0] - mean_e[..., None]
    dn = gradient[..., 1] - mean_n[..., None]
    return _symmetric((weight * de * de).sum(-1), (weight * dn * dn).sum(-1), (weight * de * dn).sum(-1))


def dilution(gradient: Float, toa_present: NDArray[np.bool_]) -> tuple[Float, Float]:
    """Dilution of precision of the receivers with an arrival time, independent of any reference receiver.

    ``Q = (H^T H)^-1`` with rows ``[u^T, 1]``: ``HDOP = sqrt(Q_EE + Q_NN)``, ``GDOP = sqrt(tr Q)`` with time (Kaplan and
    Hegarty 2017, section 11.2).

    Parameters
    ----------
    gradient : ndarray, shape (n, r, 2)
        Gradients of the ranges.
    toa_present : ndarray of bool, shape (n, r)
        Which receivers measured an arrival time.

    Returns
    -------
    hdop, gdop : ndarray, shape (n,)
        NaN with fewer than three arrival times and in a degenerate geometry.
    """
    weight = toa_present.astype(np.float64)
    information = time_difference_information(gradient, weight)
    ee, nn, en = information[..., 0, 0], information[..., 1, 1], information[..., 0, 1]
    count = weight.sum(-1)
    determinant, regular = _determinant(ee, nn, en)
    usable = (count >= LEAST_ARRIVAL_TIMES) & regular
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_e = (weight * gradient[..., 0]).sum(-1) / count
        mean_n = (weight * gradient[..., 1]).sum(-1) / count
        horizontal = (ee + nn) / determinant
        time = 1 / count + (mean_e**2 * nn - 2 * mean_e * mean_n * en + mean_n**2 * ee) / determinant
    return (
        np.where(usable, np.sqrt(np.where(usable, horizontal, 1.0)), np.nan),
        np.where(usable, np.sqrt(np.where(usable, horizontal + time, 1.0)), np.nan),
    )


def signal_strength_information(
    gradient: Float,
    distance_m: Float,
    present: NDArray[np.bool_],
    slope_db: Float,
    link_sigma_db: float,
    common_variance_db2: float,
) -> Float:
    """Fisher information of the levels that the detecting receivers measured.

    Level gradients are ``slope_db u / d``. The unknown common level (transmit power and common shadowing) is a nuisance
    with a Gaussian prior, eliminated by Sherman-Morrison. What a non-detection tells is left out, so the information is
    slightly too small.

    Parameters
    ----------
    gradient : ndarray, shape (n, r, 2)
        Gradients of the ranges.
    distance_m : ndarray, shape (n, r)
        Ranges, metres.
    present : ndarray of bool, shape (n, r)
        Which receivers detected the signal.
    slope_db : ndarray, shape (n, r)
        ``path_loss_slope_db`` at these ranges, dB.
    link_sigma_db : float
        Standard deviation of the level of a single link, dB.
    common_variance_db2 : float
        Variance of the common level, dB squared.

    Returns
    -------
    ndarray, shape (n, 2, 2)
        Information on (east, north), 1 / m^2.
    """
    scale = np.where(present, slope_db / distance_m, 0.0)
    ge, gn = scale * gradient[..., 0], scale * gradient[..., 1]
    variance = link_sigma_db**2
    shrink = common_variance_db2 / (variance + present.sum(-1) * common_variance_db2)
    sum_e, sum_n = ge.sum(-1), gn.sum(-1)
    return _symmetric(
        ((ge * ge).sum(-1) - shrink * sum_e**2) / variance,
        ((gn * gn).sum(-1) - shrink * sum_n**2) / variance,
        ((ge * gn).sum(-1) - shrink * sum_e * sum_n) / variance,
    )


def crlb_m(information: Float) -> Float:
    """Cramér-Rao bound: the least rms position error of an unbiased estimator.

    Parameters
    ----------
    information : ndarray, shape (n, 2, 2)
        Fisher information on (east, north), 1 / m^2.

    Returns
    -------
    ndarray, shape (n,)
        Square root of the trace of the inverse, metres; NaN if the information is singular.
    """
    return crlb_of_elements_m(information[..., 0, 0], information[..., 1, 1], information[..., 0, 1])


def crlb_of_elements_m(ee: Float, nn: Float, en: Float) -> Float:
    """``crlb_m`` by the three elements of the information.

    Parameters
    ----------
    ee, nn, en : ndarray, shape (...)
        Fisher information on east, on north, and of both, 1 / m^2.

    Returns
    -------
    ndarray, shape (...)
        Square root of the trace of the inverse, metres; NaN if the information is singular.
    """
    trace = ee + nn
    determinant, regular = _determinant(ee, nn, en)
    return np.where(regular, np.sqrt(np.where(regular, trace, 1.0) / np.where(regular, determinant, 1.0)), np.nan)


def covariance_m2(information: Float) -> Float:
    """The inverse of information.

    Parameters
    ----------
    information : ndarray, shape (n, 2, 2)
        Fisher information on (east, north), 1 / m^2.

    Returns
    -------
    ndarray, shape (n, 2, 2)
        Covariance, square metres; NaN if the information is singular.
    """
    ee, nn, en = information[..., 0, 0], information[..., 1, 1], information[..., 0, 1]
    determinant, regular = _determinant(ee, nn, en)
    scale = np.where(regular, 1 / np.where(determinant == 0, 1.0, determinant), np.nan)
    return _symmetric(scale * nn, scale * ee, scale * -en)


def toa_weight(toa_present: NDArray[np.bool_], toa_sigma_ns: NDArray[np.floating]) -> Float:
    """One over the range variance, (n, r), 1 / m^2; zero without an arrival time."""
    sigma_m = SPEED_OF_LIGHT_M_PER_NS * np.asarray(toa_sigma_ns, np.float64)
    return np.where(toa_present, 1.0, 0.0) / np.where(toa_present, sigma_m, 1.0) ** 2


def _symmetric(ee: Float, nn: Float, en: Float) -> Float:
    """(..., 2, 2) matrices of their three elements."""
    return np.stack([np.stack([ee, en], axis=-1), np.stack([en, nn], axis=-1)], axis=-2)


def _determinant(ee: Float, nn: Float, en: Float) -> tuple[Float, NDArray[np.bool_]]:
    """Determinants, and which matrices are regular."""
    determinant, trace = ee * nn - en * en, ee + nn
    return determinant, (determinant > LEAST_DETERMINANT * trace * trace) & (trace > 0)
