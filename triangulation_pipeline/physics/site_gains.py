"""What levels of known transmissions tell of the gains of sites."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import noise_floor_dbm, path_loss_function
from triangulation_pipeline.physics.site_clocks import groups_of_sites

Float = NDArray[np.float64]

_STRONG_SIGMAS = 2.0
_LEVEL_ROUNDS = 4
# A level that is farther off the medians of its row and its site is an error of the file.
_GROSS_SIGMAS = 6.0


def estimate_gains(
    layout: Layout, measurements: Measurements, distance_m: Float, tx_power_dbm: NDArray[np.floating] | None
) -> tuple[Float, Float]:
    """What levels tell of the gains, see ``calibration.estimate_calibration``.

    Parameters
    ----------
    layout : Layout
        The network, and the propagation there.
    measurements : Measurements
        n rows of its r sites, not calibrated.
    distance_m : ndarray, shape (n, r)
        From the transmitters to the sites, metres.
    tx_power_dbm : ndarray, shape (n,), or None
        Power of the transmitters. Without it gains have the sum 0.

    Returns
    -------
    gain, sigma : ndarray, shape (r,)
        Gains and their standard errors, dB; 0 and infinite if no row tells of a site, or if it cannot be compared with
        most others.
    """
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
            known = groups_of_sites(picked) == 0
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
