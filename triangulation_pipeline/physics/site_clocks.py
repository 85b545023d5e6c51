"""What arrival times of known transmissions tell of the clocks of sites: biases, noise, drifts and outliers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.physics.scenario import ExcessDelay
from triangulation_pipeline.physics.solvers.mixture import mixture_information, mixture_log_density

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]

# Biases count from the mean of the sites that have so many rows, as a share of the most that a site has: what is hardly
# known of one must not blur the others.
_REFERENCE_SHARE = 0.1
_MEDIAN_ROUNDS, _MAX_ROUNDS = 4, 100
_EARLY_SIGMAS = 3.0
_LEAST_DELAYED_SHARE = 0.01
# Factors of standard deviations that are tried, and how far from 1 they are expected: half the people are right to 1.4.
_FACTORS, _FACTOR_SPREAD, _FACTOR_ROUNDS = np.geomspace(0.2, 20.0, 49), 0.5, 3
# A time of emission that nearly only delayed paths tell of is unknown.
_LEAST_WEIGHT = 1e-3
# An arrival that is farther off the median of its row, 300 km, is an outlier and nothing else. No clock is better than
# the least standard deviation.
_GROSS_NS, _LEAST_SIGMA_NS = 1e6, 0.1
# An outlier may be anywhere within so many nanoseconds; before any row is seen, one in a hundred arrivals is one.
_OUTLIER_RANGE_NS, _OUTLIERS, _ARRIVALS = 1e5, 0.1, 10.0


@dataclass(frozen=True)
class SiteClocks:
    """What is known of the clocks of r sites, see ``calibration.SiteCalibration``."""

    toa_bias_ns: Float
    toa_bias_sigma_ns: Float
    toa_sigma_factor: Float
    toa_sigma_factor_sigma: Float
    drift_ns_per_s: Float
    drift_sigma_ns_per_s: Float
    outlier_share: Float
    outlier_share_sigma: Float
    group: NDArray[np.int64]


def groups_of_sites(present: Bool) -> NDArray[np.int64]:
    """(r,) which sites can be compared with each other, by the rows (n, r) that they have together: the number of the
    group of each, 0 of that with the most measurements, and -1 of a site that no row joins to another."""
    together = present & (present.sum(1, keepdims=True) > 1)
    _, label = connected_components(together.T.astype(np.int64) @ together.astype(np.int64))
    order = np.argsort(-np.bincount(label, weights=together.sum(0)), kind="stable")
    return np.where(together.any(0), np.argsort(order)[label], -1)


def estimate_clocks(measurements: Measurements, flight_ns: Float, delay: ExcessDelay) -> SiteClocks:
    """What arrival times tell of the clocks, see ``calibration.estimate_calibration``.

    Parameters
    ----------
    measurements : Measurements
        n rows of r sites, not calibrated.
    flight_ns : ndarray, shape (n, r)
        How long the signals were on their way.
    delay : ExcessDelay
        Of paths without line of sight.

    Returns
    -------
    SiteClocks
        What no row tells of is 0 (a factor 1), and its standard error infinite.
    """
    zero, unknown = np.zeros(measurements.num_sites), np.full(measurements.num_sites, np.inf)
    nothing = SiteClocks(
        *(zero, unknown, zero + 1, unknown, zero, unknown, zero, unknown),
        group=np.zeros(measurements.num_sites, np.int64),
    )
    known = groups_of_sites(measurements.toa_present) >= 0
    if not known.any():
        return nothing
    present = measurements.toa_present & known
    rows = present.sum(1) > 1
    present = present[rows]
    stated_ns = np.where(present, np.maximum(measurements.toa_sigma_ns[rows], _LEAST_SIGMA_NS), 1.0).astype(np.float64)
    time_ns = measurements.time_ns[rows]
    error_ns = np.where(present, (measurements.toa_ns - flight_ns)[rows], np.nan)
    delay = ExcessDelay(max(delay.probability, _LEAST_DELAYED_SHARE), delay.mean_ns)
    bias_ns = np.zeros(len(known))
    for _ in range(_MEDIAN_ROUNDS):
        error_ns -= np.nanmedian(error_ns, axis=1, keepdims=True)
        step_ns = np.where(known, np.nanmedian(np.where(known, error_ns, 0.0), axis=0), 0.0)
        bias_ns += step_ns
        error_ns -= step_ns
    error_ns = np.where(present, error_ns, 0.0)
    gross = present & (np.abs(error_ns) > _GROSS_NS)
    group = groups_of_sites(present & ~gross)
    known = group >= 0
    if not known.any():
        return nothing
    present = present & ~gross & known
    rows = present.sum(1) > 1
    present, stated_ns, error_ns, time_ns = present[rows], stated_ns[rows], error_ns[rows], time_ns[rows]
    error_ns = np.where(present, error_ns, 0.0)
    stated_ns = np.where(present, stated_ns, 1.0)

    count = present.sum(0)
    same = (group[:, None] == group) & known
    counts = same & (count >= _REFERENCE_SHARE * np.where(same, count, 0).max(1, keepdims=True))
    reference = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    constant = np.ones((1, len(error_ns)))
    factor, outliers = np.ones(len(known)), np.full(len(known), _OUTLIERS / _ARRIVALS)
    for _ in range(_FACTOR_ROUNDS):
        (step_ns,), (bias_sigma_ns,), error_ns = _site_terms(
            present, stated_ns * factor, error_ns, delay, constant, reference
        )
        bias_ns += step_ns
        factor, factor_sigma, outliers = _noise(present, stated_ns, factor, error_ns, delay, outliers)
    bias_ns -= reference @ bias_ns

    since_s = (time_ns - time_ns.min()) / 1e9
    span_s = max(float(since_s.max()), 1e-9)
    place = since_s / span_s - 0.5
    terms, sigmas, _ = _site_terms(
        present, stated_ns * factor, error_ns, delay, np.stack([constant[0], place]), reference
    )
    middle = (place @ present) / np.maximum(count, 1)
    moves = known & (((place[:, None] - middle) ** 2 * present).sum(0) > 1e-9)
    found = outliers * (count + _ARRIVALS) + gross.sum(0)
    arrivals = count + gross.sum(0) + _ARRIVALS
    outliers = found / arrivals
    return SiteClocks(
        toa_bias_ns=np.where(known, bias_ns, 0.0),
        toa_bias_sigma_ns=np.where(known, bias_sigma_ns, np.inf),
        toa_sigma_factor=np.where(known, factor, 1.0),
        toa_sigma_factor_sigma=np.where(known, factor_sigma, np.inf),
        drift_ns_per_s=np.where(moves, terms[1] / span_s, 0.0),
        drift_sigma_ns_per_s=np.where(moves, sigmas[1] / span_s, np.inf),
        outlier_share=np.where(known, outliers, 0.0),
        outlier_share_sigma=np.where(known, np.sqrt(outliers * (1 - outliers) / arrivals), np.inf),
        group=np.maximum(group, 0),
    )


def _site_terms(
    present: Bool, sigma_ns: Float, error_ns: Float, delay: ExcessDelay, design: Float, reference: Float
) -> tuple[Float, Float, Float]:
    """(k, r) terms of sites that go with the columns of a design (k, n), counted from means with the weights
    ``reference`` (r, r), their standard errors, and (n, r) the errors that are left, from the likeliest time of
    emission of each row."""
    used = present.any(0)
    curvature = np.where(present, sigma_ns**-2.0, 0.0)
    information = np.where(present, mixture_information(sigma_ns, delay), 0.0)
    k, r = len(design), present.shape[1]
    from_reference = np.eye(r) - reference
    covariance = _inverse_of_contrasts(information, design).reshape(k, r, k, r)
    variances = [np.diag(from_reference @ covariance[i, :, i] @ from_reference.T) for i in range(k)]
    sigma_of_term = np.sqrt(np.maximum(variances, 0.0))
    step_of_score = _inverse_of_contrasts(curvature, design)
    terms = np.zeros(sigma_of_term.shape)
    for _ in range(_MAX_ROUNDS):
        early = np.maximum(error_ns, -_EARLY_SIGMAS * sigma_ns)
        _, slope = mixture_log_density(early, sigma_ns, delay.probability, delay.mean_ns)
        score = np.where(present, -slope, 0.0)
        of_row = score.sum(1) / curvature.sum(1)
        step = (step_of_score @ (design @ (score - curvature * of_row[:, None])).ravel()).reshape(terms.shape)
        terms += step
        step_ns = design.T @ step
        off_row = of_row - (curvature * step_ns).sum(1) / curvature.sum(1)
        error_ns = np.where(present, error_ns - step_ns - off_row[:, None], 0.0)
        if (np.abs(step[:, used]).max(1) < 0.01 * sigma_of_term[:, used].min(1)).all():
            break
    return terms @ from_reference.T, sigma_of_term, error_ns


def _inverse_of_contrasts(weight: Float, design: Float) -> Float:
    """(k r, k r) covariance of site terms with the sum 0, by links of these weights (n, r), with a free term a row."""
    share = weight / weight.sum(1)[:, None]

    def block(both: Float) -> Float:
        weighted = weight * both[:, None]
        return np.asarray(np.diag(weighted.sum(0)) - weighted.T @ share)

    information = np.block([[block(one * other) for other in design] for one in design])
    return np.linalg.pinv(information, rcond=1e-10, hermitian=True)


def _noise(
    present: Bool, stated_ns: Float, factor: Float, error_ns: Float, delay: ExcessDelay, outliers: Float
) -> tuple[Float, Float, Float]:
    """(r,) factors of the standard deviations, their standard errors, and shares of outliers.

    Each error is counted from the time of emission without its own arrival, whose variance is added.
    """
    sigma_ns = stated_ns * factor
    early = np.maximum(error_ns, -_EARLY_SIGMAS * sigma_ns)
    log_density, slope = mixture_log_density(early, sigma_ns, delay.probability, delay.mean_ns)
    log_direct, _ = mixture_log_density(early, sigma_ns, 0.0, delay.mean_ns)
    # What a delayed arrival tells of the time of emission hardly counts.
    direct = np.exp(log_direct + np.log1p(-delay.probability) - log_density)
    weight = np.where(present, direct * sigma_ns**-2.0, 0.0)
    others = np.where(present, np.maximum(weight.sum(1, keepdims=True) - weight, _LEAST_WEIGHT * sigma_ns**-2.0), 1.0)
    apart_ns = np.where(present, error_ns - slope / others, 0.0)
    emission_ns2 = 1 / others
    log_outlier = np.log(outliers / (2 * _OUTLIER_RANGE_NS))

    def log_densities(factors: Float) -> Float:
        spread_ns = np.sqrt((stated_ns * factors) ** 2 + emission_ns2)
        log_density, _ = mixture_log_density(apart_ns, spread_ns, delay.probability, delay.mean_ns)
        return log_density + np.log1p(-outliers)

    log_factor = np.log(_FACTORS)
    log_posterior = np.array(
        [np.where(present, np.logaddexp(log_densities(one), log_outlier), 0.0).sum(0) for one in _FACTORS]
    )
    log_posterior -= 0.5 * (log_factor[:, None] / _FACTOR_SPREAD) ** 2
    # A parabola through the peak and its neighbours.
    peak = np.clip(log_posterior.argmax(0), 1, len(_FACTORS) - 2)
    low, middle, high = (log_posterior[peak + shift, np.arange(len(peak))] for shift in (-1, 0, 1))
    step = log_factor[1] - log_factor[0]
    bend = np.maximum(2 * middle - low - high, 1e-9)
    found = np.exp(log_factor[peak] + step * np.clip((high - low) / (2 * bend), -1, 1))
    is_outlier = np.where(present, np.exp(log_outlier - np.logaddexp(log_densities(found), log_outlier)), 0.0)
    share = (is_outlier.sum(0) + _OUTLIERS) / (present.sum(0) + _ARRIVALS)
    return found, found * step / np.sqrt(bend), share
