"""Positions by levels that were measured at known places: nothing is known of propagation."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.samples import Samples

Float = NDArray[np.float64]

# Levels are off by shadowing, so a few neighbours would be as far off as the levels: that many average it out.
NEIGHBOURS = 30


def nearest_fingerprints(network: ReceiverNetwork, measurements: Measurements, known: Samples) -> Positions:
    """Mean position of the known transmissions whose levels at the sites are nearest.

    Nearest is the Euclidean distance of the levels in dB, of which those of a receiver that detected nothing are its
    noise floor (k nearest neighbours in signal space; Bahl and Padmanabhan 2000). There are ``NEIGHBOURS``, or all if
    fewer are known.

    Parameters
    ----------
    network : ReceiverNetwork
        The sites.
    measurements : Measurements
        n rows of that network, calibrated.
    known : Samples
        One or more rows of that network, calibrated, with the truth.

    Returns
    -------
    Positions
        n positions without covariances.
    """
    tree = cKDTree(known.power_dbm.astype(np.float64))
    count = min(NEIGHBOURS, len(known))
    _, nearest = tree.query(measurements.power_dbm.astype(np.float64), k=np.arange(1, count + 1))
    return Positions.of_points(known.tx_en_m(network.frame)[nearest].mean(1))
