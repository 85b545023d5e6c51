"""Whether measurements look like those of the noise and propagation that a locator was told of."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincc, gammaln, log_ndtr

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES
from triangulation_pipeline.physics.propagation import mean_level_dbm
from triangulation_pipeline.physics.scenario import ExcessDelay, Scenario

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

UNLIKELY = 5e-4
"""Arrival times, or levels, that are less probable than this are told: both together, in about a thousandth of the rows
that follow the scenario."""

# Place and time of emission are three numbers that are fitted to the arrival times. But with delayed paths a fit is no
# projection, and takes less than three residuals away.
_FITTED = 2.0


def is_unlike(measurements: Measurements, scenario: Scenario, distance_m: Float, residual_ns: Float) -> Bool:
    """Which rows are improbable under a scenario, if their transmitters are where a locator says.

    With fewer than three arrival times none is: the place follows from the levels themselves.

    Parameters
    ----------
    measurements : Measurements
        n rows, calibrated.
    scenario : Scenario
        The conditions that the locator was told.
    distance_m : ndarray, shape (n, r)
        Distances from the places found to the receivers, metres; NaN without a place.
    residual_ns : ndarray, shape (n, r)
        How much later the signal arrived than the place explains, by the most likely time of emission, nanoseconds;
        NaN without an arrival time.

    Returns
    -------
    ndarray of bool, shape (n,)
        False where there is no place.
    """
    by_time = _probability_of_times(measurements, scenario.excess_delay, residual_ns)
    by_level = _probability_of_levels(measurements, scenario, distance_m)
    is_tested = measurements.toa_present.sum(1) >= LEAST_ARRIVAL_TIMES
    return is_tested & (np.minimum(by_time, by_level) < UNLIKELY)


def _probability_of_times(measurements: Measurements, delay: ExcessDelay, residual_ns: Float) -> Float:
    """(n,) how probable residuals as improbable as these are.

    The probability of an error at least so early, or so late, is uniform; of k independent ones the sum of minus the
    logarithms follows a gamma distribution of shape k (Fisher 1925). Some place explains three arrival times
    or fewer, whatever they are.
    """
    present = measurements.toa_present & np.isfinite(residual_ns)
    sigma_ns = np.where(present, measurements.toa_sigma_ns, 1.0).astype(np.float64)
    x = np.where(present, residual_ns, 0.0) / sigma_ns
    log_early, log_late = log_ndtr(x), log_ndtr(-x)
    if delay.probability > 0:
        # Probability of a delayed path times that of its arrival to be later than a Gaussian's: see ``mixture``.
        ratio = sigma_ns / delay.mean_ns
        log_delayed = np.log(delay.probability) + ratio * (0.5 * ratio - x) + log_ndtr(x - ratio)
        log_late = np.logaddexp(log_late, log_delayed)
        log_early = log_early + np.log1p(-np.exp(np.minimum(log_delayed - log_early, 0.0)) * (1 - 1e-12))
    surprise = np.where(present, -np.log(2) - np.minimum(log_early, log_late), 0.0).sum(1)
    count = present.sum(1)
    return np.where(
        count > LEAST_ARRIVAL_TIMES, gammaincc(np.maximum(count - _FITTED, 1.0), np.maximum(surprise, 0)), 1.0
    )


def _probability_of_levels(measurements: Measurements, scenario: Scenario, distance_m: Float) -> Float:
    """(n,) how probable levels as far from the expected ones as these are, at most.

    Their squared distance by the variances of power and shadowing follows a chi-squared distribution. Of the receivers
    that could have heard the transmission, those that did are the lucky ones, so the probability is multiplied by the
    number of choices that there were (Bonferroni).
    """
    heard = measurements.signal_present & np.isfinite(measurements.power_dbm) & np.isfinite(distance_m)
    expected_dbm = mean_level_dbm(scenario, np.where(heard, distance_m, 1e3) / 1e3)
    apart_db = np.where(heard, measurements.power_dbm - expected_dbm, 0.0)
    count = heard.sum(1)
    link_db2, common_db2 = scenario.link_level_sigma_db**2, scenario.common_level_variance_db2
    # The inverse of the covariance: links vary by themselves, and all together (Sherman and Morrison 1950).
    common = common_db2 / (link_db2 + count * common_db2) * apart_db.sum(1) ** 2
    squared = ((apart_db * apart_db).sum(1) - common) / link_db2
    r = heard.shape[1]
    log_choices = gammaln(r + 1) - gammaln(count + 1) - gammaln(r - count + 1)
    return np.exp(log_choices) * np.where(
        count > 0, gammaincc(np.maximum(count, 1) / 2, np.maximum(squared, 0) / 2), 1.0
    )
