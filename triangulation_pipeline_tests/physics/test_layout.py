"""Random layouts, and datasets over them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import CHUNK_SIZE, ROWS_PER_LAYOUT, DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import DRAWN_PARAMETERS, MOST_RANDOM_SITES, Layout, Layouts, random_layout
from triangulation_pipeline.physics.quality import quality_metrics
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate, simulate_chunk, simulate_chunks
from triangulation_pipeline.samples import Samples, Split, samples_digest

DEFAULT = Scenario()


def spec_of(n: int, seed: int = 0, scenario: Scenario = DEFAULT) -> DatasetSpec:
    return DatasetSpec(None, scenario, n, seed, Layouts.random)


@pytest.fixture(scope="module")
def layouts() -> list[Layout]:
    return [random_layout(DEFAULT, 7, number) for number in range(400)]


@pytest.fixture(scope="module")
def batch() -> Samples:
    return simulate(spec_of(3 * ROWS_PER_LAYOUT + 10))


def test_parameters_are_spread_over_their_ranges(layouts: list[Layout]) -> None:
    ranges = {
        "clock_sigma_ns": (20, 1000, True),
        "nlos_mean_ns": (100, 2000, True),
        "area_margin_km": (0.13 * 20, 0.13 * 400, True),
        "path_loss_exponent": (2.8, 4.8, False),
        "shadowing_link_db": (3, 8, False),
        "nlos_probability": (0, 0.3, False),
    }
    assert set(ranges) == set(DRAWN_PARAMETERS)
    for name, (low, high, by_factor) in ranges.items():
        drawn = np.array([getattr(layout.scenario, name) for layout in layouts])
        assert drawn.min() >= low
        assert drawn.max() <= high
        if name == "nlos_probability":
            assert np.mean(drawn == 0) == pytest.approx(0.1, abs=0.05)
            drawn = drawn[drawn > 0]
        scale = np.log if by_factor else np.asarray
        share = (scale(drawn) - scale(low)) / (scale(high) - scale(low))
        # Large areas in hard terrain are drawn again.
        assert np.histogram(share, 4, (0, 1))[0].min() > 0.17 * len(share)
    # All others are the scenario's.
    kept = [layout.scenario.model_dump(exclude=set(ranges)) for layout in layouts]
    assert kept == [DEFAULT.model_dump(exclude=set(ranges))] * len(layouts)


def test_networks_have_4_to_15_sites_of_which_some_have_no_timing(layouts: list[Layout]) -> None:
    sites = np.array([len(layout.network.sites) for layout in layouts])
    assert set(sites) == set(range(4, 16))
    timed = np.array([layout.network.has_timing.sum() for layout in layouts])
    assert np.mean(timed < sites) == pytest.approx(0.27, abs=0.06)
    # From few sites to all of them.
    share = (timed / sites)[timed < sites]
    assert np.histogram(share, 3, (0, 1))[0].min() > 0.2 * len(share)
    assert np.mean(timed == 0) > 0.01
    for layout in layouts:
        box = layout.network.service_area(0.0)
        side_m = layout.scenario.area_margin_m / 0.13
        assert max(box.east_max_m - box.east_min_m, box.north_max_m - box.north_min_m) < 1.05 * side_m
    lat, lon = np.array([(layout.network.frame.lat, layout.network.frame.lon) for layout in layouts]).T
    assert np.abs(lat).max() < 62
    assert np.ptp(lat) > 100
    assert np.ptp(lon) > 300


def test_a_layout_is_told_by_scenario_seed_and_number() -> None:
    one = random_layout(DEFAULT, 7, 3)
    assert random_layout(DEFAULT, 7, 3) == one
    assert one.network.name == "layout-3"
    others = [random_layout(DEFAULT, 8, 3), random_layout(DEFAULT, 7, 4)]
    assert all(other.network.digest != one.network.digest for other in others)
    # A description of it is a valid network and scenario, which copies are not checked for.
    assert type(one.network).model_validate(one.network.model_dump()) == one.network
    assert Scenario.model_validate(one.scenario.model_dump()) == one.scenario


def test_layouts_of_a_hard_scenario_are_those_that_hear(layouts: list[Layout]) -> None:
    """With many detections asked for, and little power, the drawn areas are small enough."""
    weak = Scenario(tx_power_w=(1.0,), tx_power_share=(1.0,), tx_antenna_gain_dbi=-10, min_detections=6)
    spec = spec_of(8 * ROWS_PER_LAYOUT, scenario=weak)
    chunk = simulate_chunk(spec, 0)
    assert len(chunk.batch) / chunk.candidates > 0.3
    assert chunk.batch.num_detections.min() >= 6
    hard = [random_layout(weak, 7, number).scenario for number in range(60)]
    mean_km = [np.mean([one.area_margin_km for one in some]) for some in (hard, [x.scenario for x in layouts])]
    assert mean_km[0] < 0.8 * mean_km[1]
    with pytest.raises(ValueError, match=r"^the scenario rejects too many transmitters: none of 1000 random layouts"):
        random_layout(weak.model_copy(update={"tx_antenna_gain_dbi": -20, "detection_threshold_db": 40}), 0, 0)


def test_each_row_is_what_its_own_layout_measures(batch: Samples) -> None:
    spec = spec_of(len(batch))
    found = list(spec.by_layout(batch))
    assert [len(rows) for _, rows in found] == [ROWS_PER_LAYOUT] * 3 + [10]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in found]), np.arange(len(batch)))
    assert [layout for layout, _ in found] == [random_layout(DEFAULT, 0, number) for number in range(4)]
    for layout, rows in found:
        network, scenario = layout.network, layout.scenario
        seen = batch.take(rows).of_sites(len(network.sites))
        en_m = seen.tx_en_m(network.frame)
        assert network.service_area(scenario.area_margin_m + 1).contains(en_m).all()
        distance_m = Geometry(network, seen.tx_altitude_m).ranges_m(en_m)[0]
        error_ns = np.where(seen.toa_present, seen.toa_ns - distance_m / 0.299792458, np.nan)
        timed = seen.toa_present.sum(1) > 1
        error_ns = error_ns[timed] - np.nanmedian(error_ns[timed], axis=1, keepdims=True)
        assert not timed.any() or np.nanmedian(np.abs(error_ns / seen.toa_sigma_ns[timed].clip(1))) < 1.5
        assert not (seen.toa_present & ~network.has_timing).any()
        # The columns beyond its sites are empty.
        beyond = batch.signal_present[rows][:, len(network.sites) :]
        assert not beyond.any()
        assert not batch.toa_present[rows][:, len(network.sites) :].any()
    assert batch.num_sites == spec.num_sites == MOST_RANDOM_SITES


def test_by_layout_takes_any_samples_in_any_order(batch: Samples) -> None:
    spec = spec_of(len(batch))
    part = batch.take(np.random.default_rng(0).permutation(len(batch))[:300])
    for number, (layout, rows) in enumerate(spec.by_layout(part)):
        assert layout == spec.layout(number)
        assert (np.diff(rows) > 0).all()
        assert set(part.sample_index[rows] // ROWS_PER_LAYOUT) == {number}
    own = DatasetSpec(NORTH_WEST_ITALY, DEFAULT, len(batch), 0)
    ((layout, rows),) = own.by_layout(part)
    assert layout == Layout(NORTH_WEST_ITALY, DEFAULT)
    np.testing.assert_array_equal(rows, np.arange(300))
    assert list(own.by_layout(part.take(slice(0, 0)))) == []


def test_chunks_may_come_in_any_order_and_a_longer_dataset_begins_with_the_same_samples(batch: Samples) -> None:
    long = spec_of(CHUNK_SIZE + 700)
    backwards = list(simulate_chunks(long, [1, 0]))[::-1]
    whole = Samples.concatenate([chunk.batch for chunk in backwards])
    assert samples_digest([whole]) == samples_digest([simulate(long)])
    assert samples_digest([whole.take(slice(0, len(batch)))]) == samples_digest([batch])
    np.testing.assert_array_equal(whole.sample_index, np.arange(CHUNK_SIZE + 700))
    metrics = quality_metrics(whole, backwards)
    assert metrics["candidates"] == len(whole) + metrics["rejected_few_detections"]
    assert metrics["acceptance_rate"] > 0.9
    assert np.bincount(whole.split, minlength=3)[Split.test] == metrics["test_count"] > 1000
    # Another seed has other networks and other transmitters.
    assert not np.isin(simulate(spec_of(100, seed=1)).tx_lat, whole.tx_lat).any()


def test_no_transmitter_stands_where_one_of_an_own_network_does(batch: Samples) -> None:
    """In parts of the area: the same random numbers are not drawn for both kinds of datasets."""

    def east_share(layout: Layout, samples: Samples) -> np.ndarray:
        area = layout.network.service_area(layout.scenario.area_margin_m)
        return (samples.tx_en_m(layout.network.frame)[:, 0] - area.east_min_m) / (area.east_max_m - area.east_min_m)

    own = DatasetSpec(NORTH_WEST_ITALY, DEFAULT, 512, 0)
    layout, rows = next(spec_of(len(batch)).by_layout(batch))
    shares = [east_share(own.layout(0), simulate(own)), east_share(layout, batch.take(rows))]
    assert abs(np.corrcoef(shares)[0, 1]) < 0.2


def test_its_description_makes_the_spec_again() -> None:
    spec = spec_of(50)
    description = json.loads(json.dumps(spec.description()))
    assert (description["layouts"], description["network"]) == ("random", None)
    again = DatasetSpec.of_description(description)
    assert again == spec
    assert again.dataset_id == spec.dataset_id
    assert (spec.network_name, len(spec.network_digest)) == ("random layouts", 64)
    with pytest.raises(ValueError, match=r"^its random layouts are those of another version of this package$"):
        DatasetSpec.of_description(description | {"network_digest": "0" * 64})
    own = DatasetSpec(NORTH_WEST_ITALY, DEFAULT, 50, 0)
    assert (own.network_name, own.network_digest) == (NORTH_WEST_ITALY.name, NORTH_WEST_ITALY.digest)
    # Datasets of the first generator say nothing of layouts.
    first = {name: value for name, value in own.description().items() if name != "layouts"}
    assert DatasetSpec.of_description(first | {"generator_version": 1}) == own


@pytest.mark.parametrize("name", DRAWN_PARAMETERS)
def test_a_parameter_that_is_drawn_cannot_be_given(name: str) -> None:
    default = Scenario.model_fields[name].default
    scenario = Scenario.model_validate({name: 1.01 * default})
    with pytest.raises(ValueError, match=f"^layouts: random draws {name} for each layout, so it must be left at"):
        spec_of(50, scenario=scenario)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^layouts: random takes no network, as its networks are drawn$"):
        DatasetSpec(NORTH_WEST_ITALY, DEFAULT, 50, 0, Layouts.random)
    with pytest.raises(ValueError, match=r"^layouts: own needs a network$"):
        DatasetSpec(None, DEFAULT, 50, 0)
    with pytest.raises(ValueError, match=r"^min_detections \(16\) must not exceed the widest random network's 15 "):
        spec_of(50, scenario=Scenario(min_detections=16))
    assert replace(spec_of(50), scenario=Scenario(min_detections=15)).layout(0).network.sites[14:]
