from dataclasses import replace

import numpy as np
import pytest
import torch

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.spec import StartConfig
from triangulation_pipeline.model.start import prepared
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site, random_network
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.posterior import exact_posterior
from triangulation_pipeline.physics.propagation import noise_floor_dbm, path_loss_function
from triangulation_pipeline.physics.scenario import PathLossModel, Scenario

from .helpers import DEFAULT, HOME, RSS, VALLEY, samples, target_m

START = StartConfig()


def exact_rows(
    layout: Layout, en_m: np.ndarray, altitude_m: np.ndarray | float = 2.0, sigma_ns: float = 50.0
) -> Measurements:
    """What every site measures without noise: mean power, direct paths."""
    n, scenario, sites = len(en_m), layout.scenario, len(layout.network.sites)
    altitude_m = np.broadcast_to(altitude_m, n).astype(float)
    distance_m, _ = Geometry(layout.network, altitude_m).ranges_m(en_m)
    power_dbm = 44.0 + 4.0 - path_loss_function(scenario)(distance_m / 1e3)
    everywhere = np.ones((n, sites), bool)
    return Measurements(
        time_ns=np.zeros(n, np.int64),
        frequency_hz=np.full(n, scenario.frequency_hz, np.int64),
        tx_altitude_m=altitude_m,
        signal_present=everywhere,
        toa_present=everywhere,
        snr_db=(power_dbm + 124).astype(np.float32),
        power_dbm=power_dbm.astype(np.float32),
        frequency_offset_hz=np.zeros((n, sites), np.float32),
        toa_ns=distance_m / SPEED_OF_LIGHT_M_PER_NS + 777.0,
        toa_sigma_ns=np.full((n, sites), sigma_ns, np.float32),
    )


def anywhere(layout: Layout, n: int, seed: int = 0) -> np.ndarray:
    area = layout.network.service_area(layout.scenario.area_margin_m)
    low, high = (area.east_min_m, area.north_min_m), (area.east_max_m, area.north_max_m)
    return np.random.default_rng(seed).uniform(low, high, (n, 2))


def only(measurements: Measurements, heard: list[int], timed: list[int]) -> Measurements:
    """The same rows if only some sites heard and timed them; the others are deaf."""
    hears, times = (np.isin(np.arange(measurements.num_sites), which) for which in (heard, timed))
    return replace(
        measurements,
        signal_present=measurements.signal_present & hears,
        toa_present=measurements.toa_present & times,
        power_dbm=np.where(hears, measurements.power_dbm, 300.0).astype(np.float32),
        toa_ns=np.where(times, measurements.toa_ns, 0.0),
        toa_sigma_ns=np.where(times, measurements.toa_sigma_ns, 0.0).astype(np.float32),
    )


@pytest.mark.parametrize(
    "layout",
    [
        HOME,
        Layout(random_network(9, seed=1, extent_km=60), DEFAULT),
        Layout(NORTH_WEST_ITALY, DEFAULT.model_copy(update={"path_loss": PathLossModel.free_space})),
    ],
    ids=["italy", "random", "free space"],
)
@pytest.mark.parametrize("high", [False, True], ids=["ground", "aircraft"])
def test_clean_rows_are_found_within_a_part_of_the_bound(layout: Layout, high: bool) -> None:
    en_m = anywhere(layout, 600)
    altitude_m = np.random.default_rng(1).uniform(500, 12e3, 600) if high else 2.0
    found = prepared(layout, exact_rows(layout, en_m, altitude_m), START, solve=True)
    off_m = (found.hypothesis_m_BK2[:, 0] - torch.tensor(en_m)).norm(dim=1)
    assert (off_m < 0.1 * found.spread_m_BK3[:, 0].norm(dim=-1) + 1.0).float().mean() > 0.995


def test_noisy_rows_of_good_geometry_begin_within_a_few_bounds() -> None:
    batch = samples(2000)
    found = prepared(HOME, batch, START, solve=True)
    off = (found.hypothesis_m_BK2 - target_m(batch)[:, None]).norm(dim=-1)
    good = torch.tensor(batch.gdop < 5)
    bound_m = torch.tensor(batch.crlb_m)
    nearest = off.masked_fill(~found.alive_BK, torch.inf).amin(1)
    assert (off[:, 0] / bound_m)[good].median() < 1.1
    assert (nearest / bound_m < 5)[good].float().mean() > 0.96
    # Few rows need more than one hypothesis.
    assert found.alive_BK.float().sum(1).mean() < 1.5


def test_delayed_paths_are_late_only_and_found_out_though_three_of_nine_are() -> None:
    layout = Layout(random_network(9, seed=1, extent_km=60), DEFAULT.model_copy(update={"nlos_probability": 0.3}))
    en_m = anywhere(layout, 300)
    rows, rng = exact_rows(layout, en_m), np.random.default_rng(3)
    late = rng.random((300, 9)).argsort(1) < 3
    delayed = replace(rows, toa_ns=rows.toa_ns + np.where(late, rng.uniform(500, 3000, (300, 9)), 0.0))
    found = prepared(layout, delayed, START, solve=True)
    off_m = (found.hypothesis_m_BK2 - torch.tensor(en_m)[:, None]).norm(dim=-1)
    nearest = off_m.masked_fill(~found.alive_BK, torch.inf).amin(1)
    assert (nearest < 2 * found.spread_m_BK3[:, 0].norm(dim=-1)).float().mean() > 0.85


def symmetric() -> Layout:
    """Three sites on a line, and one to the side that is silent: places north and south of the line look alike."""
    sites = tuple(
        Site(name=name, lat=lat, lon=lon)
        for name, lat, lon in (
            ("west", 45.0, 7.8),
            ("middle", 45.0, 8.0),
            ("east", 45.0, 8.2),
            ("north", 45.4, 8.0),
            ("south", 44.6, 8.0),
        )
    )
    return Layout(ReceiverNetwork(name="line", sites=sites), DEFAULT)


def test_both_solutions_of_three_sites_on_a_line_are_kept_with_like_shares() -> None:
    layout = symmetric()
    en_m = np.random.default_rng(0).uniform((-10e3, 8e3), (10e3, 30e3), (100, 2))
    found = prepared(layout, only(exact_rows(layout, en_m), [0, 1, 2], [0, 1, 2]), START, solve=True)
    mirrored = torch.tensor(en_m * [1, -1])
    for truth in (torch.tensor(en_m), mirrored):
        off_m = (found.hypothesis_m_BK2 - truth[:, None]).norm(dim=-1).masked_fill(~found.alive_BK, torch.inf)
        # The line bends with the earth: a hundred metres.
        assert (off_m.amin(1) < 500).float().mean() > 0.97
    share = found.hypothesis_features_BKF[..., 0].exp() * found.alive_BK
    assert (share.amax(1) < 0.7).float().mean() > 0.95


@pytest.mark.parametrize("site", ["north", "south"])
def test_a_silent_receiver_tells_the_two_solutions_apart(site: str) -> None:
    layout = symmetric()
    en_m = np.random.default_rng(0).uniform((-10e3, 15e3), (10e3, 30e3), (100, 2))
    rows = only(exact_rows(layout, en_m), [0, 1, 2], [0, 1, 2])
    # It hears as well as it can, and yet it did not hear the transmission.
    power_dbm = rows.power_dbm.copy()
    power_dbm[:, [s.name for s in layout.network.sites].index(site)] = -124.0
    found = prepared(layout, replace(rows, power_dbm=power_dbm), START, solve=True)
    is_north = found.hypothesis_m_BK2[:, 0, 1] > 0
    assert (is_north == (site == "south")).float().mean() > 0.95


def test_levels_tell_the_two_solutions_apart() -> None:
    layout = symmetric()
    en_m = np.random.default_rng(0).uniform((-10e3, 15e3), (10e3, 30e3), (100, 2))
    found = prepared(layout, only(exact_rows(layout, en_m), [0, 1, 2, 3, 4], [0, 1, 2]), START, solve=True)
    assert (found.hypothesis_m_BK2[:, 0] - torch.tensor(en_m)).norm(dim=1).median() < 50


@pytest.mark.parametrize("scenario", [RSS, VALLEY.model_copy(update={"features": RSS.features})], ids=["rss", "valley"])
def test_without_arrival_times_mean_and_spread_are_those_of_the_exact_posterior(scenario: Scenario) -> None:
    layout = Layout(NORTH_WEST_ITALY, scenario)
    batch = samples(150, scenario)
    found = prepared(layout, batch, START, solve=True)
    share = (found.hypothesis_features_BKF[..., 0].exp() * found.alive_BK)[..., None]
    mean_m = (share * found.hypothesis_m_BK2).sum(1)
    apart_m = found.hypothesis_m_BK2 - mean_m[:, None]
    variance_m2 = (share * (apart_m.square() + _variances_m2(found.spread_m_BK3))).sum(1)
    exact = exact_posterior(Geometry(NORTH_WEST_ITALY, 2.0), batch, scenario, batch.tx_en_m(NORTH_WEST_ITALY.frame))
    spread_m = np.sqrt(np.trace(exact.covariance_m2, axis1=1, axis2=2))
    off = np.hypot(*(mean_m.numpy() - exact.en_m).T) / spread_m
    assert np.median(off) < 0.1
    assert np.quantile(off, 0.95) < 0.4
    assert np.median(np.sqrt(variance_m2.sum(1).numpy()) / spread_m) == pytest.approx(1.0, abs=0.05)


def _variances_m2(spread_m: torch.Tensor) -> torch.Tensor:
    first, cross, second = spread_m.unbind(-1)
    return torch.stack([first.square(), cross.square() + second.square()], -1)


def test_two_arrival_times_narrow_what_levels_alone_leave() -> None:
    batch = samples(200)
    by_levels, by_two = (
        prepared(HOME, only(batch, list(range(7)), timed), START, solve=True) for timed in ([], [2, 6])
    )
    truth = target_m(batch)[:, None]
    errors = [
        (rows.hypothesis_m_BK2 - truth).norm(dim=-1).masked_fill(~rows.alive_BK, torch.inf).amin(1)
        for rows in (by_levels, by_two)
    ]
    assert errors[1].median() < 0.8 * errors[0].median()


def test_contradictory_arrival_times_stay_near_the_area() -> None:
    rows = exact_rows(HOME, anywhere(HOME, 300))
    noise_ns = np.random.default_rng(0).normal(scale=2e6, size=(300, 7))
    found = prepared(HOME, replace(rows, toa_ns=rows.toa_ns + noise_ns), START, solve=True)
    area = NORTH_WEST_ITALY.service_area(DEFAULT.area_margin_m + 30e3)
    assert area.contains(found.hypothesis_m_BK2[found.alive_BK].double().numpy()).all()


def test_in_a_wide_network_a_row_is_looked_for_within_reach_of_those_that_hear_it() -> None:
    """Sites over a continent, of which four hear: the others do not stretch the search."""
    ours = random_network(6, seed=2, lat=48.0, lon=9.0, extent_km=80).sites
    wide = random_network(20, seed=3, lat=46.0, lon=5.0, extent_km=1500).sites
    others = tuple(site.model_copy(update={"name": f"far {site.name}"}) for site in wide)
    layout = Layout(ReceiverNetwork(name="wide", sites=ours + others), VALLEY)
    # At the reach the level of a mean transmitter is at the threshold of a receiver.
    mean_dbm = np.dot(VALLEY.tx_power_share, VALLEY.tx_power_dbm) + 4.0
    level_dbm = mean_dbm - path_loss_function(VALLEY)(np.array([layout.reach_m / 1e3]))
    assert level_dbm[0] == pytest.approx(noise_floor_dbm(VALLEY, 5.5) + VALLEY.detection_threshold_db, abs=1.0)
    heard_m = layout.network.site_enu_m[:4, :2]
    low_m, high_m = heard_m.min(0) - layout.reach_m, heard_m.max(0) + layout.reach_m
    en_m = np.random.default_rng(0).uniform(low_m + 50e3, high_m - 50e3, (200, 2))
    rows = only(exact_rows(layout, en_m), [0, 1, 2, 3], [0, 1, 2, 3])
    for row_low_m, row_high_m in zip(*layout.areas_m(rows), strict=True):
        np.testing.assert_allclose([row_low_m, row_high_m], [low_m, high_m])
    unknown = replace(rows, power_dbm=np.where(rows.signal_present, rows.power_dbm, np.nan))
    found = prepared(layout, unknown, START, solve=True)
    off_m = (found.hypothesis_m_BK2 - torch.as_tensor(en_m)[:, None]).norm(dim=-1)
    assert (off_m.masked_fill(~found.alive_BK, torch.inf).amin(1) < 100).float().mean() > 0.97
    whole = layout.network.service_area(VALLEY.area_margin_m)
    nobody = only(rows, [], [])
    np.testing.assert_allclose(layout.areas_m(nobody)[0], [[whole.east_min_m, whole.north_min_m]] * 200)


def test_a_receiver_that_hears_without_a_level_tells_that_it_hears() -> None:
    """Three arrival times cross twice; the crossing that no receiver could hear is none."""
    batch = samples(600, VALLEY)
    three = batch.take(batch.toa_present.sum(1) == 3)
    unknown = replace(three, power_dbm=np.full_like(three.power_dbm, np.nan))
    deaf = VALLEY.model_copy(update={"detection_threshold_db": 40.0})
    cost = [
        prepared(Layout(NORTH_WEST_ITALY, scenario), unknown, START, solve=True).hypothesis_features_BKF[:, 0, 2]
        for scenario in (VALLEY, deaf)
    ]
    assert (cost[0] < 5).float().mean() > 0.9
    assert (cost[1] > cost[0]).all()


def test_a_place_that_explains_nothing_is_looked_for_in_finer_cells() -> None:
    """Aircraft beside four sites close together: coarse cells find a place where one is 4 microseconds late."""
    places = {"a": (47.4, 8.63), "b": (47.25, 8.53), "c": (47.036, 8.324), "d": (48.71, 9.265), "e": (47.036, 8.33)}
    sites = tuple(Site(name=name, lat=lat, lon=lon, altitude_m=430) for name, (lat, lon) in places.items())
    layout = Layout(ReceiverNetwork(name="lake", sites=sites), DEFAULT.model_copy(update={"area_margin_km": 100.0}))
    en_m = np.array([[-39.7e3, -48.0e3], [-37.4e3, -53.1e3], [-37.3e3, -49.2e3]])
    rows = exact_rows(layout, en_m, 10e3)
    found = prepared(layout, replace(rows, power_dbm=np.full_like(rows.power_dbm, np.nan)), START, solve=True)
    assert ((found.hypothesis_m_BK2[:, 0] - torch.as_tensor(en_m)).norm(dim=-1) < 30).all()


def test_without_solving_every_row_is_a_posterior_over_cells() -> None:
    rows = prepared(HOME, samples(100), START, solve=False)
    assert (rows.hypothesis_features_BKF[..., -1] == 0).all()
    off = (rows.hypothesis_m_BK2 - target_m(samples(100))[:, None]).norm(dim=-1)
    assert off.masked_fill(~rows.alive_BK, torch.inf).amin(1).median() < 10e3


def test_the_threshold_of_a_silent_receiver_is_its_own_floor() -> None:
    """A receiver with a higher floor that is silent says less: the place moves towards it."""
    scenario = RSS
    layout, batch = Layout(NORTH_WEST_ITALY, scenario), samples(200, RSS)
    silent = ~batch.signal_present
    assert silent.any(1).sum() > 10
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in NORTH_WEST_ITALY.sites])
    np.testing.assert_allclose(batch.power_dbm[silent], np.broadcast_to(floor_dbm, silent.shape)[silent], atol=1e-3)
    deafer = replace(batch, power_dbm=np.where(silent, 300.0, batch.power_dbm).astype(np.float32))
    keen, deaf = (
        prepared(layout, rows, START.model_copy(update={"hypotheses": 1}), solve=True) for rows in (batch, deafer)
    )
    sites_m = torch.tensor(NORTH_WEST_ITALY.site_enu_m[:, :2], dtype=torch.float32)
    away_m = [(rows.hypothesis_m_BK2 - sites_m).norm(dim=-1)[torch.tensor(silent)].mean() for rows in (keen, deaf)]
    assert away_m[0] > away_m[1] + 1e3


def without_torino(measurements: Measurements) -> tuple[ReceiverNetwork, Measurements]:
    """Network and rows without a site that stands within the box of the others, so that the frame is the same."""
    kept = np.array([site.name != "Torino" for site in NORTH_WEST_ITALY.sites])
    network = NORTH_WEST_ITALY.model_copy(
        update={"sites": tuple(site for site in NORTH_WEST_ITALY.sites if site.name != "Torino")}
    )
    columns = {name: getattr(measurements, name) for name in Measurements.__dataclass_fields__}
    return network, Measurements(**{k: v[:, kept] if v.ndim == 2 else v for k, v in columns.items()})


@pytest.mark.parametrize("scenario", [DEFAULT, RSS], ids=["arrival times", "levels"])
def test_a_receiver_of_which_nobody_knows_whether_it_listened_says_nothing(scenario: Scenario) -> None:
    rows = samples(300, scenario)
    torino = np.array([site.name == "Torino" for site in NORTH_WEST_ITALY.sites])
    absent = replace(
        rows,
        power_dbm=np.where(torino, np.float32(np.nan), rows.power_dbm),
        toa_present=rows.toa_present & ~torino,
        signal_present=rows.signal_present & ~torino,
    )
    network, others = without_torino(rows)
    hear = others.signal_present.any(1)
    expected = prepared(Layout(network, scenario), others.take(hear), START, solve=True)
    found = prepared(Layout(NORTH_WEST_ITALY, scenario), absent.take(hear), START, solve=True)
    both = found.alive_BK & expected.alive_BK
    assert both.float().mean() > 0.98 * expected.alive_BK.float().mean()
    off_m = (found.hypothesis_m_BK2 - expected.hypothesis_m_BK2).norm(dim=-1)[both]
    assert off_m.quantile(0.98) < 1.0
    assert torch.isfinite(found.level_BKW).all()
