"""Plans against the simulator, against each other, and at the corners of the earth."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site, Timing, random_network
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.geometry import (
    Geometry,
    crlb_m,
    dilution,
    signal_strength_information,
    time_difference_information,
    toa_weight,
)
from triangulation_pipeline.physics.plan import (
    GOOD_HDOP,
    NetworkPlan,
    PlanNumbers,
    best_further_site,
    plan_network,
)
from triangulation_pipeline.physics.plan_cells import service_cells
from triangulation_pipeline.physics.propagation import noise_floor_dbm, path_loss_function, path_loss_slope_db
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate_chunk
from triangulation_pipeline.physics.solvers.mixture import mixture_information
from triangulation_pipeline.physics.timing import toa_sigma_ns

OBSTACLES = Scenario(knife_edge_probability=0.4, path_loss_exponent=4.0)


def network_of(*places: tuple[float, float], timing: Timing = Timing.gps) -> ReceiverNetwork:
    sites = tuple(Site(name=f"s{i}", lat=lat, lon=lon, timing=timing) for i, (lat, lon) in enumerate(places))
    return ReceiverNetwork(name="n", sites=sites)


def coarse(network: ReceiverNetwork, scenario: Scenario, per_side: int = 12) -> NetworkPlan:
    return plan_network(network, scenario, service_cells([network], scenario, per_side))


def without(network: ReceiverNetwork, site: int) -> ReceiverNetwork:
    return network.model_copy(update={"sites": network.sites[:site] + network.sites[site + 1 :]})


def with_timing(network: ReceiverNetwork, untimed: set[int]) -> ReceiverNetwork:
    """The network with these sites without clocks."""
    sites = [
        site.model_copy(update={"timing": Timing.none}) if i in untimed else site
        for i, site in enumerate(network.sites)
    ]
    return network.model_copy(update={"sites": tuple(sites)})


def same(a: PlanNumbers, b: PlanNumbers, but: tuple[str, ...] = (), rel: float = 1e-6) -> None:
    for name, value in dataclasses.asdict(a).items():
        if name not in but:
            assert value == pytest.approx(getattr(b, name), rel=rel, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize(
    ("network", "scenario"),
    [
        (NORTH_WEST_ITALY, PRESETS[Preset.default]),
        (NORTH_WEST_ITALY, PRESETS[Preset.valley]),
        (random_network(12, 3, extent_km=300), PRESETS[Preset.urban]),
        (random_network(12, 3, extent_km=300), OBSTACLES),
        (NORTH_WEST_ITALY, PRESETS[Preset.uncalibrated]),
    ],
    ids=["default", "valley", "urban", "obstacles", "uncalibrated"],
)
def test_a_plan_is_what_the_simulator_draws(network: ReceiverNetwork, scenario: Scenario) -> None:
    """Half of the transmissions of a cell have a bound below the plan's: with late arrivals, over all who hear."""
    plan = coarse(network, scenario, 32)
    spec = DatasetSpec(network, scenario.model_copy(update={"min_detections": 1}), 8192, 5)
    chunk = simulate_chunk(spec, 0)
    rows = chunk.batch
    area, side = plan.cells.area, plan.cells.per_side
    en_m = rows.tx_en_m(network.frame)
    east = (en_m[:, 0] - area.east_min_m) / (area.east_max_m - area.east_min_m) * side
    north = (en_m[:, 1] - area.north_min_m) / (area.north_max_m - area.north_min_m) * side
    cell = np.clip(north.astype(int), 0, side - 1) * side + np.clip(east.astype(int), 0, side - 1)

    distance_m, gradient = Geometry(network, scenario.transmitter_altitude_m).ranges_m(en_m)
    weight = np.zeros(distance_m.shape)
    timed = rows.toa_present
    weight[timed] = mixture_information(rows.toa_sigma_ns[timed].astype(float), scenario.excess_delay)
    by_level = signal_strength_information(
        gradient,
        distance_m,
        rows.signal_present,
        path_loss_slope_db(scenario, distance_m / 1e3),
        scenario.link_level_sigma_db,
        scenario.common_level_variance_db2,
    )
    by_time = time_difference_information(gradient, weight / SPEED_OF_LIGHT_M_PER_NS**2)
    detections = rows.signal_present.sum(1)
    found_m = np.where(detections >= 3, np.nan_to_num(crlb_m(by_time + by_level), nan=np.inf), np.inf)

    planned_m = plan.bound_m[cell]
    located = np.isfinite(planned_m)
    # Where all hear and the clocks decide, the bounds of a place differ little.
    below, not_above = found_m < planned_m / 1.02, found_m <= 1.02 * planned_m
    assert below[located].mean() < 0.53
    assert not_above[located].mean() > 0.47
    both = located & np.isfinite(found_m)
    if both.mean() > 0.95:
        assert np.median(found_m[both] / planned_m[both]) == pytest.approx(1, abs=0.03)
    hdop = np.nan_to_num(rows.hdop, nan=np.inf)
    some = np.isfinite(plan.hdop[cell])
    # The HDOP has few values where nearly all hear.
    below, not_above = hdop < 0.999 * plan.hdop[cell], hdop <= 1.01 * plan.hdop[cell]
    assert below[some].mean() < 0.53
    assert not_above[some].mean() > 0.47
    drawn = chunk.candidates
    np.testing.assert_allclose(rows.signal_present.sum(0) / drawn, plan.heard_share, atol=0.015)
    for least, planned in ((3, plan.numbers.heard_by_3), (4, plan.numbers.heard_by_4)):
        assert (detections >= least).sum() / drawn == pytest.approx(planned, abs=0.015)
    assert detections.sum() / drawn == pytest.approx(plan.numbers.receivers, rel=0.015)


def test_a_bound_is_that_of_the_geometry_where_nothing_is_left_to_chance() -> None:
    scenario = Scenario(
        tx_power_w=(1000.0,), tx_power_share=(1.0,), shadowing_common_db=0, shadowing_link_db=0.5,
        gain_offset_sigma_db=0, detection_width_db=0.01, nlos_probability=0, path_loss_exponent=3,
    )  # fmt: skip
    plan = coarse(NORTH_WEST_ITALY, scenario)
    distance_m, gradient = Geometry(NORTH_WEST_ITALY, scenario.transmitter_altitude_m).ranges_m(plan.cells.en_m)
    snr_db = 60 + 4 - path_loss_function(scenario)(distance_m / 1e3) - noise_floor_dbm(scenario, 5.5)
    weight = toa_weight(np.ones(snr_db.shape, bool), toa_sigma_ns(scenario, snr_db))
    by_level = signal_strength_information(
        gradient, distance_m, weight > 0, path_loss_slope_db(scenario, distance_m / 1e3), 0.5, 0.0
    )
    expected_m = crlb_m(time_difference_information(gradient, weight) + by_level)
    np.testing.assert_allclose(plan.bound_m, expected_m, rtol=0.005)
    np.testing.assert_allclose(plan.hdop, dilution(gradient, weight > 0)[0], rtol=1e-9)
    assert plan.numbers.receivers == pytest.approx(7)
    assert plan.numbers.good_hdop_share == pytest.approx(plan.cells.share[plan.hdop < GOOD_HDOP].sum())
    order = np.argsort(expected_m)
    below = np.cumsum(plan.cells.share[order])
    assert plan.numbers.p95_m == pytest.approx(expected_m[order][np.searchsorted(below, 0.95)], rel=0.005)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 999),
    sites=st.integers(4, 8),
    untimed=st.sets(st.integers(0, 7)),
    preset=st.sampled_from([Preset.default, Preset.valley, Preset.rss, Preset.handheld]),
)
def test_one_site_more_never_hurts_and_one_less_is_the_smaller_network(
    seed: int, sites: int, untimed: set[int], preset: Preset
) -> None:
    network, scenario = with_timing(random_network(sites, seed), untimed), PRESETS[preset]
    left_out = seed % sites
    cells = service_cells([network], scenario, 10)
    whole, smaller = (plan_network(each, scenario, cells) for each in (network, without(network, left_out)))
    assert (whole.bound_m <= smaller.bound_m * (1 + 1e-9)).all()
    assert (whole.hdop <= smaller.hdop * (1 + 1e-9)).all()
    # The hull of the plan is that of the whole network.
    same(whole.without[left_out], smaller.numbers, but=("hull_p50_m",))


def test_the_site_that_is_missed_most_is_the_first_loss() -> None:
    plan = coarse(NORTH_WEST_ITALY, PRESETS[Preset.default], 24)
    first = plan.losses[0]
    assert NORTH_WEST_ITALY.sites[first].name == "Milano-Baggio"
    assert plan.without[first].p95_m == max(rest.p95_m for rest in plan.without) > 2 * plan.numbers.p95_m
    assert sorted(plan.losses) == list(range(7))
    # Where bounds are missing anyway, the area that is left decides.
    valley = coarse(NORTH_WEST_ITALY, Scenario(path_loss_exponent=4.5, tx_power_w=(5,), tx_power_share=(1,)))
    assert np.isinf(valley.numbers.p95_m)
    assert valley.without[valley.losses[0]].located_share == min(rest.located_share for rest in valley.without)


@pytest.mark.parametrize("preset", [Preset.valley, Preset.rss])
def test_one_more_site_stands_where_it_helps_most(preset: Preset) -> None:
    scenario = PRESETS[preset]
    plan = coarse(NORTH_WEST_ITALY, scenario, 24)
    best = best_further_site(plan)
    larger = NORTH_WEST_ITALY.model_copy(update={"sites": (*NORTH_WEST_ITALY.sites, best.site)})
    same(best.numbers, plan_network(larger, scenario, plan.cells).numbers, but=("hull_p50_m",))
    assert best.numbers.p95_m < 0.9 * plan.numbers.p95_m
    rng = np.random.default_rng(4)
    area = plan.cells.area
    for _ in range(3):
        place = rng.uniform((area.east_min_m, area.north_min_m), (area.east_max_m, area.north_max_m))
        lat, lon = plan.cells.frame.geodetic(place, 0.0)
        other = best.site.model_copy(update={"lat": float(lat), "lon": float(lon)})
        sites = (*NORTH_WEST_ITALY.sites, other)
        elsewhere = plan_network(NORTH_WEST_ITALY.model_copy(update={"sites": sites}), scenario, plan.cells)
        assert elsewhere.numbers.p95_m > 0.95 * best.numbers.p95_m


def test_a_network_that_is_its_own_mirror_image_has_such_a_plan() -> None:
    square = network_of((0.5, 10.0), (0.5, 11.0), (-0.5, 10.0), (-0.5, 11.0), (0.0, 10.5))
    plan = coarse(square, PRESETS[Preset.line_of_sight])
    bound_m = plan.bound_m.reshape(12, 12)
    for mirrored in (bound_m[::-1], bound_m[:, ::-1]):
        assert np.abs(np.log(mirrored / bound_m)).max() < 0.15
        assert np.abs(np.log(mirrored / bound_m)).mean() < 0.03
    np.testing.assert_allclose(plan.receivers, plan.receivers.reshape(12, 12)[::-1].ravel(), atol=1e-3)


@pytest.mark.parametrize("lon", [0.0, 179.2, -90.0])
def test_the_earth_is_the_same_on_every_meridian(lon: float) -> None:
    """Also on the 180th. Sites have draws of their own by their place, so the numbers differ a little."""
    places = ((-17.8, 0.0), (-16.8, 1.7), (-18.1, 0.9), (-18.2, 2.0))
    here, there = (
        coarse(network_of(*((lat, (each + at + 180) % 360 - 180) for lat, each in places)), Scenario())
        for at in (30.0, lon)
    )
    same(here.numbers, there.numbers, rel=0.1)
    lat, lon_found = there.cells.place(0)
    assert lat < -18
    assert abs((lon_found - lon + 180) % 360 - 180) < 0.5


def test_a_network_around_a_pole_is_planned() -> None:
    pole = network_of((89.4, 0.0), (89.4, 90.0), (89.4, 180.0), (89.4, -90.0))
    plan = coarse(pole, Scenario(), 13)
    middle = 6 * 13 + 6
    assert plan.cells.place(middle)[0] > 89.9
    assert plan.bound_m[middle] < plan.numbers.p50_m
    assert plan.hdop[middle] == pytest.approx(1.0, abs=0.01)
    assert plan.numbers.located_share == pytest.approx(1)
    assert best_further_site(plan).numbers.p95_m < plan.numbers.p95_m


def test_without_clocks_levels_alone_locate() -> None:
    places = [(site.lat, site.lon) for site in NORTH_WEST_ITALY.sites]
    untimed = coarse(network_of(*places, timing=Timing.none), Scenario())
    assert np.isinf(untimed.hdop).all()
    assert untimed.numbers.good_hdop_share == 0
    assert 10e3 < untimed.numbers.p50_m < 60e3
    same(untimed.numbers, coarse(network_of(*places), PRESETS[Preset.rss]).numbers)
    assert best_further_site(untimed).site.timing is Timing.none


def test_sites_without_clocks_count_for_levels_alone() -> None:
    """Two clocks tell a hyperbola, and levels where on it; a third one a place."""
    clocks = [
        coarse(with_timing(NORTH_WEST_ITALY, {0, 1, 2, 3, 4, 5, 6} - timed), Scenario())
        for timed in ({2, 5}, {2, 5, 6})
    ]
    assert np.isinf(clocks[0].hdop).all()
    assert clocks[0].numbers.p50_m > 100 * clocks[1].numbers.p50_m
    assert np.isfinite(clocks[1].hdop).all()
    assert clocks[0].numbers.receivers == clocks[1].numbers.receivers > 6


def test_a_transmission_counts_if_as_many_receivers_hear_as_the_scenario_asks_for() -> None:
    three, four = (coarse(NORTH_WEST_ITALY, Scenario(path_loss_exponent=4.5, min_detections=least)) for least in (3, 4))
    assert (four.bound_m >= three.bound_m).all()
    assert four.numbers.located_share < three.numbers.located_share - 0.1
    # On average over the area, a place has a bound about where half of its transmissions are heard by so many.
    assert four.numbers.heard_by_4 == pytest.approx(four.numbers.located_share, abs=0.15)
    assert four.numbers.heard_by_4 == three.numbers.heard_by_4


def test_shares_are_of_the_curved_surface() -> None:
    wide = service_cells([random_network(6, 1, extent_km=2000.0)], Scenario(), 9)
    east_m, north_m = wide.en_m.T
    # Seen from above, a surface that falls away looks smaller by the cosine of the angle at the centre of the earth.
    angle = np.arcsin(np.hypot(east_m, north_m) / 6.375e6)
    np.testing.assert_allclose(wide.share / wide.share[40], np.cos(angle[40]) / np.cos(angle), rtol=2e-4)
    assert wide.share[0] > 1.01 * wide.share[40]


def test_64_sites_are_planned_and_none_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triangulation_pipeline.physics.plan.MOST_SITES", 64)
    plan = coarse(random_network(64, 2), PRESETS[Preset.valley], 8)
    assert len(plan.without) == 64
    assert plan.hears.shape == (64, 64)
    with pytest.raises(ValueError, match="a network has at most 64 sites"):
        best_further_site(plan)


@pytest.mark.parametrize(
    "worse",
    [
        {"site_bias_sigma_ns": 60.0},
        {"nlos_probability": 0.3, "nlos_mean_ns": 100.0},
        {"clock_sigma_ns": 100.0},
        {"tx_power_w": (0.5,), "tx_power_share": (1.0,)},
        {"path_loss_exponent": 4.0},
        {"man_made_noise": "city"},
        {"tx_antenna_gain_dbi": -10.0},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_worse_conditions_have_a_higher_bound(worse: dict[str, object]) -> None:
    before = coarse(NORTH_WEST_ITALY, Scenario())
    after = coarse(NORTH_WEST_ITALY, Scenario.model_validate(worse))
    assert after.numbers.p50_m > 1.05 * before.numbers.p50_m
    assert (after.bound_m > before.bound_m).all()


def test_a_site_that_reads_too_high_by_a_known_offset_hears_what_the_simulator_says() -> None:
    loud = NORTH_WEST_ITALY.sites[0].model_copy(update={"gain_offset_db": -20.0})
    network = NORTH_WEST_ITALY.model_copy(update={"sites": (loud, *NORTH_WEST_ITALY.sites[1:])})
    scenario = PRESETS[Preset.valley]
    rows = simulate_chunk(DatasetSpec(network, scenario.model_copy(update={"min_detections": 1}), 4096, 5), 0)
    share = rows.batch.signal_present[:, 0].sum() / rows.candidates
    assert coarse(network, scenario).heard_share[0] == pytest.approx(share, abs=0.02)


def test_places_that_the_path_loss_model_does_not_cover_have_no_value() -> None:
    small = random_network(4, 1, extent_km=40.0)
    plan = coarse(small, Scenario(path_loss="egli", area_margin_km=15.0), 20)
    assert 0 < plan.covered.sum() < 400
    for values in (plan.bound_m, plan.hdop, plan.receivers):
        assert (np.isnan(values) == ~plan.covered).all()
    assert np.isfinite(plan.numbers.receivers)
    assert best_further_site(plan).numbers.p95_m <= plan.numbers.p95_m


@pytest.mark.parametrize(
    ("scenario", "sentence"),
    [
        (Scenario(min_detections=8), "min_detections (8) must not exceed the network's 7 sites"),
        (Scenario(path_loss="hata"), "path_loss hata holds for frequency_mhz from 150 to 1500, got 145"),
        (
            Scenario(path_loss="hata", frequency_mhz=433, rx_height_m=30),
            "path_loss hata holds from 1 to 20 km, and no place of the area is at such a distance from all sites",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(scenario: Scenario, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence.replace("(", r"\(").replace(")", r"\)")):
        plan_network(NORTH_WEST_ITALY, scenario)


def test_networks_far_apart_are_not_compared() -> None:
    with pytest.raises(ValueError, match="must lie within 2,000 km"):
        service_cells([NORTH_WEST_ITALY, random_network(4, 1, lat=-30.0)], Scenario())


def test_the_middle_of_the_hull_is_inside_it_and_a_line_has_no_inside() -> None:
    plan = coarse(NORTH_WEST_ITALY, Scenario())
    assert plan.numbers.hull_p50_m < plan.numbers.p50_m
    line = coarse(network_of((0.0, 10.0), (0.0, 10.5), (0.0, 11.0)), Scenario())
    assert np.isnan(line.numbers.hull_p50_m)


def test_two_networks_share_the_area_of_both() -> None:
    east = random_network(5, 1, lon=9.5)
    cells = service_cells([NORTH_WEST_ITALY, east], Scenario(), 12)
    assert cells.frame == NORTH_WEST_ITALY.frame
    for network in (NORTH_WEST_ITALY, east):
        site_m = cells.frame.en_m(*np.array([(s.lat, s.lon, s.altitude_m) for s in network.sites]).T)
        assert cells.area.contains(site_m).all()
    assert cells.share.sum() == pytest.approx(1)
    # A network that is placed in another's frame is planned as in its own.
    own, placed = (
        plan_network(east, Scenario()),
        plan_network(east, Scenario(), service_cells([east, east], Scenario())),
    )
    same(own.numbers, placed.numbers)
