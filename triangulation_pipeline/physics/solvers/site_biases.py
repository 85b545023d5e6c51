"""The clock biases of the sites, from transmissions of known position."""

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.solvers.descent import arrivals, huber_cost, median_offset_m
from triangulation_pipeline.samples import Samples

Float = NDArray[np.float64]


def fit_site_biases_ns(geometry: Geometry, samples: Samples) -> Float:
    """Bias of each site's arrival times, from samples with known positions (the training part).

    Huber's location, alternating between one emission time per sample and one bias per site. Only differences are
    observable, so the mean over the sites with arrival times is zero.

    Parameters
    ----------
    geometry : Geometry
        The network, and the altitude of the transmitters.
    samples : Samples
        n rows of that network, with the truth.

    Returns
    -------
    ndarray, shape (r,)
        Bias, ns; 0 for a site without any arrival time.
    """
    num_sites = len(geometry.network.sites)
    data = arrivals(samples, np.zeros(num_sites))
    heard = data.weight.any(0)
    en_m = samples.tx_en_m(geometry.network.frame)[data.rows]
    residual_m = data.range_m - geometry.take(data.rows).ranges_m(en_m)[0]
    residual_m -= median_offset_m(residual_m, data.weight)[:, None]
    bias_m = np.zeros(num_sites)
    for _ in range(30):
        _, slope, reweighted = huber_cost(residual_m, data.weight)
        step_m = np.where(heard, slope.sum(0) / np.where(heard, reweighted.sum(0), 1.0), 0.0)
        bias_m += step_m
        residual_m -= step_m
        _, slope, reweighted = huber_cost(residual_m, data.weight)
        residual_m -= (slope.sum(1) / reweighted.sum(1))[:, None]
    return np.where(heard, bias_m - bias_m[heard].mean() if heard.any() else 0.0, 0.0) / SPEED_OF_LIGHT_M_PER_NS
