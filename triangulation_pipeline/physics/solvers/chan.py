"""Closed-form positions by arrival times (Y. T. Chan and K. C. Ho, IEEE Trans. Signal Processing 42(8), 1994)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.frame import surface_up_m
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.solvers.descent import Arrivals, arrivals
from triangulation_pipeline.physics.solvers.signal_strength import power_weighted_centroid
from triangulation_pipeline.positions.points import Positions

Float = NDArray[np.float64]

# The second stage divides by distances from the reference along the axes, the first one by distances from sites.
_LEAST_M = 1.0


def chan(geometry: Geometry, measurements: Measurements) -> Positions:
    """Two-stage weighted least squares of Chan and Ho 1994, with the weights ``1 / (c s_i)^2`` of ``toa_sigma_ns``.

    The reference is the receiver with the earliest arrival. The first stage is linear in the position and the distance
    of the reference, the second one brings in that they belong together. Three arrival times leave a quadratic
    equation; of its solutions with a positive distance the one nearer to the power-weighted centroid is taken. All of
    it is done twice: at the height of the surface at the centroid, and at that of the surface at the first position.

    Parameters
    ----------
    geometry : Geometry
        The network, and the altitude of the transmitters.
    measurements : Measurements
        n rows of that network, calibrated.

    Returns
    -------
    Positions
        n positions without covariances, which may be absurdly far away; NaN with fewer than three arrival times.
    """
    data = arrivals(measurements)
    network = geometry.network
    centroid_m = power_weighted_centroid(network, measurements).en_m[data.rows]
    farthest_m = network.service_area(0.0).diagonal_m
    found = np.full((len(measurements), 2), np.nan)
    few = (data.weight > 0).sum(1) == LEAST_ARRIVAL_TIMES
    for is_few in (True, False):
        rows = np.flatnonzero(few == is_few)
        of_rows = geometry.take(data.rows[rows])
        start_m = en_m = centroid_m[rows]
        for _ in range(2):
            near_m = np.clip(np.where(np.isfinite(en_m), en_m, start_m), start_m - farthest_m, start_m + farthest_m)
            up_m, _ = surface_up_m(near_m, network.frame.surface_coefficients, of_rows.altitude_m)
            equations = _Differences.of(network.site_enu_m, data, rows, up_m)
            en_m = _three(equations, start_m) if is_few else _more(equations)
        found[data.rows[rows]] = en_m
    return Positions.of_points(found)


@dataclass(frozen=True)
class _Differences:
    """The arrivals of m rows against the earliest one in each: ``apart_m . p + later_m d = half_m2`` for the position p
    from the reference and its distance d. The reference's own equation is 0 = 0."""

    reference_en_m: Float  # (m, 2) site of the earliest arrival
    above_m: Float  # (m,) height of the transmitter over that site
    apart_m: Float  # (m, r, 2) of each site from the reference
    later_m: Float  # (m, r) range difference; 0 without an arrival time
    half_m2: Float  # (m, r)
    weight: Float  # (m, r) of the ranges, 1 / m^2; 0 without an arrival time

    @classmethod
    def of(cls, site_enu_m: Float, data: Arrivals, rows: NDArray[np.int64], up_m: Float) -> "_Differences":
        """Those of some rows, whose transmitters are at the height ``up_m`` (m,)."""
        weight, range_m = data.weight[rows], data.range_m[rows]
        first = np.where(weight > 0, range_m, np.inf).argmin(1)
        later_m = np.where(weight > 0, range_m - range_m[np.arange(len(rows)), first][:, None], 0.0)
        apart_m = site_enu_m[:, :2] - site_enu_m[first, None, :2]
        above_m = up_m[:, None] - site_enu_m[:, 2]
        above_first_m = np.take_along_axis(above_m, first[:, None], 1)
        half_m2 = 0.5 * ((apart_m**2).sum(-1) - later_m**2 + above_m**2 - above_first_m**2)
        return cls(site_enu_m[first, :2], above_first_m[:, 0], apart_m, later_m, half_m2, weight)


def _more(equations: _Differences) -> Float:
    """(m, 2) positions by four arrival times or more."""
    matrix = np.concatenate([equations.apart_m, equations.later_m[..., None]], axis=-1)
    first, _ = _least_squares(matrix, equations.half_m2, equations.weight)
    # An equation's error is that of the range difference times the distance of its site.
    flat_m2 = ((equations.apart_m - first[:, None, :2]) ** 2).sum(-1)
    distance_m = np.maximum(np.sqrt(flat_m2 + equations.above_m[:, None] ** 2), _LEAST_M)
    first, information = _least_squares(
        matrix / distance_m[..., None], equations.half_m2 / distance_m, equations.weight
    )
    # Second stage: the squares of both coordinates, and their sum by the distance.
    length_m = np.where(np.abs(first) < _LEAST_M, _LEAST_M, np.abs(first))
    known_m2 = first**2 - equations.above_m[:, None] ** 2 * (0, 0, 1)
    weight = (
        information / (length_m[:, :, None] * length_m[:, None, :]) * np.sign(first[:, :, None] * first[:, None, :])
    )
    sums = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    normal = np.einsum("ia,nij,jb->nab", sums, weight, sums)
    squared_m2 = np.einsum("nab,nb->na", _inverse(normal), np.einsum("ia,nij,nj->na", sums, weight, known_m2))
    return equations.reference_en_m + np.sign(first[:, :2]) * np.sqrt(np.maximum(squared_m2, 0.0))


def _least_squares(matrix: Float, right: Float, weight: Float) -> tuple[Float, Float]:
    """Solutions (m, 3), and their information (m, 3, 3), of equations between range differences. Differences from one
    reference are correlated; sums about the weighted mean, with the reference's equation, have that covariance."""
    share = weight / weight.sum(1, keepdims=True)
    matrix = matrix - np.einsum("nr,nri->ni", share, matrix)[:, None]
    right = right - (share * right).sum(1, keepdims=True)
    information = np.einsum("nri,nr,nrj->nij", matrix, weight, matrix)
    solution = np.einsum("nij,nj->ni", _inverse(information), np.einsum("nri,nr,nr->ni", matrix, weight, right))
    return solution, information


def _inverse(information: Float) -> Float:
    """Pseudo-inverses: sites on a line determine not all."""
    return np.asarray(np.linalg.pinv(information, hermitian=True), np.float64)


def _three(equations: _Differences, near_m: Float) -> Float:
    """(m, 2) positions by three arrival times, those near ``near_m`` (m, 2): linear in the distance of the reference,
    which has a quadratic equation."""
    # The two others than the reference; absent sites are no nearer than it.
    others = np.argsort((equations.weight == 0) | (equations.later_m <= 0), axis=1, kind="stable")[:, :2]
    (a, b), (c, d) = np.moveaxis(np.take_along_axis(equations.apart_m, others[..., None], 1), 0, -1)
    half_m2, later_m = (np.take_along_axis(x, others, 1) for x in (equations.half_m2, equations.later_m))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        solved, turned = (
            np.stack([d * x[:, 0] - b * x[:, 1], a * x[:, 1] - c * x[:, 0]], axis=-1) / (a * d - b * c)[:, None]
            for x in (half_m2, -later_m)
        )
        square, linear = (turned**2).sum(1) - 1, (solved * turned).sum(1)
        constant = (solved**2).sum(1) + equations.above_m**2
        root = np.sqrt(np.maximum(linear**2 - square * constant, 0.0))
        distance_m = np.stack([(-linear - root) / square, (-linear + root) / square])
        en_m = equations.reference_en_m + solved + turned * distance_m[..., None]
        away_m = np.where(distance_m > 0, np.hypot(*np.moveaxis(en_m - near_m, -1, 0)), np.inf)
    nearer = np.where(np.isnan(away_m), np.inf, away_m).argmin(0)
    return en_m[nearer, np.arange(len(nearer))]
