"""How much air slows signals down.

Refractivity, (n - 1) 1e6 for a refractive index n, is in parts per million, which radio engineers call N-units.
"""

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.physics.layout import Layout

Float = NDArray[np.float64]

SCALE_HEIGHT_M = 7350.0
"""Of the reference atmosphere of ITU-R P.453: N(h) = N0 exp(-h / 7.35 km), with N0 = 315 on a world-wide average."""


def mean_refractivity_ppm(surface_ppm: float, altitude_m: Float, other_altitude_m: Float | float) -> Float:
    """Mean refractivity along a straight path between two altitudes.

    With the middle m of the altitudes and their difference d, the mean of the exponential is
    ``N0 exp(-m / H) sinh(x) / x``, x = d / (2 H). The curvature of the earth is neglected: at 127 km it adds 5 ppm of
    172, which are 0.6 m.

    Parameters
    ----------
    surface_ppm : float
        Refractivity at sea level, N0.
    altitude_m, other_altitude_m : ndarray, or float
        Altitudes of both ends, metres.

    Returns
    -------
    ndarray
        Parts per million.
    """
    half = (np.asarray(altitude_m, np.float64) - other_altitude_m) / (2 * SCALE_HEIGHT_M)
    shape = np.where(np.abs(half) < 1e-4, 1.0, np.sinh(half) / np.where(half == 0, 1.0, half))
    middle_m = (np.asarray(altitude_m, np.float64) + other_altitude_m) / 2
    return np.asarray(surface_ppm * np.exp(-middle_m / SCALE_HEIGHT_M) * shape)


def slowing(layout: Layout, tx_altitude_m: Float) -> Float:
    """By what share of its time in vacuum the air delays each transmission, on the way to a site of mean altitude.

    One share serves all links of a transmission, so that arrival times in air are those in vacuum times a constant, up
    to the time of emission, and nothing else has to know of the air. A site that is 500 m above or below the mean
    differs by 10 ppm, which are 1 m at 100 km.

    Parameters
    ----------
    layout : Layout
        Its scenario tells the refractivity at sea level; 0 if it is left out.
    tx_altitude_m : ndarray, shape (n,)
        Altitudes of the transmitters, metres.

    Returns
    -------
    ndarray, shape (n,)
    """
    surface_ppm = layout.scenario.refractivity_ppm or 0.0
    site_altitude_m = float(np.mean([site.altitude_m for site in layout.network.sites]))
    return mean_refractivity_ppm(surface_ppm, tx_altitude_m, site_altitude_m) / 1e6
