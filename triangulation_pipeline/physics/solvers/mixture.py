"""Arrival times with a share of delayed paths: density, maximum likelihood and Fisher information.

An error is N(0, s^2), plus an exponential excess delay with probability p: an exponentially modified Gaussian.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry, crlb_m, time_difference_information
from triangulation_pipeline.physics.scenario import ExcessDelay
from triangulation_pipeline.physics.solvers.descent import (
    Arrivals,
    Fix,
    RobustCost,
    arrivals,
    best_descent,
    linear_cost,
    make_fix,
)
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton

Float = NDArray[np.float64]

_LOG_SQRT_2_PI = 0.5 * np.log(2 * np.pi)


def mixture_log_density(
    error: ArrayLike, sigma: ArrayLike, nlos_probability: float, nlos_mean: float | Float
) -> tuple[Float, Float]:
    """Logarithm of the density of an arrival error with a share of delayed paths, and its derivative.

    The delayed part is ``exp(s^2 / 2 m^2 - e / m) Phi(e / s - s / m) / m``, computed in logarithms.

    Parameters
    ----------
    error : array_like, shape (...)
        Error e of the arrival, in any unit of time or length.
    sigma : array_like, shape (...)
        Standard deviation s of its Gaussian part, in the same unit.
    nlos_probability : float
        Share of delayed paths.
    nlos_mean : float or ndarray
        Mean excess delay m, in the same unit.

    Returns
    -------
    log_density, slope : ndarray, shape (...)
        log f(e), and its derivative by e.
    """
    error, sigma = np.asarray(error, np.float64), np.asarray(sigma, np.float64)
    x, ratio = error / sigma, sigma / nlos_mean
    direct = np.log1p(-nlos_probability) - 0.5 * x * x - np.log(sigma) - _LOG_SQRT_2_PI
    if nlos_probability == 0:
        return direct, -x / sigma
    z = x - ratio
    log_cdf = log_ndtr(z)
    delayed = np.log(nlos_probability / nlos_mean) + ratio * (0.5 * ratio - x) + log_cdf
    log_density = np.logaddexp(direct, delayed)
    is_delayed = np.exp(delayed - log_density)
    delayed_slope = np.exp(-0.5 * z * z - _LOG_SQRT_2_PI - log_cdf) - ratio
    return log_density, (is_delayed * delayed_slope - (1 - is_delayed) * x) / sigma


def _mixture_cost(delay: ExcessDelay) -> RobustCost:
    mean_m = SPEED_OF_LIGHT_M_PER_NS * delay.mean_ns

    def cost_of(residual_m: Float, weight: Float) -> tuple[Float, Float, Float]:
        present = weight > 0
        sigma_m = 1 / np.sqrt(np.where(present, weight, 1.0))
        log_density, slope = mixture_log_density(residual_m, sigma_m, delay.probability, mean_m)
        # An error is Gaussian given its excess delay, so no curvature exceeds the Gaussian's: with that one the descent
        # is expectation maximisation, whose short steps stay in the valley of the start.
        return np.where(present, -log_density, 0.0), np.where(present, -slope, 0.0), weight

    return cost_of


def mixture_maximum_likelihood(
    geometry: Geometry,
    measurements: Measurements,
    delay: ExcessDelay,
    start_en_m: Float | None = None,
) -> Fix:
    """Maximum likelihood of position and emission time (jointly) if a share of the paths is delayed.

    Without ``start_en_m`` it starts at Huber's fix and at the least-squares fixes that leave out one arrival time each.
    There are at most 60 damped steps per start, so in a flat valley a fix stays on the side of its start.

    Parameters
    ----------
    geometry : Geometry
        The network, and the altitude of the transmitters.
    measurements : Measurements
        n rows of that network, calibrated.
    delay : ExcessDelay
        Share of the delayed paths, and their mean delay.
    start_en_m : ndarray, shape (n, 2), optional
        Where to start, metres.

    Returns
    -------
    Fix
        n positions with covariances and costs; NaN with fewer than three arrival times. The covariance is the inverse
        Fisher information, so it does not depend on the residuals of the row.
    """
    data = arrivals(measurements)
    of_rows = geometry.take(data.rows)
    if start_en_m is None:
        huber = gauss_newton(geometry, measurements, Loss.huber).en_m[data.rows]
        starts = [huber, *_leave_one_out(of_rows, data, huber)]
    else:
        starts = [start_en_m[data.rows]]
    en_m, cost, _ = best_descent(of_rows, data, _mixture_cost(delay), starts)
    weight = _weight(data.weight > 0, measurements.toa_sigma_ns[data.rows].astype(np.float64), delay)
    return make_fix(of_rows, data, len(measurements), en_m, cost, weight)


def mixture_information(sigma_ns: ArrayLike, delay: ExcessDelay) -> Float:
    """Fisher information of the location of the mixture.

    ``integral f'^2 / f`` by quadrature on a logarithmic table of s / m (in units of s it depends on that alone), with
    linear interpolation.

    Parameters
    ----------
    sigma_ns : array_like, shape (...)
        Standard deviation s of the Gaussian part, ns.
    delay : ExcessDelay
        Share of the delayed paths, and their mean delay m.

    Returns
    -------
    ndarray, shape (...)
        Information, 1 / ns^2; ``1 / s^2`` if nothing is delayed.
    """
    sigma_ns = np.asarray(sigma_ns, np.float64)
    if delay.probability == 0 or sigma_ns.size == 0:
        return 1 / sigma_ns**2
    log_ratio = np.log(sigma_ns / delay.mean_ns)
    knots = np.arange(np.floor(log_ratio.min() * 16), np.ceil(log_ratio.max() * 16) + 2) / 16
    mean = np.exp(-knots)[:, None]  # in units of s
    # Dense in the Gaussian part, then stretched over the exponential tail.
    core, tail = np.linspace(-9, 9, 721), np.linspace(0, 1, 241)[1:] ** 2
    error = np.concatenate([np.broadcast_to(core, (len(knots), core.size)), 9 + 30 * mean * tail], axis=1)
    log_density, slope = mixture_log_density(error, 1.0, delay.probability, mean)
    relative = np.trapezoid(np.exp(log_density) * slope**2, error, axis=1)
    return np.interp(log_ratio, knots, relative) / sigma_ns**2


def mixture_crlb_m(geometry: Geometry, en_m: Float, measurements: Measurements, delay: ExcessDelay) -> Float:
    """Cramér-Rao bound by arrival times alone, if a share of the paths is delayed.

    Parameters
    ----------
    geometry : Geometry
        The network, and the altitude of the transmitters.
    en_m : ndarray, shape (n, 2)
        Positions at which the bound is taken, metres.
    measurements : Measurements
        Which receivers have an arrival time, and its sigma.
    delay : ExcessDelay
        Share of the delayed paths, and their mean delay.

    Returns
    -------
    ndarray, shape (n,)
        Bound, metres; NaN with fewer than three arrival times.
    """
    present = measurements.toa_present & (measurements.toa_present.sum(1, keepdims=True) >= LEAST_ARRIVAL_TIMES)
    weight = _weight(present, measurements.toa_sigma_ns.astype(np.float64), delay)
    return crlb_m(time_difference_information(geometry.ranges_m(en_m)[1], weight))


def _weight(present: NDArray[np.bool_], sigma_ns: Float, delay: ExcessDelay) -> Float:
    """Fisher information of each arrival as a range, 1 / m^2; zero without an arrival."""
    weight = np.zeros(present.shape)
    weight[present] = mixture_information(sigma_ns[present], delay)
    return weight / SPEED_OF_LIGHT_M_PER_NS**2


def _leave_one_out(geometry: Geometry, data: Arrivals, en_m: Float) -> Iterator[Float]:
    """For each site, the least-squares fix (m, 2) from ``en_m`` without it; NaN if fewer than three would be left."""
    spare = (data.weight > 0).sum(1) > LEAST_ARRIVAL_TIMES
    for site in range(data.weight.shape[1]):
        rows = np.flatnonzero(spare & (data.weight[:, site] > 0))
        weight = data.weight[rows]
        weight[:, site] = 0.0
        others = Arrivals(data.rows[rows], data.range_m[rows], weight)
        found_m = np.full_like(en_m, np.nan)
        found_m[rows] = best_descent(geometry.take(rows), others, linear_cost, [en_m[rows]])[0]
        yield found_m
