"""What is known of the sites of a network, and is taken off measurements before anything else sees them."""

from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import log_ndtr

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import CLOCK_SIGMA_NS, ReceiverNetwork
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import noise_floor_dbm, path_loss_function
from triangulation_pipeline.physics.scenario import PRESETS, ExcessDelay, Preset, Scenario
from triangulation_pipeline.physics.solvers.mixture import mixture_information, mixture_log_density

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]

# Biases count from the mean of the sites that have so many rows, as a share of the most that a site has: what is hardly
# known of one must not blur the others.
_REFERENCE_SHARE = 0.1
_MEDIAN_ROUNDS, _MAX_ROUNDS = 4, 100
_EARLY_SIGMAS = 3.0
_LEAST_DELAYED_SHARE = 0.01
_STRONG_SIGMAS = 2.0
_LEVEL_ROUNDS = 4
# A level that is farther off the medians of its row and its site is an error of the file.
_GROSS_SIGMAS = 6.0
# Factors of standard deviations that are tried, and how far from 1 they are expected: half the people are right to 1.4.
_FACTORS, _FACTOR_SPREAD, _FACTOR_ROUNDS = np.geomspace(0.2, 20.0, 49), 0.5, 3
# A time of emission that nearly only delayed paths tell of is unknown.
_LEAST_WEIGHT = 1e-3
# An arrival that is farther off the median of its row, 300 km, is an outlier and nothing else. No clock is better than
# the least standard deviation.
_GROSS_NS, _LEAST_SIGMA_NS = 1e6, 0.1
# An outlier may be anywhere within so many nanoseconds; before any row is seen, one in a hundred arrivals is one.
_OUTLIER_RANGE_NS, _OUTLIERS, _ARRIVALS = 1e5, 0.1, 10.0

AnyMeasurements = TypeVar("AnyMeasurements", bound=Measurements)


@dataclass(frozen=True)
class SiteCalibration:
    """What is known of r sites, each number with its standard error, and the measurements that it rests on.

    Only differences of clock biases are observable: the biases of the sites with arrival times have the sum 0, and so
    have the drifts, but for sites that have few rows. A number that nothing is known of has an infinite standard error.
    ``from_ns`` and ``to_ns`` are the times of the first and the last measurement, None if there are none.

    Drift and outliers tell how a receiver is, and are not taken off: a clock that GPS disciplines does not drift for
    long, and any other one cannot be foretold.
    """

    toa_bias_ns: Float  # (r,) how late the arrival times are
    toa_bias_sigma_ns: Float  # (r,)
    toa_sigma_factor: Float  # (r,) the standard deviation of arrival times, in units of what the receiver says of it
    toa_sigma_factor_sigma: Float  # (r,)
    drift_ns_per_s: Float  # (r,) how the bias grows
    drift_sigma_ns_per_s: Float  # (r,)
    outlier_share: Float  # (r,) of arrival times, 0 to 1, that neither noise nor a delayed path explains
    outlier_share_sigma: Float  # (r,)
    gain_offset_db: Float  # (r,) how much too high the levels are
    gain_offset_sigma_db: Float  # (r,)
    rows: NDArray[np.int64]  # (r,) measurements of each site
    from_ns: int | None = None
    to_ns: int | None = None

    @classmethod
    def of_network(cls, network: ReceiverNetwork) -> Self:
        """What the network file says: the measured gains, and no clock bias.

        Parameters
        ----------
        network : ReceiverNetwork
            The sites.

        Returns
        -------
        SiteCalibration
            Taken as exact.
        """
        zero = np.zeros(len(network.sites))
        gain_db = np.array([site.gain_offset_db or 0.0 for site in network.sites])
        none = np.zeros(len(network.sites), np.int64)
        return cls(zero, zero, zero + 1, zero, zero, zero, zero, zero, gain_db, zero, none)

    @classmethod
    def prior(cls, network: ReceiverNetwork) -> Self:
        """What is expected of sites that nobody has calibrated.

        A clock bias is 0 with a standard error by the clock: that of the preset ``uncalibrated``, and in quadrature
        that of a time stamp (``CLOCK_SIGMA_NS``), because a counter that is bound to UTC from outside is bound no
        better. A gain that the network file does not tell is 0 with the standard error of that preset.

        Parameters
        ----------
        network : ReceiverNetwork
            The sites.

        Returns
        -------
        SiteCalibration
        """
        wide = PRESETS[Preset.uncalibrated]
        stamp_ns = np.array([CLOCK_SIGMA_NS.get(site.timing, 0.0) for site in network.sites])
        told = np.array([site.gain_offset_db is not None for site in network.sites])
        unknown = np.full(len(network.sites), np.inf)
        return replace(
            cls.of_network(network),
            toa_bias_sigma_ns=np.hypot(wide.site_bias_sigma_ns, stamp_ns),
            toa_sigma_factor_sigma=unknown,
            drift_sigma_ns_per_s=unknown,
            outlier_share_sigma=unknown,
            gain_offset_sigma_db=np.where(told, 0.0, wide.gain_offset_sigma_db),
        )

    def conditions(self, scenario: Scenario) -> Scenario:
        """The scenario with gains as uncertain as they are here. A level of a single link then counts for less.

        Parameters
        ----------
        scenario : Scenario
            The conditions, of calibrated sites.

        Returns
        -------
        Scenario
            Its ``gain_offset_sigma_db`` is the rms of the standard errors, if that is more. A gain that nothing is
            known of counts as in the preset ``uncalibrated``.
        """
        unknown_db = PRESETS[Preset.uncalibrated].gain_offset_sigma_db
        sigma_db = np.minimum(self.gain_offset_sigma_db, unknown_db)
        rms_db = float(np.sqrt(np.mean(sigma_db**2)))
        return scenario.model_copy(update={"gain_offset_sigma_db": max(scenario.gain_offset_sigma_db, rms_db)})

    def age_s(self, time_ns: int) -> float | None:
        """How old the calibration is.

        Parameters
        ----------
        time_ns : int
            A time, nanoseconds of UTC since 1970.

        Returns
        -------
        float or None
            Seconds from its last measurement to that time; None if it rests on none.
        """
        return None if self.to_ns is None else (time_ns - self.to_ns) / 1e9

    def apply(self, measurements: AnyMeasurements) -> AnyMeasurements:
        """Measurements less what is known of the sites.

        Biases are taken off the arrival times. ``toa_sigma_ns`` is multiplied by the factor of its site, and the
        standard error of the bias is added in quadrature; an arrival time of a site whose bias is unknown (an infinite
        standard error) is left out. Gains are taken off the levels, and off the noise floor that stands for the level
        of a receiver which detected nothing.

        Parameters
        ----------
        measurements : Measurements
            n rows of the same sites.

        Returns
        -------
        Measurements
            Of the same type.

        Raises
        ------
        ValueError
            If the measurements are of another number of sites.
        """
        _check_sites(len(self.rows), measurements)
        timed = measurements.toa_present & np.isfinite(self.toa_bias_sigma_ns)
        sigma_ns = np.hypot(measurements.toa_sigma_ns * self.toa_sigma_factor, self.toa_bias_sigma_ns)
        return replace(
            measurements,
            toa_present=timed,
            toa_ns=np.where(timed, measurements.toa_ns - self.toa_bias_ns, 0.0),
            toa_sigma_ns=np.where(timed, sigma_ns, 0.0).astype(np.float32),
            power_dbm=(measurements.power_dbm - self.gain_offset_db).astype(np.float32),
        )


def calibrated(layout: Layout, measurements: AnyMeasurements) -> AnyMeasurements:
    """Rows of a layout as every estimator gets them: of its own sites, less what its network file says of them.

    Parameters
    ----------
    layout : Layout
        The network that measured them.
    measurements : Measurements
        n rows, perhaps with further columns that stand for no site of the layout.

    Returns
    -------
    Measurements
        Of the same type.
    """
    network = layout.network
    return SiteCalibration.of_network(network).apply(measurements.of_sites(len(network.sites)))


def estimate_calibration(
    layout: Layout,
    measurements: Measurements,
    latitude: Float,
    longitude: Float,
    tx_power_dbm: NDArray[np.floating] | None = None,
) -> SiteCalibration:
    """What is known of the sites, from measurements of transmitters at known places.

    Biases are the maximum likelihood with delayed paths, of the biases and of the time of emission of each row; their
    standard errors follow from the Fisher information. Errors of more than three standard deviations on the early side
    have a bounded influence, and every hundredth path at least is taken as delayed, so that outliers move little.

    The factor of a site's standard deviations is the maximum of its posterior, by the errors of its arrival times from
    the time of emission that the other receivers tell; before any row is seen, its logarithm is normal around 0. The
    outlier share counts those errors that a uniform density explains better. Drifts are estimated like biases, together
    with them.

    Gains are the generalised least squares of the levels, by the noise of common and link shadowing. Without the power
    of the transmitters they are relative to a level of each row that is unknown, and have the sum 0. Only links that
    are strong by place and power are used, in rows with ``min_detections`` of these: which links are seen then hardly
    depends on their noise. What that truncation leaves is counted in the standard errors.

    Parameters
    ----------
    layout : Layout
        The network, and the noise and propagation there.
    measurements : Measurements
        n rows of that network, not calibrated.
    latitude, longitude : ndarray, shape (n,)
        True places of the transmitters, WGS-84 degrees.
    tx_power_dbm : ndarray, shape (n,), optional
        Power of the transmitters, if it is known.

    Returns
    -------
    SiteCalibration
        Biases have the sum 0 over the sites that have a tenth of the most rows or more. A number that no row tells of
        is 0 (a factor 1), and its standard error infinite.

    Raises
    ------
    ValueError
        If there are no rows, or if they are of another number of sites.
    """
    _check_sites(len(layout.network.sites), measurements)
    if not len(measurements):
        raise ValueError("a calibration needs transmissions of known position, there are none")
    frame, altitude_m = layout.network.frame, measurements.tx_altitude_m
    distance_m, _ = Geometry(layout.network, altitude_m).ranges_m(frame.en_m(latitude, longitude, altitude_m))
    gain_db, gain_sigma_db = _gains(layout, measurements, distance_m, tx_power_dbm)
    return replace(
        _clocks(measurements, distance_m, layout.scenario.excess_delay),
        gain_offset_db=gain_db,
        gain_offset_sigma_db=gain_sigma_db,
        rows=measurements.signal_present.sum(0),
        from_ns=int(measurements.time_ns.min()),
        to_ns=int(measurements.time_ns.max()),
    )


def _largest_group(present: Bool) -> Bool:
    """(r,) the sites that can be compared with each other, by the rows (n, r) that they have together: most of them."""
    together = present & (present.sum(1, keepdims=True) > 1)
    _, group = connected_components(together.T.astype(np.int64) @ together.astype(np.int64))
    return np.asarray((group == np.bincount(group, weights=together.sum(0)).argmax()) & together.any(0))


def _clocks(measurements: Measurements, distance_m: Float, delay: ExcessDelay) -> SiteCalibration:
    """What arrival times tell; nothing is known of gains."""
    zero, unknown = np.zeros(measurements.num_sites), np.full(measurements.num_sites, np.inf)
    nothing = SiteCalibration(
        *(zero, unknown, zero + 1, unknown, zero, unknown, zero, unknown, zero, unknown),
        rows=np.zeros(measurements.num_sites, np.int64),
    )
    known = _largest_group(measurements.toa_present)
    if known.sum() < 2:
        return nothing
    present = measurements.toa_present & known
    rows = present.sum(1) > 1
    present = present[rows]
    stated_ns = np.where(present, np.maximum(measurements.toa_sigma_ns[rows], _LEAST_SIGMA_NS), 1.0).astype(np.float64)
    time_ns = measurements.time_ns[rows]
    error_ns = np.where(present, (measurements.toa_ns - distance_m / SPEED_OF_LIGHT_M_PER_NS)[rows], np.nan)
    delay = ExcessDelay(max(delay.probability, _LEAST_DELAYED_SHARE), delay.mean_ns)
    bias_ns = np.zeros(len(known))
    for _ in range(_MEDIAN_ROUNDS):
        error_ns -= np.nanmedian(error_ns, axis=1, keepdims=True)
        step_ns = np.where(known, np.nanmedian(np.where(known, error_ns, 0.0), axis=0), 0.0)
        bias_ns += step_ns
        error_ns -= step_ns
    error_ns = np.where(present, error_ns, 0.0)
    gross = present & (np.abs(error_ns) > _GROSS_NS)
    known = _largest_group(present & ~gross)
    if known.sum() < 2:
        return nothing
    present = present & ~gross & known
    rows = present.sum(1) > 1
    present, stated_ns, error_ns, time_ns = present[rows], stated_ns[rows], error_ns[rows], time_ns[rows]
    error_ns = np.where(present, error_ns, 0.0)
    stated_ns = np.where(present, stated_ns, 1.0)

    count = present.sum(0)
    counts = known & (count >= _REFERENCE_SHARE * count.max())
    reference = counts / counts.sum()
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
    return replace(
        nothing,
        toa_bias_ns=np.where(known, bias_ns, 0.0),
        toa_bias_sigma_ns=np.where(known, bias_sigma_ns, np.inf),
        toa_sigma_factor=np.where(known, factor, 1.0),
        toa_sigma_factor_sigma=np.where(known, factor_sigma, np.inf),
        drift_ns_per_s=np.where(moves, terms[1] / span_s, 0.0),
        drift_sigma_ns_per_s=np.where(moves, sigmas[1] / span_s, np.inf),
        outlier_share=np.where(known, outliers, 0.0),
        outlier_share_sigma=np.where(known, np.sqrt(outliers * (1 - outliers) / arrivals), np.inf),
    )


def _site_terms(
    present: Bool, sigma_ns: Float, error_ns: Float, delay: ExcessDelay, design: Float, reference: Float
) -> tuple[Float, Float, Float]:
    """(k, r) terms of sites that go with the columns of a design (k, n), counted from their mean with the weights
    ``reference``, their standard errors, and (n, r) the errors that are left, from the likeliest time of emission of
    each row."""
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


def _gains(
    layout: Layout, measurements: Measurements, distance_m: Float, tx_power_dbm: NDArray[np.floating] | None
) -> tuple[Float, Float]:
    """(r,) gains and their standard errors, dB."""
    scenario = layout.scenario
    antennas_db = scenario.tx_antenna_gain_dbi + scenario.rx_antenna_gain_dbi
    link_db, common_db = scenario.link_level_sigma_db, scenario.shadowing_common_db
    power_dbm = np.zeros(len(measurements)) if tx_power_dbm is None else np.asarray(tx_power_dbm, np.float64)
    median_dbm = power_dbm[:, None] + antennas_db - path_loss_function(scenario)(distance_m / 1e3)
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in layout.network.sites])
    width_db = scenario.detection_width_db
    spread_db = float(np.sqrt(link_db**2 + width_db**2 + (0.0 if tx_power_dbm is None else common_db**2)))
    threshold_dbm = floor_dbm + scenario.detection_threshold_db
    heard = measurements.signal_present & np.isfinite(measurements.power_dbm)
    residual_db = np.where(heard, measurements.power_dbm - median_dbm, 0.0)
    off_db = np.ma.masked_array(residual_db, ~heard)
    for axis in (1, 0):
        off_db = off_db - np.ma.median(off_db, axis=axis, keepdims=True)
    heard = heard & (np.abs(off_db.filled(np.inf)) < _GROSS_SIGMAS * np.hypot(link_db, width_db))
    gain_db, sigma_db = np.zeros(measurements.num_sites), np.full(measurements.num_sites, np.inf)
    level_db, used = np.zeros(len(measurements)), heard.astype(np.float64)
    # A gain moves the level at which a site hears: a few rounds show which links are strong.
    for _ in range(_LEVEL_ROUNDS):
        if tx_power_dbm is None:
            level_db = (used * (residual_db - gain_db)).sum(1) / np.maximum(used.sum(1), 1)
        margin = (median_dbm + level_db[:, None] + gain_db - threshold_dbm) / spread_db
        strong = heard & (margin > _STRONG_SIGMAS)
        picked = strong & (strong.sum(1, keepdims=True) >= scenario.min_detections)
        known = picked.any(0)
        if tx_power_dbm is None:
            known = _largest_group(picked)
            picked = picked & known
        used = picked.astype(np.float64)
        count = used.sum(1)
        shrink = (
            1 / np.maximum(count, 1) if tx_power_dbm is None else common_db**2 / (link_db**2 + count * common_db**2)
        )
        information = (np.diag(used.sum(0)) - used.T @ (used * shrink[:, None])) / link_db**2
        common = shrink * (used * residual_db).sum(1)
        pull = (used * (residual_db - common[:, None])).sum(0) / link_db**2
        covariance = np.linalg.pinv(information[np.ix_(known, known)], rcond=1e-10, hermitian=True)
        gain_db[known] = covariance @ pull[known]
        gain_db[~known], sigma_db[~known] = 0.0, np.inf
        truncation_db = spread_db * (used * np.exp(-0.5 * margin**2 - log_ndtr(margin))).sum(0) / np.sqrt(2 * np.pi)
        sigma_db[known] = np.hypot(np.sqrt(np.diag(covariance)), truncation_db[known] / used.sum(0)[known])
    return gain_db, sigma_db


def _check_sites(sites: int, measurements: Measurements) -> None:
    if measurements.num_sites != sites:
        raise ValueError(f"the calibration is of {sites} sites, the measurements are of {measurements.num_sites}")
