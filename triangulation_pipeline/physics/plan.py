"""How well a network could locate transmitters, place by place, before anything is measured or trained.

At each place a few hundred transmissions are drawn by the rules of the simulator: who hears them, and how accurately
each receiver times them. All places share these draws, and each site keeps its own, in whatever network it stands. So
two plans over the same places differ by their sites alone, and a further site never makes a place worse.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from triangulation_pipeline.frame import LocalFrame, ServiceArea, surface_up_m
from triangulation_pipeline.network import FARTHEST_M, LEAST_ARRIVAL_TIMES, MOST_SITES, ReceiverNetwork, Site, Timing
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import crlb_of_elements_m, ranges_m
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

# Raised with every change of the numbers of equal plans. It is part of assets' code versions.
PLAN_VERSION = 1
GOOD_HDOP = 2.0
"""A place where half of the transmissions have a lower HDOP has a good geometry."""

_CELLS = 48
DRAWS = 256
"""Transmissions from each cell."""
SEARCHED_PLACES = 14
"""Places per side of the area that are tried for one more site."""

# They are compared over fewer cells, with fewer draws.
_SEARCH_STRIDE, _SEARCH_DRAWS = 5, 64
_NEW_SITE = "one more site"
_BATCH_LINKS = 1_000_000
_WEIGHT_STEP_DB = 0.05
_EDGE_NODES = 32
# Where the sums over sites have the number of arrival times and of detections.
_TIMED, _HEARD = 6, 12


@dataclass(frozen=True, eq=False)
class Cells:
    """A regular division of an area, in the frame of a network."""

    frame: LocalFrame
    area: ServiceArea
    per_side: int
    altitude_m: float  # of the transmitters

    @cached_property
    def en_m(self) -> Float:
        """(c, 2) middles of the cells, east and north, metres; east varies fastest."""
        return self.area.cell_centres(self.per_side)

    @cached_property
    def share(self) -> Float:
        """(c,) share of each cell in the area on the curved surface; their sum is 1."""
        _, (slope_e, slope_n) = surface_up_m(self.en_m, self.frame.surface_coefficients, self.altitude_m)
        size = np.sqrt(1 + slope_e**2 + slope_n**2)
        return size / size.sum()

    def place(self, cell: int) -> tuple[float, float]:
        """Latitude and longitude of the middle of a cell, degrees."""
        lat, lon = self.frame.geodetic(self.en_m[cell], self.altitude_m)
        return float(lat), float(lon)


@dataclass(frozen=True)
class PlanNumbers:
    """How well a set of sites covers an area. A bound is infinite where most transmissions cannot be located."""

    p50_m: float  # the bound that half of the area stays below
    p95_m: float  # 95 % of the area
    hull_p50_m: float  # half of the area inside the convex hull of the sites; NaN if they stand in one line
    located_share: float  # of the area that has a bound
    good_hdop_share: float  # of the area where the HDOP is below GOOD_HDOP
    receivers: float  # that hear a transmission, on average over the area
    heard_by_3: float  # share of the transmissions that 3 receivers or more hear
    heard_by_4: float


@dataclass(frozen=True, eq=False)
class NetworkPlan:
    """A network over the cells of an area: c cells, r sites."""

    network: ReceiverNetwork
    scenario: Scenario
    cells: Cells
    covered: Bool  # (c,) the path-loss model holds for the distances to all sites; elsewhere the values are NaN
    hears: Float  # (c, r) probability that each site hears a transmission
    bound_m: Float  # (c,) infinite where half of the transmissions cannot be located
    hdop: Float  # (c,) infinite where half of the transmissions have fewer than three arrival times
    numbers: PlanNumbers
    without: tuple[PlanNumbers, ...]  # by the site that is left out

    @cached_property
    def receivers(self) -> Float:
        """(c,) expected number of receivers that hear a transmission."""
        return self.hears.sum(1)

    @cached_property
    def heard_share(self) -> Float:
        """(r,) share of all transmissions of the area that each site hears."""
        return np.average(self.hears[self.covered], axis=0, weights=self.cells.share[self.covered])

    @cached_property
    def losses(self) -> list[int]:
        """The sites, that first without which the network loses most: the highest bound of 95 % of the area, then the
        least area with a bound, then the highest bound of half of the area."""
        bad = [_badness(rest.p50_m, rest.p95_m, rest.located_share) for rest in self.without]
        return sorted(range(len(bad)), key=bad.__getitem__, reverse=True)


@dataclass(frozen=True)
class FurtherSite:
    """A place for one more site, and what the network would be with it."""

    site: Site
    numbers: PlanNumbers


def service_cells(networks: Sequence[ReceiverNetwork], scenario: Scenario, per_side: int = _CELLS) -> Cells:
    """The service area of some networks together, divided into cells.

    Parameters
    ----------
    networks : sequence of ReceiverNetwork
        The frame is that of the first.
    scenario : Scenario
        Has the margin around the sites, and the altitude of the transmitters.
    per_side : int
        Cells per side.

    Returns
    -------
    Cells

    Raises
    ------
    ValueError
        If a site is too far away for one frame.
    """
    frame = networks[0].frame
    for network in networks[1:]:
        away_m = float(np.linalg.norm(_site_enu_m(frame, network.sites), axis=1).max())
        if away_m > FARTHEST_M:
            raise ValueError(
                f"networks {networks[0].name!r} and {network.name!r} are {away_m / 1e3:,.0f} km apart; to be compared, "
                f"they must lie within {FARTHEST_M / 1e3:,.0f} km"
            )
    place_m = np.concatenate([_site_enu_m(frame, network.sites)[:, :2] for network in networks])
    low, high = place_m.min(0) - scenario.area_margin_m, place_m.max(0) + scenario.area_margin_m
    area = ServiceArea(float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    return Cells(frame, area, per_side, scenario.transmitter_altitude_m)


def check_plan(network: ReceiverNetwork, scenario: Scenario) -> None:
    """Refuses what no plan can be made for, before any work.

    Parameters
    ----------
    network : ReceiverNetwork
        The sites.
    scenario : Scenario
        The conditions.

    Raises
    ------
    ValueError
        If the network has fewer than ``min_detections`` sites, or if the path-loss model does not hold at the
        scenario's frequency or heights.
    """
    path_loss_function(scenario)
    if scenario.min_detections > len(network.sites):
        raise ValueError(
            f"min_detections ({scenario.min_detections}) must not exceed the network's {len(network.sites)} sites"
        )


def plan_network(network: ReceiverNetwork, scenario: Scenario, cells: Cells | None = None) -> NetworkPlan:
    """How well a network could locate transmitters in each cell of an area, also with each of its sites left out.

    The bound of a transmission is the Cramér-Rao bound by arrival times and levels, with late arrivals and with what
    calibration leaves of the clocks' biases. A transmission that fewer than ``min_detections`` receivers hear has none
    (infinity). The bound of a cell is the median over transmissions: half of them cannot be located better by any
    unbiased estimator. It knows nothing of a second place that fits three arrival times as well.

    Parameters
    ----------
    network : ReceiverNetwork
        The sites.
    scenario : Scenario
        Transmitters, propagation, noise, detection and timing.
    cells : Cells, optional
        The places; by default the service area of the network. Two networks are compared over the same cells
        (``service_cells`` of both).

    Returns
    -------
    NetworkPlan

    Raises
    ------
    ValueError
        If the network has fewer than ``min_detections`` sites, if the path-loss model does not hold at the scenario's
        frequency or heights, or if it covers no cell.

    Examples
    --------
    >>> plan = plan_network(NORTH_WEST_ITALY, Scenario())
    >>> plan.numbers.p95_m
    """
    check_plan(network, scenario)
    cells = cells or service_cells([network], scenario)
    links = _Links.of(cells, network.sites, scenario, DRAWS)
    if not links.covered.any():
        low_km, high_km = distance_range_km(scenario.path_loss)
        raise ValueError(
            f"path_loss {scenario.path_loss.value} holds from {low_km:g} to {high_km:g} km, and no place of the area "
            "is at such a distance from all sites; take another path_loss or a smaller network"
        )
    hears = np.where(links.covered[:, None], links.hearing_probability(), np.nan)
    whole, *rest = _values(links, links.covered, (None, *range(len(network.sites))))
    inside = _inside_hull(cells, network)
    share = cells.share * links.covered
    return NetworkPlan(
        network=network,
        scenario=scenario,
        cells=cells,
        covered=links.covered,
        hears=hears,
        bound_m=whole.bound_m,
        hdop=whole.hdop,
        numbers=_numbers(whole, hears, share, inside),
        without=tuple(_numbers(values, np.delete(hears, site, 1), share, inside) for site, values in enumerate(rest)),
    )


def best_further_site(plan: NetworkPlan) -> FurtherSite:
    """Where in the area one more site helps most.

    Places on a coarse lattice are compared by the bound that 95 % of the area would stay below, then by the area that
    would have a bound, then by the bound of half of the area. The site is like the others: their median altitude and
    noise figure, and timing if one of them has it.

    Parameters
    ----------
    plan : NetworkPlan
        The network and the area.

    Returns
    -------
    FurtherSite
        The site, and the numbers with it over the cells of the plan.

    Raises
    ------
    ValueError
        If the network has ``MOST_SITES`` sites already.
    """
    network, scenario, cells = plan.network, plan.scenario, plan.cells
    if len(network.sites) >= MOST_SITES:
        raise ValueError(f"a network has at most {MOST_SITES} sites: there is none to add")
    rows = np.flatnonzero(plan.covered)[::_SEARCH_STRIDE]
    links = _Links.of(cells, network.sites, scenario, _SEARCH_DRAWS)
    whole = np.concatenate([links.terms(batch).sums(*drawn) for batch, *drawn in links.batches(rows)])
    lat, lon = cells.frame.geodetic(cells.area.cell_centres(SEARCHED_PLACES), 0.0)
    candidates = tuple(_like(network, float(a), float(b)) for a, b in zip(lat, lon, strict=True))
    added = _Links.of(cells, candidates, scenario, _SEARCH_DRAWS)
    terms = added.terms(rows)
    share = cells.share[rows] / cells.share[rows].sum()

    def badness(place: int) -> tuple[float, float, float]:
        bound_m = _median(_bound_m(whole + terms.sums_of(place, *added.drawn(rows, place)), scenario))
        p50_m, p95_m = _quantile(bound_m, share, 0.5), _quantile(bound_m, share, 0.95)
        return _badness(p50_m, p95_m, float(share[np.isfinite(bound_m)].sum()))

    site = candidates[min(range(len(candidates)), key=badness)]
    larger = _Links.of(cells, (*network.sites, site), scenario, DRAWS)
    (values,) = _values(larger, plan.covered, (None,))
    used = cells.share * plan.covered
    return FurtherSite(site, _numbers(values, larger.hearing_probability(), used, _inside_hull(cells, network)))


@dataclass(frozen=True, eq=False)
class _Terms:
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
class _Links:
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
    def of(cls, cells: Cells, sites: tuple[Site, ...], scenario: Scenario, draws: int) -> "_Links":
        distance_m, gradient = ranges_m(cells.frame, _site_enu_m(cells.frame, sites), cells.en_m, cells.altitude_m)
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

    def terms(self, rows: NDArray[np.int64]) -> _Terms:
        """Those of some cells."""
        level = path_loss_slope_db(self.scenario, self.distance_km[rows]) / (1e3 * self.distance_km[rows])
        gradient = self.gradient[rows]
        return _Terms(_products(gradient), _products(level[..., None] * gradient), self.timed)

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
class _Values:
    """What a set of sites reaches in c cells; NaN where the path-loss model does not hold."""

    bound_m: Float  # (c,)
    hdop: Float  # (c,)
    heard_by_3: Float  # (c,) share of the transmissions
    heard_by_4: Float  # (c,)


def _values(links: _Links, covered: Bool, left_out: Sequence[int | None]) -> list[_Values]:
    """The values with each of these sites left out (None: with all)."""
    values = [_Values(*np.full((4, len(covered)), np.nan)) for _ in left_out]
    for rows, hears, weight in links.batches(np.flatnonzero(covered)):
        terms = links.terms(rows)
        whole = terms.sums(hears, weight)
        for site, found in zip(left_out, values, strict=True):
            sums = whole if site is None else whole - terms.sums_of(site, hears[:, site], weight[:, site])
            found.bound_m[rows] = _median(_bound_m(sums, links.scenario))
            found.hdop[rows] = _median(_hdop(sums))
            found.heard_by_3[rows] = (sums[:, _HEARD] >= 3).mean(1)
            found.heard_by_4[rows] = (sums[:, _HEARD] >= 4).mean(1)
    return values


def _products(gradient: Float) -> Float:
    """(..., 6): 1, e, n, e^2, n^2 and e n of gradients (..., 2)."""
    east, north = gradient[..., 0], gradient[..., 1]
    return np.stack([np.ones_like(east), east, north, east * east, north * north, east * north], axis=-1)


def _bound_m(sums: Float, scenario: Scenario) -> Float:
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


def _median(values: Float) -> Float:
    """(b,) upper medians of (b, d), by which infinity is as good as a number."""
    middle = values.shape[1] // 2
    return np.partition(values, middle, axis=1)[:, middle]


def _quantile(values: Float, share: Float, level: float) -> float:
    """The smallest value below or at which this share of the area lies."""
    order = np.argsort(values)
    below = np.cumsum(share[order])
    return float(values[order][min(int(np.searchsorted(below, level * below[-1])), len(order) - 1)])


def _numbers(values: _Values, hears: Float, share: Float, inside: Bool) -> PlanNumbers:
    used = share > 0
    share = share[used] / share[used].sum()
    bound_m, inside = values.bound_m[used], inside[used]

    def average(of_cells: NDArray[Any]) -> float:
        return float(share @ of_cells[used])

    return PlanNumbers(
        p50_m=_quantile(bound_m, share, 0.5),
        p95_m=_quantile(bound_m, share, 0.95),
        hull_p50_m=_quantile(bound_m[inside], share[inside], 0.5) if inside.any() else np.nan,
        located_share=average(np.isfinite(values.bound_m)),
        good_hdop_share=average(values.hdop < GOOD_HDOP),
        receivers=average(hears.sum(1)),
        heard_by_3=average(values.heard_by_3),
        heard_by_4=average(values.heard_by_4),
    )


def _badness(p50_m: float, p95_m: float, located_share: float) -> tuple[float, float, float]:
    """The greater, the worse is a network."""
    return p95_m, -located_share, p50_m


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
    name = site.name if site.name == _NEW_SITE else f"{site.lat:.6f} {site.lon:.6f}"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    rng = np.random.Generator(np.random.Philox(key=key))
    return (rng.permuted(np.tile(np.arange(draws), (3, 1)), axis=1) + 0.5) / draws


def _like(network: ReceiverNetwork, lat: float, lon: float) -> Site:
    """A site at that place that is like the others."""
    sites = network.sites
    return Site(
        name=_NEW_SITE,
        lat=round(lat, 4),
        lon=round(lon, 4),
        altitude_m=float(np.median([site.altitude_m for site in sites])),
        timing=Timing.gps if network.has_timing.any() else Timing.none,
        noise_figure_db=float(np.median([site.noise_figure_db for site in sites])),
    )


def _site_enu_m(frame: LocalFrame, sites: Sequence[Site]) -> Float:
    """(r, 3) east, north and up of sites in a frame, metres."""
    return frame.enu_m([s.lat for s in sites], [s.lon for s in sites], [s.altitude_m for s in sites])


def _inside_hull(cells: Cells, network: ReceiverNetwork) -> Bool:
    """(c,) whether the middle of a cell lies inside the convex hull of the sites: they stand on all sides of it."""
    to_site_m = _site_enu_m(cells.frame, network.sites)[:, :2] - cells.en_m[:, None]
    angle = np.sort(np.arctan2(to_site_m[..., 1], to_site_m[..., 0]), axis=1)
    gap = np.diff(np.concatenate([angle, angle[:, :1] + 2 * np.pi], axis=1), axis=1)
    return gap.max(1) < np.pi * (1 - 1e-9)
