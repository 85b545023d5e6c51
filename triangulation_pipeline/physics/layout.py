"""A network together with the scenario that holds there; and random ones, for datasets over many networks."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import ReceiverNetwork, Timing, random_network
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.propagation import distance_range_km, mean_level_dbm, noise_floor_dbm
from triangulation_pipeline.physics.scenario import Scenario

# Raised with every change of the layouts that ``random_layout`` draws.
LAYOUTS_VERSION = 1
FEWEST_RANDOM_SITES, MOST_RANDOM_SITES = 4, 15
DRAWN_PARAMETERS = (
    "area_margin_km",
    "clock_sigma_ns",
    "nlos_mean_ns",
    "nlos_probability",
    "path_loss_exponent",
    "shadowing_link_db",
)
"""Parameters of the scenario that each random layout has a value of its own for."""

_MARGIN_SHARE = 0.13  # of the extent: 20 km around the 150 km of north-west Italy
_LEAST_COVERED_SHARE = 0.25
_MAX_DRAWS = 1000
# No receiver on earth hears farther.
_FARTHEST_KM = 4000.0


class Layouts(StrEnum):
    """The networks of a dataset: the run's own one, or many random ones."""

    own = "own"
    random = "random"


@dataclass(frozen=True)
class Layout:
    """A network, and the scenario that holds there."""

    network: ReceiverNetwork
    scenario: Scenario

    @cached_property
    def reach_m(self) -> float:
        """The range at which the quietest receiver detects half of the transmitters of mean power, metres; at most
        4000 km."""
        scenario, range_km = self.scenario, np.geomspace(0.1, _FARTHEST_KM, 500)
        floor_dbm = noise_floor_dbm(scenario, min(site.noise_figure_db for site in self.network.sites))
        heard = mean_level_dbm(scenario, range_km) > floor_dbm + scenario.detection_threshold_db
        return float(1e3 * range_km[heard].max(initial=range_km[0]))

    def areas_m(self, measurements: Measurements) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where each transmission is looked for: the part of the service area within reach of the receivers that hear
        it. It is smaller than the area only in networks that are wider than the reach.

        Parameters
        ----------
        measurements : Measurements
            n rows of this network.

        Returns
        -------
        low, high : ndarray, shape (n, 2)
            South-west and north-east corner, metres east and north: of the box of the receivers that hear, widened by
            ``reach_m``, within the service area.
        """
        hears = measurements.signal_present | ~measurements.signal_present.any(1, keepdims=True)
        area = self.network.service_area(self.scenario.area_margin_m)
        site_m = np.broadcast_to(self.network.site_enu_m.T[:2, None], (2, *hears.shape))
        low_m = np.min(site_m, axis=2, where=hears, initial=np.inf).T - self.reach_m
        high_m = np.max(site_m, axis=2, where=hears, initial=-np.inf).T + self.reach_m
        return (
            np.maximum(low_m, (area.east_min_m, area.north_min_m)),
            np.minimum(high_m, (area.east_max_m, area.north_max_m)),
        )


def random_layout(scenario: Scenario, seed: int, number: int) -> Layout:
    """A random network, and a scenario whose ``DRAWN_PARAMETERS`` are random too.

    There are 4 to 15 sites in a square with a side of 20 to 400 km (log-uniform) between 60 degrees south and north. In
    three of ten layouts a share of the sites, few to all of them, have no timing. Drawn are the clock's noise (20 to
    1000 ns, log-uniform), the share of delayed paths (0 to 0.3, and none in every tenth layout) and their mean delay
    (100 to 2000 ns, log-uniform), the path-loss exponent (2.8 to 4.8) and the shadowing of links (3 to 8 dB). The
    margin of the area is 0.13 of the side. A layout is drawn again if its sites cover less than a quarter of the area.

    Parameters
    ----------
    scenario : Scenario
        All other parameters.
    seed, number : int
        The same two give the same layout of a scenario.

    Returns
    -------
    Layout

    Raises
    ------
    ValueError
        If none of 1000 layouts covers a quarter of its area.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(number,))))
    for _ in range(_MAX_DRAWS):
        layout = _draw(rng, scenario, f"layout-{number}")
        if _covered_share(layout) >= _LEAST_COVERED_SHARE:
            return layout
    raise ValueError(
        f"the scenario rejects too many transmitters: none of {_MAX_DRAWS} random layouts covers a quarter of its "
        "area; lower min_detections or raise tx_power_w"
    )


def _draw(rng: np.random.Generator, scenario: Scenario, name: str) -> Layout:
    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    extent_km = log_uniform(20, 400)
    sites = int(rng.integers(max(FEWEST_RANDOM_SITES, scenario.min_detections), MOST_RANDOM_SITES + 1))
    network = random_network(
        sites,
        int(rng.integers(2**31)),
        lat=float(rng.uniform(-60, 60)),
        lon=float(rng.uniform(-180, 180)),
        extent_km=extent_km,
    )
    without_timing = rng.random(sites) < (rng.random() if rng.random() < 0.3 else 0.0)
    named = tuple(
        site.model_copy(update={"timing": Timing.none}) if untimed else site
        for site, untimed in zip(network.sites, without_timing, strict=True)
    )
    drawn = {
        "area_margin_km": _MARGIN_SHARE * extent_km,
        "clock_sigma_ns": log_uniform(20, 1000),
        "nlos_probability": 0.0 if rng.random() < 0.1 else float(rng.uniform(0, 0.3)),
        "nlos_mean_ns": log_uniform(100, 2000),
        "path_loss_exponent": float(rng.uniform(2.8, 4.8)),
        "shadowing_link_db": float(rng.uniform(3, 8)),
    }
    # Copies are not validated again: that would take longer than the drawing.
    return Layout(network.model_copy(update={"name": name, "sites": named}), scenario.model_copy(update=drawn))


def _covered_share(layout: Layout) -> float:
    """The share of the area in which ``min_detections`` sites hear a transmitter of mean power, without shadowing."""
    network, scenario = layout.network, layout.scenario
    cell_en_m = network.service_area(scenario.area_margin_m).cell_centres(8)
    distance_km = Geometry(network, scenario.transmitter_altitude_m).ranges_m(cell_en_m)[0] / 1e3
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in network.sites])
    snr_db = mean_level_dbm(scenario, distance_km) - floor_dbm
    hears = (snr_db > scenario.detection_threshold_db).sum(1) >= scenario.min_detections
    low_km, high_km = distance_range_km(scenario.path_loss)
    return float(np.mean(hears & ((distance_km >= low_km) & (distance_km <= high_km)).all(1)))
