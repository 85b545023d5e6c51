"""What a plan draws and adds up: the links from places to sites, and the bounds of the transmissions there.

The Fisher information of a transmission is a sum over the receivers that hear it, and so is what one site adds to it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES, Site, Timing
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import crlb_of_elements_m, ranges_m
from triangulation_pipeline.physics.plan_cells import Cells, site_enu_m
from triangulation_pipeline.physics.propagation import (
    distance_range_km,
    knife_edge_loss_db,
    knife_edge_parameter,
    noise_floor_dbm,
    path_loss_function,
    path_loss_slope_db,
)
from triangulation_pipeline.physics.scenario import Features, Scenario
from triangulation_pipeline.physics.solvers.mixture import mixture_information
from triangulation_pipeline.physics.timing import toa_sigma_ns

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

NEW_SITE = "one more site"
_BATCH_LINKS = 1_000_000
_WEIGHT_STEP_DB = 0.05
_EDGE_NODES = 32
# Where the sums over sites have the number of arrival times and of detections.
_TIMED, _HEARD = 6, 12


@dataclass(frozen=True, eq=False)
class Terms:
    """What each link adds to the sums of b cells, if its receiver hears."""

    by_time: Float  # (b, r, 6)
    by_level: Float  # (b, r, 6)
    timed: Bool  # (r,)

    def sums(self, hears: Float, weight: Float) -> Float:
        """(b, 18, d): over all sites, of the weights of arrival times, of their number, and of levels; d draws."""
        by_time, by_level = np.swapaxes(self.by_time, 1, 2), np.swapaxes(self.by_level, 1, 2)
        return np.concatenate([by_time @ weight, by_time @ (hears * self.timed[:, None]), by_level @ hears], axis=1)

    def sums_of(self, site: int, hears: Float, weight: Float) -> Float:
        """(b, 18, d): those of one site, by whether it hears and its weight, (b, d)."""
        by_time, by_level = self.by_time[:, site, :, None], self.by_level[:, site, :, None]
        heard = hears[:, None]
        return np.concatenate(
            [by_time * weight[:, None], by_time * (heard * self.timed[site]), by_level * heard], axis=1
        )


@dataclass(frozen=True, eq=False)
class Links:
    """The links from c cells to r sites, and the draws of d transmissions that all cells share."""

    scenario: Scenario
    distance_km: Float  # (c, r)
    gradient: Float  # (c, r, 2)
    snr_db: Float  # (c, r) for a transmitter of 0 dBm, without shadowing
    timed: Bool  # (r,)
    common_dbm: Float  # (d,) transmit power and common shadowing
    link_db: Float  # (r, d) shadowing of the link and residual gain
    threshold_db: Float  # (r, d) the SNR from which the receiver hears the transmission
    edge_m: Float | None  # (r, d) height of the obstacle, minus infinity if there is none; None if there never is one

    @classmethod
    def of(cls, cells: Cells, sites: tuple[Site, ...], scenario: Scenario, draws: int) -> "Links":
        distance_m, gradient = ranges_m(cells.frame, site_enu_m(cells.frame, sites), cells.en_m, cells.altitude_m)
        gain_db = np.array([site.gain_offset_db or 0.0 for site in sites])
        floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in sites])
        antennas_db = scenario.tx_antenna_gain_dbi + scenario.rx_antenna_gain_dbi
        uniform = np.stack([_uniform(site, draws) for site in sites], axis=1)
        edge_m = None
        if scenario.knife_edge_probability > 0:
            with np.errstate(divide="ignore"):
                height_m = -scenario.knife_edge_height_m * np.log(uniform[2] / scenario.knife_edge_probability)
            edge_m = np.where(uniform[2] < scenario.knife_edge_probability, height_m, -np.inf)
        return cls(
            scenario=scenario,
            distance_km=distance_m / 1e3,
            gradient=gradient,
            snr_db=antennas_db - path_loss_function(scenario)(distance_m / 1e3) + gain_db - floor_dbm,
            timed=np.array([site.timing is not Timing.none for site in sites])
            & (scenario.features is Features.rss_tdoa),
            common_dbm=_common_level_dbm(scenario, draws),
            link_db=scenario.link_level_sigma_db * ndtri(uniform[0]),
            threshold_db=scenario.detection_threshold_db + scenario.detection_width_db * ndtri(uniform[1]),
            edge_m=edge_m,
        )

    @property
    def covered(self) -> Bool:
        """(c,) whether the path-loss model holds for the distances to all sites."""
        low_km, high_km = distance_range_km(self.scenario.path_loss)
        return np.all((self.distance_km >= low_km) & (self.distance_km <= high_km), axis=1)

    def terms(self, rows: NDArray[np.int64]) -> Terms:
        """Those of some cells."""
        level = path_loss_slope_db(self.scenario, self.distance_km[rows]) / (1e3 * self.distance_km[rows])
        gradient = self.gradient[rows]
        return Terms(_products(gradient), _products(level[..., None] * gradient), self.timed)

    def drawn(self, rows: NDArray[np.int64], site: int | slice = slice(None)) -> tuple[Float, Float]:
        """Who hears (0 or 1), and the Fisher information of the arrival as a range, 1 / m^2 (0 without an arrival
        time): (b, r, d) for b cells and all sites, (b, d) for one site."""
        snr_db = self.snr_db[rows, site, None] + (self.common_dbm + self.link_db[site])
        if self.edge_m is not None:
            distance_km = self.distance_km[rows, site, None]
            parameter = knife_edge_parameter(self.edge_m[site], distance_km, self.scenario.frequency_mhz)
            snr_db -= knife_edge_loss_db(parameter)
        hears = snr_db > self.threshold_db[site]
        weight = np.where(hears & self.timed[site, None], self._weight(snr_db), 0.0)
        return hears.astype(np.float64), weight

    def batches(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Float, Float]]:
        """``drawn`` of cells, a few at a time, with their indices."""
        size = max(1, _BATCH_LINKS // self.link_db.size)
        for begin in range(0, len(rows), size):
            batch = rows[begin : begin + size]
            yield batch, *self.drawn(batch)

    def hearing_probability(self) -> Float:
        """(c, r) probability that a site hears a transmission: a Gaussian distribution function for each power class,
        and for each height of an obstacle."""
        scenario = self.scenario
        width_db = np.hypot(scenario.link_level_sigma_db, scenario.detection_width_db)
        width_db = np.hypot(width_db, scenario.shadowing_common_db)
        heard = np.zeros_like(self.snr_db)
        for power_dbm, share in zip(scenario.tx_power_dbm, scenario.tx_power_share, strict=True):
            margin_db = self.snr_db + power_dbm - scenario.detection_threshold_db
            heard += share * (1 - scenario.knife_edge_probability) * ndtr(margin_db / width_db)
            if scenario.knife_edge_probability > 0:
                height_m = -scenario.knife_edge_height_m * np.log((np.arange(_EDGE_NODES) + 0.5) / _EDGE_NODES)
                parameter = knife_edge_parameter(height_m, self.distance_km[..., None], scenario.frequency_mhz)
                behind = ndtr((margin_db[..., None] - knife_edge_loss_db(parameter)) / width_db).mean(-1)
                heard += share * scenario.knife_edge_probability * behind
        return heard

    def _weight(self, snr_db: Float) -> Float:
        """Fisher information of an arrival as a range, 1 / m^2, of those whose SNR lies in the table."""
        low_db, table = self._weight_table
        step = ((snr_db - low_db) / _WEIGHT_STEP_DB + 0.5).astype(np.int64)
        return table[np.clip(step, 0, len(table) - 1)]

    @cached_property
    def _weight_table(self) -> tuple[float, Float]:
        """The first SNR, and the information by SNR from there in steps of 0.05 dB, which are a thousandth of it; as
        far as receivers hear."""
        low_db = float(self.threshold_db.min())
        high_db = max(low_db, float(self.snr_db.max() + self.common_dbm.max() + self.link_db.max()))
        sigma_ns = toa_sigma_ns(self.scenario, np.arange(low_db, high_db + _WEIGHT_STEP_DB, _WEIGHT_STEP_DB))
        return low_db, mixture_information(sigma_ns, self.scenario.excess_delay) / SPEED_OF_LIGHT_M_PER_NS**2


@dataclass(frozen=True, eq=False)
class Values:
    """What a set of sites reaches in c cells; NaN where the path-loss model does not hold."""

    bound_m: Float  # (c,)
    hdop: Float  # (c,)
    heard_by_3: Float  # (c,) share of the transmissions
    heard_by_4: Float  # (c,)


def values_of(links: Links, covered: Bool, left_out: Sequence[int | None]) -> list[Values]:
    """The values with each of these sites left out (None: with all)."""
    values = [Values(*np.full((4, len(covered)), np.nan)) for _ in left_out]
    for rows, hears, weight in links.batches(np.flatnonzero(covered)):
        terms = links.terms(rows)
        whole = terms.sums(hears, weight)
        for site, found in zip(left_out, values, strict=True):
            sums = whole if site is None else whole - terms.sums_of(site, hears[:, site], weight[:, site])
            found.bound_m[rows] = median(bounds_m(sums, links.scenario))
            found.hdop[rows] = median(_hdop(sums))
            found.heard_by_3[rows] = (sums[:, _HEARD] >= 3).mean(1)
            found.heard_by_4[rows] = (sums[:, _HEARD] >= 4).mean(1)
    return values


def _products(gradient: Float) -> Float:
    """(..., 6): 1, e, n, e^2, n^2 and e n of gradients (..., 2)."""
    east, north = gradient[..., 0], gradient[..., 1]
    return np.stack([np.ones_like(east), east, north, east * east, north * north, east * north], axis=-1)


def bounds_m(sums: Float, scenario: Scenario) -> Float:
    """(b, d) bounds by the sums (b, 18, d); infinite with fewer than ``min_detections`` receivers and in a degenerate
    geometry."""
    by_time = _centred(sums[:, :_TIMED])
    heard, east, north, ee, nn, en = np.moveaxis(sums[:, _HEARD:], 1, 0)
    # As in geometry.signal_strength_information.
    variance, common = scenario.link_level_sigma_db**2, scenario.common_level_variance_db2
    shrink = common / (variance + heard * common)
    by_level = np.stack([ee - shrink * east * east, nn - shrink * north * north, en - shrink * east * north])
    return np.where(heard >= scenario.min_detections, _finite_or_inf(by_time + by_level / variance), np.inf)


def _hdop(sums: Float) -> Float:
    """(b, d) dilutions of precision by the sums (b, 18, d); infinite with fewer than three arrival times."""
    usable = sums[:, _TIMED] >= LEAST_ARRIVAL_TIMES
    return np.where(usable, _finite_or_inf(_centred(sums[:, _TIMED:_HEARD])), np.inf)


def _centred(sums: Float) -> Float:
    """(3, b, d): information ee, nn, en of time differences by the sums (b, 6, d) of weighted products."""
    weight, east, north, ee, nn, en = np.moveaxis(sums, 1, 0)
    inverse = 1 / np.where(weight > 0, weight, 1.0)
    return np.stack([ee - east * east * inverse, nn - north * north * inverse, en - east * north * inverse])


def _finite_or_inf(information: Float) -> Float:
    """The bounds of information (3, b, d); infinite if it is singular."""
    return np.nan_to_num(crlb_of_elements_m(*information), nan=np.inf, posinf=np.inf)


def median(values: Float) -> Float:
    """(b,) upper medians of (b, d), by which infinity is as good as a number."""
    middle = values.shape[1] // 2
    return np.partition(values, middle, axis=1)[:, middle]


def _common_level_dbm(scenario: Scenario, draws: int) -> Float:
    """(d,) transmit power with the common shadowing, equally probable. Each power class has one stretch of them."""
    uniform = (np.arange(draws) + 0.5) / draws
    ends = np.cumsum(scenario.tx_power_share)
    power_class = np.minimum(np.searchsorted(ends, uniform), len(ends) - 1)
    share = np.array(scenario.tx_power_share)[power_class]
    within = np.clip((uniform - (ends[power_class] - share)) / share, 0.5 / draws, 1 - 0.5 / draws)
    return np.array(scenario.tx_power_dbm)[power_class] + scenario.shadowing_common_db * ndtri(within)


def _uniform(site: Site, draws: int) -> Float:
    """(3, d) numbers between 0 and 1, in an order of the site's own: a Latin hypercube (McKay et al. 1979)."""
    name = site.name if site.name == NEW_SITE else f"{site.lat:.6f} {site.lon:.6f}"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    rng = np.random.Generator(np.random.Philox(key=key))
    return (rng.permuted(np.tile(np.arange(draws), (3, 1)), axis=1) + 0.5) / draws
