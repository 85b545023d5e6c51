"""What is known of the sites of a network, and is subtracted from measurements before anything else sees them."""

from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import log_ndtr

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import noise_floor_dbm, path_loss_function
from triangulation_pipeline.physics.scenario import ExcessDelay
from triangulation_pipeline.physics.solvers.mixture import mixture_information, mixture_log_density
from triangulation_pipeline.samples import Samples

Float = NDArray[np.float64]

_MEDIAN_ROUNDS, _MAX_ROUNDS = 4, 100
_EARLY_SIGMAS = 3.0
_LEAST_DELAYED_SHARE = 0.01
_STRONG_SIGMAS = 2.0

AnyMeasurements = TypeVar("AnyMeasurements", bound=Measurements)


@dataclass(frozen=True)
class SiteCalibration:
    """Clock bias and gain of r sites, with standard errors, and the measurements that they rest on.

    Only differences of clock biases are observable: the biases of the sites with arrival times have the sum 0.
    ``from_ns`` and ``to_ns`` are the times of the first and the last measurement, None if there are none.
    """

    toa_bias_ns: Float  # (r,)
    toa_bias_sigma_ns: Float  # (r,)
    gain_offset_db: Float  # (r,)
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
        return cls(zero, zero, gain_db, zero, np.zeros(len(network.sites), np.int64))

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

        Biases are taken off the arrival times, and the standard errors of the biases are added to ``toa_sigma_ns`` in
        quadrature; an arrival time of a site whose bias is unknown (an infinite standard error) is left out. Gains are
        taken off the levels, and off the noise floor that stands for the level of a receiver which detected nothing.

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
        sigma_ns = np.hypot(measurements.toa_sigma_ns, self.toa_bias_sigma_ns)
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


def estimate_calibration(layout: Layout, samples: Samples) -> SiteCalibration:
    """Clock biases and gains of the sites, from measurements of transmitters at known places.

    Biases are the maximum likelihood with delayed paths, of the biases and of the time of emission of each row; their
    standard errors follow from the Fisher information. Errors of more than three standard deviations on the early side
    have a bounded influence, and every hundredth path at least is taken as delayed, so that outliers move little.

    Gains are the generalised least squares of the levels, whose power is known but for common and link shadowing. Only
    links that are strong by place and power are used, in rows with ``min_detections`` of these: which links are seen
    then hardly depends on their noise. What that truncation leaves is counted in the standard errors.

    Parameters
    ----------
    layout : Layout
        The network, and the noise and propagation there.
    samples : Samples
        n rows of that network, with the truth; not calibrated.

    Returns
    -------
    SiteCalibration
        Biases have the sum 0 over the sites that they are known of. A bias or gain that no row tells of is 0, and its
        standard error infinite.

    Raises
    ------
    ValueError
        If there are no rows, or if they are of another number of sites.
    """
    _check_sites(len(layout.network.sites), samples)
    if not len(samples):
        raise ValueError("a calibration needs samples of known position, there are none")
    geometry = Geometry(layout.network, samples.tx_altitude_m)
    distance_m, _ = geometry.ranges_m(samples.tx_en_m(layout.network.frame))
    bias_ns, bias_sigma_ns = _clock_biases(samples, distance_m, layout.scenario.excess_delay)
    gain_db, gain_sigma_db = _gains(layout, samples, distance_m)
    return SiteCalibration(
        bias_ns,
        bias_sigma_ns,
        gain_db,
        gain_sigma_db,
        samples.signal_present.sum(0),
        int(samples.time_ns.min()),
        int(samples.time_ns.max()),
    )


def _clock_biases(samples: Samples, distance_m: Float, delay: ExcessDelay) -> tuple[Float, Float]:
    """(r,) biases with the sum 0, and their standard errors, ns."""
    present = samples.toa_present & (samples.toa_present.sum(1, keepdims=True) > 1)
    # Sites in no row with one of those cannot be compared with them.
    _, group = connected_components(present.T.astype(np.int64) @ present.astype(np.int64))
    known = (group == np.bincount(group, weights=present.sum(0)).argmax()) & present.any(0)
    present = present & known
    if known.sum() < 2:
        return np.zeros(len(known)), np.full(len(known), np.inf)
    sigma_ns = np.where(present, samples.toa_sigma_ns, 1.0).astype(np.float64)
    error_ns = np.where(present, samples.toa_ns - distance_m / SPEED_OF_LIGHT_M_PER_NS, np.nan)
    rows = present.any(1)
    present, sigma_ns, error_ns = present[rows], sigma_ns[rows], error_ns[rows]
    delay = ExcessDelay(max(delay.probability, _LEAST_DELAYED_SHARE), delay.mean_ns)
    bias_ns = np.zeros(len(known))
    for _ in range(_MEDIAN_ROUNDS):
        error_ns -= np.nanmedian(error_ns, axis=1, keepdims=True)
        step_ns = np.where(known, np.nanmedian(np.where(known, error_ns, 0.0), axis=0), 0.0)
        bias_ns += step_ns
        error_ns -= step_ns
    error_ns = np.where(present, error_ns, 0.0)

    curvature = np.where(present, sigma_ns**-2.0, 0.0)
    information = np.where(present, mixture_information(sigma_ns, delay), 0.0)
    sigma_of_bias_ns = np.sqrt(np.diag(_inverse_of_contrasts(information)))
    step_of_score = _inverse_of_contrasts(curvature)
    for _ in range(_MAX_ROUNDS):
        early = np.maximum(error_ns, -_EARLY_SIGMAS * sigma_ns)
        _, slope = mixture_log_density(early, sigma_ns, delay.probability, delay.mean_ns)
        score = np.where(present, -slope, 0.0)
        of_row = score.sum(1) / curvature.sum(1)
        step_ns = step_of_score @ (score - curvature * of_row[:, None]).sum(0)
        bias_ns += step_ns
        error_ns -= step_ns + (of_row - (curvature @ step_ns) / curvature.sum(1))[:, None]
        if np.abs(step_ns[known]).max() < 0.01 * sigma_of_bias_ns[known].min():
            break
    bias_ns -= bias_ns[known].mean()
    return np.where(known, bias_ns, 0.0), np.where(known, sigma_of_bias_ns, np.inf)


def _inverse_of_contrasts(weight: Float) -> Float:
    """(r, r) covariance of site terms with the sum 0, by links of these weights (n, r), with a free term a row."""
    information = np.diag(weight.sum(0)) - weight.T @ (weight / weight.sum(1)[:, None])
    return np.linalg.pinv(information, rcond=1e-10, hermitian=True)


def _gains(layout: Layout, samples: Samples, distance_m: Float) -> tuple[Float, Float]:
    """(r,) gains and their standard errors, dB."""
    scenario = layout.scenario
    antennas_db = scenario.tx_antenna_gain_dbi + scenario.rx_antenna_gain_dbi
    median_dbm = samples.tx_power_dbm[:, None] + antennas_db - path_loss_function(scenario)(distance_m / 1e3)
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in layout.network.sites])
    link_db, common_db = scenario.link_level_sigma_db, scenario.shadowing_common_db
    spread_db = float(np.sqrt(link_db**2 + common_db**2 + scenario.detection_width_db**2))
    threshold_dbm = floor_dbm + scenario.detection_threshold_db
    residual_db = samples.power_dbm - median_dbm
    gain_db, sigma_db = np.zeros(samples.num_sites), np.full(samples.num_sites, np.inf)
    # A gain moves the level at which a site hears: twice is enough to see which links are strong.
    for _ in range(2):
        margin = (median_dbm + gain_db - threshold_dbm) / spread_db
        strong = samples.signal_present & (margin > _STRONG_SIGMAS)
        used = (strong & (strong.sum(1, keepdims=True) >= scenario.min_detections)).astype(np.float64)
        shrink = common_db**2 / (link_db**2 + used.sum(1) * common_db**2)
        known = used.any(0)
        information = (np.diag(used.sum(0)) - used.T @ (used * shrink[:, None])) / link_db**2
        common = shrink * (used * residual_db).sum(1)
        pull = (used * (residual_db - common[:, None])).sum(0) / link_db**2
        covariance = np.linalg.inv(information[np.ix_(known, known)])
        gain_db[known] = covariance @ pull[known]
        gain_db[~known], sigma_db[~known] = 0.0, np.inf
        truncation_db = spread_db * (used * np.exp(-0.5 * margin**2 - log_ndtr(margin))).sum(0) / np.sqrt(2 * np.pi)
        sigma_db[known] = np.hypot(np.sqrt(np.diag(covariance)), truncation_db[known] / used.sum(0)[known])
    return gain_db, sigma_db


def _check_sites(sites: int, measurements: Measurements) -> None:
    if measurements.num_sites != sites:
        raise ValueError(f"the calibration is of {sites} sites, the measurements are of {measurements.num_sites}")
