"""Positions by the received powers alone, without a model of them: the simplest baselines."""

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.positions.points import Positions


def power_weighted_centroid(network: ReceiverNetwork, measurements: Measurements) -> Positions:
    """Mean position of the detecting sites, weighted by received power in milliwatts.

    Parameters
    ----------
    network : ReceiverNetwork
        The sites.
    measurements : Measurements
        n rows of that network.

    Returns
    -------
    Positions
        n positions without covariances; NaN without a detection.
    """
    heard = measurements.signal_present & np.isfinite(measurements.power_dbm)
    power_dbm = np.where(heard, measurements.power_dbm.astype(np.float64), -np.inf)
    strongest_dbm = power_dbm.max(1, keepdims=True)
    weight = 10 ** ((power_dbm - np.where(np.isfinite(strongest_dbm), strongest_dbm, 0.0)) / 10)
    total = weight.sum(1, keepdims=True)
    mean_en_m = weight @ network.site_enu_m[:, :2] / np.where(total > 0, total, 1.0)
    return Positions.of_points(np.where(total > 0, mean_en_m, np.nan))


def strongest_receiver(network: ReceiverNetwork, measurements: Measurements) -> Positions:
    """Position of the site with the highest level.

    Parameters
    ----------
    network : ReceiverNetwork
        The sites.
    measurements : Measurements
        n rows of that network.

    Returns
    -------
    Positions
        n positions without covariances; NaN without a detection.
    """
    heard = measurements.signal_present & np.isfinite(measurements.power_dbm)
    strongest: NDArray[np.int64] = np.where(heard, measurements.power_dbm, -np.inf).argmax(1)
    return Positions.of_points(np.where(heard.any(axis=1, keepdims=True), network.site_enu_m[strongest, :2], np.nan))
