"""Position by received levels alone: the Bayes posterior mean on a grid, with the least rms error that levels allow."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.propagation import distance_range_km, noise_floor_dbm, path_loss_function
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.positions import Positions

Float = NDArray[np.float64]

_MAX_BLOCK_VALUES = 2_000_000


def rss_posterior_mean(
    network: ReceiverNetwork, measurements: Measurements, scenario: Scenario, gain_offset_db: Float, cells: int = 32
) -> Positions:
    """Posterior mean position by received levels and non-detections: the least rms error that levels allow.

    The prior is uniform on ``cells`` x ``cells`` points of the service area. The level common to a transmission (power
    class and common shadowing) is summed over a fine grid, the shadowing of each link is Gaussian, and a non-detection
    counts with its probability. Knife edges are not modelled.

    Parameters
    ----------
    network : ReceiverNetwork
        The sites.
    measurements : Measurements
        n rows of that network.
    scenario : Scenario
        The noise and propagation that produced them.
    gain_offset_db : ndarray, shape (r,)
        Known gain offset of each site, dB.
    cells : int
        Points of the grid per side.

    Returns
    -------
    Positions
        n positions without covariances; NaN if the path-loss model covers no cell.
    """
    mean = np.full((len(measurements), 2), np.nan)
    for altitude_m in np.unique(measurements.tx_altitude_m):
        rows = np.flatnonzero(measurements.tx_altitude_m == altitude_m)
        geometry = Geometry(network, float(altitude_m))
        mean[rows] = _at_one_altitude(geometry, measurements.take(rows), scenario, gain_offset_db, cells)
    return Positions.of_points(mean)


def _at_one_altitude(
    geometry: Geometry, measurements: Measurements, scenario: Scenario, gain_offset_db: Float, cells: int
) -> Float:
    network = geometry.network
    cell_en_m = network.service_area(scenario.area_margin_m).cell_centres(cells)
    distance_km = geometry.ranges_m(cell_en_m)[0] / 1e3
    low_km, high_km = distance_range_km(scenario.path_loss)
    covered = ((distance_km >= low_km) & (distance_km <= high_km)).all(1)
    cell_en_m, distance_km = cell_en_m[covered], distance_km[covered]
    antenna_db = scenario.tx_antenna_gain_dbi + scenario.rx_antenna_gain_dbi
    # Level at each site of a transmitter of 0 dBm without shadowing, (r, cells).
    median_db = (antenna_db + gain_offset_db - path_loss_function(scenario)(distance_km)).T
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in network.sites])
    link_db = scenario.shadowing_link_db
    width_db = np.hypot(link_db, scenario.detection_width_db)

    nodes_dbm, log_prior = _common_level(scenario, link_db / np.sqrt(len(network.sites)))
    # log P(not detected) by node, site and cell; it matters only if a sample misses a site.
    margin_db = nodes_dbm[:, None, None] + median_db - (floor_dbm + scenario.detection_threshold_db)[:, None]
    log_missed = log_ndtr(-margin_db / width_db).astype(np.float32)

    mean = np.full((len(measurements), 2), np.nan)
    block = max(1, _MAX_BLOCK_VALUES // max(1, len(cell_en_m)))
    for start in range(0, len(measurements) if len(cell_en_m) else 0, block):
        rows = slice(start, start + block)
        present = measurements.signal_present[rows].astype(np.float32)
        missed = 1 - present
        level = (present * measurements.power_dbm[rows]).astype(np.float64)
        # Sum over the detecting sites of (level - median - node)^2, expanded so that the cells enter by products.
        squares = (level * level).sum(1, keepdims=True) - 2 * level @ median_db + present @ (median_db * median_db)
        linear = level.sum(1, keepdims=True) - present @ median_db
        fit = (-0.5 * squares / link_db**2).astype(np.float32)
        pull, count = (linear / link_db**2).astype(np.float32), present.sum(1, keepdims=True) / link_db**2
        best = np.full((len(level), 1), -np.inf, np.float32)
        posterior = np.zeros(fit.shape, np.float32)
        for node, log_weight, log_miss in zip(nodes_dbm, log_prior, log_missed, strict=True):
            log_posterior = fit + np.float32(node) * pull + (log_weight - 0.5 * node**2 * count) + missed @ log_miss
            peak = np.maximum(best, log_posterior.max(1, keepdims=True))
            posterior *= np.exp(best - peak)
            posterior += np.exp(log_posterior - peak)
            best = peak
        mean[rows] = (posterior @ cell_en_m) / posterior.sum(1, keepdims=True)
    return mean


def _common_level(scenario: Scenario, resolution_db: float) -> tuple[Float, Float]:
    """Nodes, dBm, no further apart than ``resolution_db``, and their log probability: power class plus shadowing."""
    classes_dbm = np.array(scenario.tx_power_dbm)
    spread_db = 4 * scenario.shadowing_common_db + resolution_db
    low, high = classes_dbm.min() - spread_db, classes_dbm.max() + spread_db
    edges = np.linspace(low, high, int(np.ceil((high - low) / resolution_db)) + 1)
    z = (edges[:, None] - classes_dbm) / max(scenario.shadowing_common_db, 1e-6)
    probability = np.diff(ndtr(z), axis=0) @ np.array(scenario.tx_power_share)
    used = probability > 1e-9
    return ((edges[1:] + edges[:-1]) / 2)[used], np.log(probability[used])
