"""How well a network could locate transmitters, place by place, before anything is measured or trained.

At each place a few hundred transmissions are drawn by the rules of the simulator: who hears them, and how accurately
each receiver times them. All places share these draws, and each site keeps its own, in whatever network it stands. So
two plans over the same places differ by their sites alone, and a further site never makes a place worse.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.network import MOST_SITES, ReceiverNetwork, Site, Timing
from triangulation_pipeline.physics.plan_cells import Cells, service_cells
from triangulation_pipeline.physics.plan_links import NEW_SITE, Links, Values, bounds_m, median, values_of
from triangulation_pipeline.physics.propagation import distance_range_km, path_loss_function
from triangulation_pipeline.physics.scenario import Scenario

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

# Raised with every change of the numbers of equal plans. It is part of assets' code versions.
PLAN_VERSION = 1
GOOD_HDOP = 2.0
"""A place where half of the transmissions have a lower HDOP has a good geometry."""

DRAWS = 256
"""Transmissions from each cell."""
SEARCHED_PLACES = 14
"""Places per side of the area that are tried for one more site."""

# They are compared over fewer cells, with fewer draws.
_SEARCH_STRIDE, _SEARCH_DRAWS = 5, 64


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
    links = Links.of(cells, network.sites, scenario, DRAWS)
    if not links.covered.any():
        low_km, high_km = distance_range_km(scenario.path_loss)
        raise ValueError(
            f"path_loss {scenario.path_loss.value} holds from {low_km:g} to {high_km:g} km, and no place of the area "
            "is at such a distance from all sites; take another path_loss or a smaller network"
        )
    hears = np.where(links.covered[:, None], links.hearing_probability(), np.nan)
    whole, *rest = values_of(links, links.covered, (None, *range(len(network.sites))))
    inside = cells.inside_hull(network)
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
    links = Links.of(cells, network.sites, scenario, _SEARCH_DRAWS)
    whole = np.concatenate([links.terms(batch).sums(*drawn) for batch, *drawn in links.batches(rows)])
    lat, lon = cells.frame.geodetic(cells.area.cell_centres(SEARCHED_PLACES), 0.0)
    candidates = tuple(_like(network, float(a), float(b)) for a, b in zip(lat, lon, strict=True))
    added = Links.of(cells, candidates, scenario, _SEARCH_DRAWS)
    terms = added.terms(rows)
    share = cells.share[rows] / cells.share[rows].sum()

    def badness(place: int) -> tuple[float, float, float]:
        bound_m = median(bounds_m(whole + terms.sums_of(place, *added.drawn(rows, place)), scenario))
        p50_m, p95_m = _quantile(bound_m, share, 0.5), _quantile(bound_m, share, 0.95)
        return _badness(p50_m, p95_m, float(share[np.isfinite(bound_m)].sum()))

    site = candidates[min(range(len(candidates)), key=badness)]
    larger = Links.of(cells, (*network.sites, site), scenario, DRAWS)
    (values,) = values_of(larger, plan.covered, (None,))
    used = cells.share * plan.covered
    return FurtherSite(site, _numbers(values, larger.hearing_probability(), used, cells.inside_hull(network)))


def _quantile(values: Float, share: Float, level: float) -> float:
    """The smallest value below or at which this share of the area lies."""
    order = np.argsort(values)
    below = np.cumsum(share[order])
    return float(values[order][min(int(np.searchsorted(below, level * below[-1])), len(order) - 1)])


def _numbers(values: Values, hears: Float, share: Float, inside: Bool) -> PlanNumbers:
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


def _like(network: ReceiverNetwork, lat: float, lon: float) -> Site:
    """A site at that place that is like the others."""
    sites = network.sites
    return Site(
        name=NEW_SITE,
        lat=round(lat, 4),
        lon=round(lon, 4),
        altitude_m=float(np.median([site.altitude_m for site in sites])),
        timing=Timing.gps if network.has_timing.any() else Timing.none,
        noise_figure_db=float(np.median([site.noise_figure_db for site in sites])),
    )
