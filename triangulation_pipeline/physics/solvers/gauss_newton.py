"""Weighted least squares and Huber's M-estimate of position and emission time by arrival times."""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.solvers.descent import (
    Fix,
    RobustCost,
    arrivals,
    best_descent,
    huber_cost,
    linear_cost,
    make_fix,
)
from triangulation_pipeline.physics.solvers.signal_strength import power_weighted_centroid, strongest_receiver

Float = NDArray[np.float64]


class Loss(StrEnum):
    """The cost of a residual of x standard deviations: x^2 / 2 (linear), or Huber's, which is linear beyond 1.345."""

    linear = "linear"
    huber = "huber"


_COSTS: dict[Loss, RobustCost] = {Loss.linear: linear_cost, Loss.huber: huber_cost}


def gauss_newton(geometry: Geometry, measurements: Measurements, loss: Loss) -> Fix:
    """Weighted least squares, or Huber's M-estimate, of position and emission time, from several starts.

    Levenberg-Marquardt with the weights ``1 / (c s_i)^2`` of ``toa_sigma_ns``. The starts are the power-weighted
    centroid, the strongest receiver and nine points that cover the service area. The lowest cost wins, and the earlier
    start if two are equal (three arrival times may fit two places perfectly).

    Parameters
    ----------
    geometry : Geometry
        The network, and the altitude of the transmitters.
    measurements : Measurements
        n rows of that network, calibrated.
    loss : Loss
        ``linear`` or ``huber``.

    Returns
    -------
    Fix
        n positions with covariances and costs. A row is NaN if it has fewer than three arrival times, or if every start
        ends absurdly far: outside the sites' bounding box by more than three of its diagonals.
    """
    data = arrivals(measurements)
    seen, geometry = measurements.take(data.rows), geometry.take(data.rows)
    # Beside the strongest site, not on it: the range has no gradient there.
    network = geometry.network
    starts = [power_weighted_centroid(network, seen).en_m, strongest_receiver(network, seen).en_m + 100.0]
    starts += [np.broadcast_to(point, starts[0].shape) for point in covering_points(network)]
    en_m, cost, reweighted = best_descent(geometry, data, _COSTS[loss], starts)
    return make_fix(geometry, data, len(measurements), en_m, cost, reweighted)


def covering_points(network: ReceiverNetwork) -> Float:
    """(9, 2) middles of a 3 x 3 division of the sites' bounding box, widened by a fifth of its longer side."""
    box = network.service_area(0.0)
    longer_m = max(box.east_max_m - box.east_min_m, box.north_max_m - box.north_min_m)
    return network.service_area(0.2 * longer_m).cell_centres(3)
