"""Descent of a cost of arrival-time residuals from several starts, for many rows at once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES, ReceiverNetwork
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry, covariance_m2, time_difference_information, toa_weight
from triangulation_pipeline.positions.points import Positions

Float = NDArray[np.float64]

# (residual_m, weight) -> cost, its derivative and a positive stand-in for its curvature by the residual, each (n, r).
RobustCost = Callable[[Float, Float], tuple[Float, Float, Float]]

HUBER_THRESHOLD = 1.345  # 95 % efficiency under Gaussian errors (Holland and Welsch 1977)
ABSURD_DIAGONALS = 3.0
_COST_TOLERANCE = 1e-7
_MAX_ITERATIONS = 60
_MIN_DAMPING, _MAX_DAMPING = 1e-12, 1e8


@dataclass(frozen=True)
class Fix(Positions):
    """What a solver found, and how well it fits."""

    cost: Float  # (n,) negative log-likelihood, up to a constant of the row


@dataclass(frozen=True)
class Arrivals:
    """Arrival times as ranges with an unknown common offset, of the rows that have at least three."""

    rows: NDArray[np.int64]  # (m,) their place among the measurements
    range_m: Float  # (m, r)
    weight: Float  # (m, r), 1 / m^2, zero without an arrival time


def arrivals(measurements: Measurements) -> Arrivals:
    """The usable arrival times of measurements."""
    rows = np.flatnonzero(measurements.toa_present.sum(1) >= LEAST_ARRIVAL_TIMES)
    present = measurements.toa_present[rows]
    range_m = np.where(present, SPEED_OF_LIGHT_M_PER_NS * measurements.toa_ns[rows], 0.0)
    return Arrivals(rows, range_m, toa_weight(present, measurements.toa_sigma_ns[rows]))


def linear_cost(residual_m: Float, weight: Float) -> tuple[Float, Float, Float]:
    """Half the squared residual in standard deviations."""
    slope = weight * residual_m
    return 0.5 * slope * residual_m, slope, weight


def huber_cost(residual_m: Float, weight: Float) -> tuple[Float, Float, Float]:
    """Huber 1964; the curvature is that of iteratively reweighted least squares, which lies above the cost."""
    x = np.abs(residual_m) * np.sqrt(weight)
    shrink = HUBER_THRESHOLD / np.maximum(x, HUBER_THRESHOLD)
    inside = np.minimum(x, HUBER_THRESHOLD)
    reweighted = weight * shrink
    return inside * (x - 0.5 * inside), reweighted * residual_m, reweighted


def best_descent(
    geometry: Geometry, data: Arrivals, cost_of: RobustCost, starts: Iterable[Float]
) -> tuple[Float, Float, Float]:
    """Position (m, 2), cost (m,) and final curvature weights (m, r) of the best descent; NaN if all end absurdly."""
    m, r = data.range_m.shape
    en_m, cost, weight = np.full((m, 2), np.nan), np.full(m, np.inf), np.full((m, r), np.nan)
    for start in starts:
        ended_m, ended_cost, ended_weight = _descend(geometry, data, cost_of, start)
        ended_cost = np.where(_is_plausible(geometry.network, ended_m), ended_cost, np.inf)
        better = ended_cost < cost - 1e-3
        en_m[better], cost[better], weight[better] = ended_m[better], ended_cost[better], ended_weight[better]
    return en_m, np.where(np.isinf(cost), np.nan, cost), weight


def make_fix(geometry: Geometry, data: Arrivals, n: int, en_m: Float, cost: Float, weight: Float) -> Fix:
    """The solutions of the usable rows, spread over all ``n`` rows. Their covariances are the inverse of the
    information of the ranges' ``weight`` (m, r) at the solution, NaN in a degenerate geometry."""
    information = time_difference_information(geometry.ranges_m(en_m)[1], weight)
    fix = Fix(np.full((n, 2), np.nan), np.full((n, 2, 2), np.nan), np.full(n, np.nan))
    fix.en_m[data.rows] = en_m
    fix.cost[data.rows] = cost
    fix.covariance_m2[data.rows] = covariance_m2(information)
    return fix


def _descend(geometry: Geometry, data: Arrivals, cost_of: RobustCost, start_en_m: Float) -> tuple[Float, Float, Float]:
    """Levenberg-Marquardt on (east, north, common offset): a step is taken only if the cost falls.

    The offset is eliminated from the position's normal equations by the Schur complement and follows the ranges.
    """
    longest_step_m = 0.5 * geometry.network.service_area(0.0).diagonal_m

    def evaluate(geometry: Geometry, en: Float, offset: Float, range_m: Float, weight: Float) -> tuple[Float, ...]:
        distance, gradient = geometry.ranges_m(en)
        cost, slope, curvature = cost_of(range_m - distance - offset[:, None], weight)
        return cost.sum(1), distance, gradient[..., 0], gradient[..., 1], slope, curvature

    result = np.array(start_en_m), np.full(len(start_en_m), np.inf), np.array(data.weight)
    active = np.flatnonzero(np.isfinite(start_en_m).all(1))
    geometry = geometry.take(active)
    en, range_m, weight = start_en_m[active], data.range_m[active], data.weight[active]
    offset = median_offset_m(range_m - geometry.ranges_m(en)[0], weight)
    state = evaluate(geometry, en, offset, range_m, weight)
    damping = np.full(len(active), 1e-3)
    for iteration in range(_MAX_ITERATIONS):
        cost, distance, u_e, u_n, slope, curvature = state
        total = curvature.sum(1)
        u_e = u_e - ((curvature * u_e).sum(1) / total)[:, None]
        u_n = u_n - ((curvature * u_n).sum(1) / total)[:, None]
        ee, nn, en_ = ((curvature * a * b).sum(1) for a, b in ((u_e, u_e), (u_n, u_n), (u_e, u_n)))
        b_e, b_n = (slope * u_e).sum(1), (slope * u_n).sum(1)
        extra = damping * (ee + nn)
        ee, nn = ee + extra, nn + extra
        determinant = ee * nn - en_ * en_
        step = np.stack([nn * b_e - en_ * b_n, ee * b_n - en_ * b_e], axis=-1) / determinant[:, None]
        step *= np.minimum(1.0, longest_step_m / (np.hypot(step[:, 0], step[:, 1]) + 1e-9))[:, None]
        trial_en = en + step
        with np.errstate(invalid="ignore"):  # a step off the earth has ranges and a cost that are no number: not taken
            trial_distance = geometry.ranges_m(trial_en)[0]
            shift = (curvature * (trial_distance - distance)).sum(1) / total
            trial_offset = offset + slope.sum(1) / (total * (1 + damping)) - shift
            trial = evaluate(geometry, trial_en, trial_offset, range_m, weight)
        fell = trial[0] < cost
        settled = np.where(fell, cost - trial[0] < _COST_TOLERANCE * (1 + cost), damping > _MAX_DAMPING)
        damping = np.maximum(damping * np.where(fell, 0.1, 10.0), _MIN_DAMPING)
        for old, new in zip((en, offset, *state), (trial_en, trial_offset, *trial), strict=True):
            old[fell] = new[fell]
        settled |= ~_is_plausible(geometry.network, en)
        if iteration == _MAX_ITERATIONS - 1:
            settled[:] = True
        if settled.any():
            for whole, part in zip(result, (en, state[0], state[5]), strict=True):
                whole[active[settled]] = part[settled]
            if settled.all():
                break
            going = np.flatnonzero(~settled)
            active, geometry = active[going], geometry.take(going)
            en, offset, damping, range_m, weight = (x[going] for x in (en, offset, damping, range_m, weight))
            state = tuple(x[going] for x in state)
    return result


def median_offset_m(residual_m: Float, weight: Float) -> Float:
    """(m,) lower median of the present residuals: excess delays are positive, so the lower one."""
    ordered = np.sort(np.where(weight > 0, residual_m, np.inf), axis=1)
    return np.take_along_axis(ordered, ((weight > 0).sum(1, keepdims=True) - 1) // 2, axis=1)[:, 0]


def _is_plausible(network: ReceiverNetwork, en_m: Float) -> NDArray[np.bool_]:
    return network.service_area(ABSURD_DIAGONALS * network.service_area(0.0).diagonal_m).contains(en_m)
