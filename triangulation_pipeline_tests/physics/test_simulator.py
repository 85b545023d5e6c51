import re
import uuid
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import pymap3d
import pytest
from pydantic import ValidationError
from scipy.stats import kstest, norm

from triangulation_pipeline.frame import LocalFrame
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Timing, random_network
from triangulation_pipeline.physics.dataset_spec import CHUNK_SIZE, GENERATOR_VERSION, DatasetSpec
from triangulation_pipeline.physics.propagation import noise_floor_dbm, path_loss_function
from triangulation_pipeline.physics.quality import quality_metrics
from triangulation_pipeline.physics.scenario import PRESETS, PathLossModel, Preset, Scenario
from triangulation_pipeline.physics.simulator import (
    Chunk,
    simulate,
    simulate_chunk,
    simulate_chunks,
)
from triangulation_pipeline.physics.timing import toa_sigma_ns
from triangulation_pipeline.samples import Samples, samples_digest

DEFAULT = PRESETS[Preset.default]


def spec_of(scenario: Scenario = DEFAULT, n: int = 2 * CHUNK_SIZE + 100, seed: int = 0) -> DatasetSpec:
    return DatasetSpec(NORTH_WEST_ITALY, scenario, n, seed)


def digest_of(spec: DatasetSpec) -> str:
    return samples_digest(chunk.batch for chunk in simulate_chunks(spec))


def test_chunks_may_come_in_any_order_and_from_other_processes() -> None:
    spec = spec_of()
    in_order = digest_of(spec)
    backwards = list(simulate_chunks(spec, reversed(range(spec.num_chunks))))[::-1]
    assert samples_digest(chunk.batch for chunk in backwards) == in_order
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        elsewhere = list(pool.map(partial(simulate_chunk, spec), range(spec.num_chunks)))
    assert samples_digest(chunk.batch for chunk in elsewhere) == in_order


def test_a_longer_dataset_begins_with_the_same_samples() -> None:
    short, long = spec_of(n=CHUNK_SIZE + 50), spec_of()
    grown = simulate(long).take(slice(0, CHUNK_SIZE + 50))
    assert samples_digest([grown]) == digest_of(short)
    assert short.sample_namespace == long.sample_namespace
    assert short.dataset_id != long.dataset_id


def test_seed_and_scenario_are_honoured() -> None:
    specs = [spec_of(n=50), spec_of(n=50, seed=1), spec_of(Scenario(path_loss_exponent=3.6), n=50)]
    assert len({digest_of(spec) for spec in specs}) == 3
    assert len({spec.dataset_id for spec in specs}) == 3
    assert digest_of(specs[0]) == digest_of(spec_of(n=50, seed=0))
    # Not by the ids alone: another seed sends from other places.
    places = [simulate_chunk(spec, 0).batch.tx_lat for spec in specs]
    assert not np.isin(places[1], places[0]).any()
    np.testing.assert_array_equal(places[2], places[0])


@pytest.mark.parametrize(
    "change",
    [
        {"network": random_network(7, seed=0)},
        {"scenario": Scenario(nlos_mean_ns=501)},
        {"seed": 1},
        {"num_samples": 51},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_dataset_is_told_by_network_scenario_seed_and_length(change: dict) -> None:
    spec = spec_of(n=50)
    other = replace(spec, **change)
    assert other.dataset_id != spec.dataset_id
    # A longer dataset has the same samples, anything else others.
    assert (other.sample_namespace == spec.sample_namespace) == ("num_samples" in change)
    assert replace(spec).dataset_id == spec.dataset_id


def test_the_identity_of_a_dataset_stays_what_it_was() -> None:
    """An equal dataset that is stored is found by it. It names everything the rows depend on."""
    spec = spec_of(n=50)
    assert spec.description() == {
        "generator_version": GENERATOR_VERSION,
        "layouts": "own",
        "network_digest": NORTH_WEST_ITALY.digest,
        "scenario": DEFAULT.model_dump(mode="json", exclude_none=True),
        "seed": 0,
        "num_samples": 50,
        "network": NORTH_WEST_ITALY.model_dump(mode="json"),
    }
    assert spec.dataset_id == "c469eb9d-57ab-526f-ae41-cad08437a244"
    assert str(spec.sample_namespace) == "9d774a7c-14fb-5063-af97-f3cc8b4f5062"


def test_samples_are_numbered_through_and_told_by_their_number() -> None:
    spec = spec_of(n=CHUNK_SIZE + 50)
    chunks = list(simulate_chunks(spec))
    assert [len(chunk.batch) for chunk in chunks] == [CHUNK_SIZE, 50]
    batch = Samples.concatenate([chunk.batch for chunk in chunks])
    np.testing.assert_array_equal(batch.sample_index, np.arange(CHUNK_SIZE + 50))
    for index in (0, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 49):
        assert batch.sample_id[index].tobytes() == uuid.uuid5(spec.sample_namespace, str(index)).bytes
    assert np.unique(batch.tx_lat).size == len(batch)
    assert [chunk.batch.sample_index[0] for chunk in simulate_chunks(spec, [1, 0])] == [CHUNK_SIZE, 0]
    assert (spec_of(n=CHUNK_SIZE).num_chunks, spec_of(n=1).num_chunks, spec.num_chunks) == (1, 1, 2)


@pytest.mark.parametrize(
    ("sites", "change", "counts"),
    [
        (7, {}, (8192, 0, 0, 56415, 56415, 6410)),
        (7, {"path_loss_exponent": 4.5}, (9962, 1770, 0, 38368, 38368, 2516)),
        (
            5,
            {"path_loss": "egli", "min_detections": 4, "area_margin_km": 2.0, "knife_edge_probability": 0.3},
            (100356, 75925, 16239, 33774, 33774, 2981),
        ),
        (3, {"path_loss_exponent": 6.0, "features": "rss", "area_margin_km": 10.0}, (34625, 26433, 0, 24576, 0, 0)),
    ],
    ids=["default", "valley", "egli", "hardly heard"],
)
def test_equal_specifications_give_the_rows_they_always_gave(sites: int, change: dict, counts: tuple[int, ...]) -> None:
    """If they do not, GENERATOR_VERSION must be raised: stored datasets would have the same id as other new ones.

    Counts and microseconds, since numbers may differ in their last digits from machine to machine.
    """
    network = NORTH_WEST_ITALY if sites == 7 else random_network(sites, seed=0, extent_km=80)
    chunk = simulate_chunk(DatasetSpec(network, Scenario.model_validate(change), CHUNK_SIZE, 0), 0)
    batch = chunk.batch
    assert (
        chunk.candidates,
        chunk.rejected_few_detections,
        chunk.rejected_path_loss_range,
        batch.signal_present.sum(),
        batch.toa_present.sum(),
        round(batch.toa_ns[-1].sum() / 1000),
    ) == counts


@pytest.mark.parametrize(
    ("exponent", "three", "four", "mean", "good", "rms", "median"),
    [
        (3.2, 1.00, 1.00, 7.0, 0.89, 29, 22),
        (3.5, 1.00, 1.00, 6.9, 0.88, 33, 24),
        (4.0, 0.99, 0.96, 6.1, 0.82, 45, 32),
        (4.5, 0.82, 0.67, 4.2, 0.64, 63, 45),
    ],
)
def test_detections_and_bounds_are_those_of_the_reference_table(
    exponent: float, three: float, four: float, mean: float, good: float, rms: float, median: float
) -> None:
    """The table in docs/physics.md, "Noise and detection": shares of all transmitters, without gain offsets."""
    scenario = Scenario(path_loss_exponent=exponent, gain_offset_sigma_db=0, site_bias_sigma_ns=0, min_detections=1)
    chunk = simulate_chunk(spec_of(scenario, n=CHUNK_SIZE), 0)
    heard, all_sent = chunk.batch.num_detections, chunk.candidates
    assert (heard >= 3).sum() / all_sent == pytest.approx(three, abs=0.02)
    assert (heard >= 4).sum() / all_sent == pytest.approx(four, abs=0.02)
    assert heard.sum() / all_sent == pytest.approx(mean, abs=0.12)
    good_rows = chunk.batch.gdop < 5
    # Of the transmissions heard by at least three.
    assert good_rows.sum() / (heard >= 3).sum() == pytest.approx(good, abs=0.025)
    bound_m = chunk.batch.crlb_m[good_rows]
    assert np.sqrt(np.mean(bound_m**2)) == pytest.approx(rms, rel=0.06)
    assert np.median(bound_m) == pytest.approx(median, rel=0.06)


def test_the_columns_follow_the_measurement_model() -> None:
    scenario = PRESETS[Preset.line_of_sight]
    batch = simulate_chunk(spec_of(scenario, n=CHUNK_SIZE), 0).batch
    power_dbm, count = np.unique(batch.tx_power_dbm, return_counts=True)
    np.testing.assert_allclose(power_dbm, scenario.tx_power_dbm, rtol=1e-6)
    np.testing.assert_allclose(count / len(batch), scenario.tx_power_share, atol=0.02)
    floor_dbm = batch.power_dbm - batch.snr_db
    assert np.ptp(floor_dbm) < 1e-4
    area = NORTH_WEST_ITALY.service_area(20e3)
    en_m = NORTH_WEST_ITALY.frame.enu_m(batch.tx_lat, batch.tx_lon, scenario.tx_height_m)
    assert en_m[:, 0].min() >= area.east_min_m - 1
    assert en_m[:, 1].max() <= area.north_max_m + 1
    # Without delays the arrival times differ from the ranges by their stated noise.
    distance_m = np.linalg.norm(en_m[:, None] - NORTH_WEST_ITALY.site_enu_m, axis=-1)
    error_ns = batch.toa_ns - distance_m / 0.299792458
    every = batch.toa_present.all(1)
    error_ns, sigma_ns = error_ns[every], batch.toa_sigma_ns[every]
    pair = (error_ns[:, 0] - error_ns[:, 6]) / np.hypot(sigma_ns[:, 0], sigma_ns[:, 6])
    assert pair.mean() == pytest.approx(0, abs=0.05)
    assert pair.std() == pytest.approx(1, abs=0.04)


# Everybody hears each transmission, so that scenarios that differ in one number draw the same rows.
LOUD = Scenario(
    path_loss=PathLossModel.free_space,
    tx_power_w=(10_000,),
    tx_power_share=(1,),
    shadowing_common_db=0,
    shadowing_link_db=0.5,
    gain_offset_sigma_db=0,
    detection_threshold_db=-20,
    detection_width_db=0.01,
    clock_sigma_ns=1,
    site_bias_sigma_ns=0,
    nlos_probability=0,
)


def sent(network: ReceiverNetwork = NORTH_WEST_ITALY, n: int = 2000, **change: object) -> Samples:
    scenario = Scenario.model_validate(LOUD.model_dump() | change)
    return simulate_chunk(DatasetSpec(network, scenario, n, 0), 0).batch


def with_sites(**changes: list) -> ReceiverNetwork:
    """The default network with other values of its sites' fields, one a site."""
    sites = NORTH_WEST_ITALY.model_dump()["sites"]
    for field, values in changes.items():
        for site, value in zip(sites, values, strict=True):
            site[field] = value
    return ReceiverNetwork.model_validate({"name": "changed", "sites": sites})


def distances_m(batch: Samples, height_m: float) -> np.ndarray:
    """Straight distances (n, 7) through earth-centred coordinates."""
    sent_m = np.stack(pymap3d.geodetic2ecef(batch.tx_lat, batch.tx_lon, height_m), axis=-1)
    site_m = [pymap3d.geodetic2ecef(s.lat, s.lon, s.altitude_m) for s in NORTH_WEST_ITALY.sites]
    return np.linalg.norm(sent_m[:, None] - np.array(site_m), axis=-1)


def power_change_db(**change: object) -> np.ndarray:
    """By how much the received levels (n, 7) differ where the scenario does."""
    return sent(**change).power_dbm.astype(float) - sent().power_dbm


def test_levels_are_power_and_gains_less_the_path_loss() -> None:
    batch = sent()
    assert batch.signal_present.all()
    free_space_db = 32.45 + 20 * np.log10(145) + 20 * np.log10(distances_m(batch, 2.0) / 1e3)
    error_db = batch.power_dbm - (70 + 2 + 2 - free_space_db)
    assert error_db.mean() == pytest.approx(0, abs=0.02)
    assert error_db.std() == pytest.approx(0.5, rel=0.02)  # the links' shadowing
    assert np.abs(np.corrcoef(error_db.T) - np.eye(7)).max() < 0.1
    assert batch.tx_power_dbm.tolist() == [70] * 2000


@pytest.mark.parametrize(
    ("change", "db"),
    [
        ({"tx_power_w": (100,)}, -20),
        ({"tx_antenna_gain_dbi": 5}, 3),
        ({"rx_antenna_gain_dbi": -1}, -3),
        ({"frequency_mhz": 1450.0}, -20),
        ({"path_loss": "plane_earth", "rx_height_m": 20}, 20 * np.log10(2)),
        ({"path_loss": "plane_earth", "tx_height_m": 8}, 20 * np.log10(4)),
        ({"noise_bandwidth_khz": 100.0}, 0),
        ({"man_made_noise": "city"}, 0),
    ],
    ids=str,
)
def test_levels_follow_powers_gains_frequency_and_heights(change: dict, db: float) -> None:
    got_db = power_change_db(**change)
    if "path_loss" in change:
        got_db -= power_change_db(path_loss="plane_earth")
    # Of a hundred links one may be nearer than the break of plane earth.
    assert np.percentile(np.abs(got_db - db), 99) < 0.02


@pytest.mark.parametrize("exponent", [2.0, 3.5, 6.0])
def test_levels_fall_by_the_exponent_beyond_a_kilometre(exponent: float) -> None:
    got_db = power_change_db(path_loss="log_distance", path_loss_exponent=exponent)
    beyond = np.log10(np.maximum(distances_m(sent(), 2.0) / 1e3, 1))
    np.testing.assert_allclose(got_db, -10 * (exponent - 2) * beyond, atol=1e-3)


def test_arrival_times_are_of_the_transmitters_height() -> None:
    for height_m in (2.0, 300.0):
        batch = sent(tx_height_m=height_m)
        error_ns = batch.toa_ns - distances_m(batch, height_m) / 0.299792458
        error_ns -= error_ns.mean(1, keepdims=True)
        # One nanosecond each, one of seven degrees of freedom for the time of emission.
        assert np.sqrt(np.mean(error_ns**2) * 7 / 6) == pytest.approx(1, rel=0.02)


def test_an_altitude_of_its_own_moves_the_arrival_times_and_no_level() -> None:
    """Heights over the ground are for the path-loss models, altitudes over the ellipsoid for the ranges."""
    batch, low = sent(tx_altitude_m=9000.0), sent()
    assert set(batch.tx_altitude_m) == {9000.0}
    assert set(low.tx_altitude_m) == {2.0}
    error_ns = batch.toa_ns - distances_m(batch, 9000.0) / 0.299792458
    error_ns -= error_ns.mean(1, keepdims=True)
    assert np.sqrt(np.mean(error_ns**2) * 7 / 6) == pytest.approx(1, rel=0.02)
    np.testing.assert_allclose(batch.tx_en_m(NORTH_WEST_ITALY.frame), low.tx_en_m(NORTH_WEST_ITALY.frame), atol=1e-3)
    # Losses by Egli's rule depend on the height over the ground, and on the altitude through the range alone.
    changed_db = power_change_db(path_loss="plane_earth", tx_altitude_m=2.0) - power_change_db(path_loss="plane_earth")
    np.testing.assert_array_equal(changed_db, 0)


def test_transmissions_are_a_second_apart_from_2000_on() -> None:
    spec = spec_of(n=CHUNK_SIZE + 50)
    last = simulate_chunk(spec, 1).batch
    assert np.datetime64(int(last.time_ns[0]), "ns") == np.datetime64("2000-01-01") + np.timedelta64(CHUNK_SIZE, "s")
    assert set(np.diff(last.time_ns)) == {10**9}


def test_transmissions_begin_at_any_time_of_a_millisecond() -> None:
    batch = sent()
    emission_ns = (batch.toa_ns - distances_m(batch, 2.0) / 0.299792458).mean(1)
    assert -5 < emission_ns.min() < 5e3
    assert 995e3 < emission_ns.max() < 1e6 + 5
    assert emission_ns.std() == pytest.approx(1e6 / np.sqrt(12), rel=0.02)


@pytest.mark.parametrize("part", ["clock_sigma_ns", "site_bias_sigma_ns"])
def test_arrival_times_scatter_by_their_stated_deviation(part: str) -> None:
    """What calibration leaves of a bias is drawn for each transmission, and told like other noise."""
    far = sent(**{part: 100_000})
    usual = sent()
    draw = (far.toa_ns - usual.toa_ns) / (far.toa_sigma_ns.astype(float) - usual.toa_sigma_ns)
    assert draw.mean() == pytest.approx(0, abs=0.03)
    assert draw.std() == pytest.approx(1, rel=0.02)
    assert np.abs(np.corrcoef(draw.T) - np.eye(7)).max() < 0.1
    np.testing.assert_allclose(usual.toa_sigma_ns, toa_sigma_ns(LOUD, usual.snr_db), rtol=1e-4)


@pytest.mark.parametrize(("probability", "mean_ns"), [(0.1, 500.0), (0.9, 20_000.0)])
def test_a_share_of_the_links_is_late(probability: float, mean_ns: float) -> None:
    excess_ns = sent(nlos_probability=probability, nlos_mean_ns=mean_ns).toa_ns - sent().toa_ns
    late = excess_ns > 1e-6
    np.testing.assert_allclose(excess_ns[~late], 0, atol=1e-6)
    assert late.mean() == pytest.approx(probability, abs=0.01)
    assert late.std(0) == pytest.approx(np.sqrt(probability * (1 - probability)), abs=0.03)
    # Exponential: as wide as its mean.
    assert excess_ns[late].mean() == pytest.approx(mean_ns, rel=0.06)
    assert excess_ns[late].std() == pytest.approx(mean_ns, rel=0.08)
    assert np.abs(np.corrcoef(late.T) - np.eye(7)).max() < 0.1


def test_common_shadowing_is_one_draw_a_transmission() -> None:
    got_db = power_change_db(shadowing_common_db=8)
    np.testing.assert_allclose(got_db, np.broadcast_to(got_db[:, :1], (2000, 7)), atol=1e-3)
    assert got_db[:, 0].mean() == pytest.approx(0, abs=0.5)
    assert got_db[:, 0].std() == pytest.approx(8, rel=0.04)


@pytest.mark.parametrize(
    ("change", "sigma_db"),
    [({"shadowing_link_db": 5.5}, 5.5), ({"gain_offset_sigma_db": 5}, np.hypot(5, 0.5))],
    ids=str,
)
def test_shadowing_and_what_is_left_of_the_gain_are_drawn_for_each_link(change: dict, sigma_db: float) -> None:
    got_db = power_change_db(**change)
    assert got_db.mean() == pytest.approx(0, abs=0.15)
    assert got_db.std(0) == pytest.approx(sigma_db - 0.5, rel=0.05)
    assert np.abs(np.corrcoef(got_db.T) - np.eye(7)).max() < 0.1


def test_gains_of_the_network_file_add_to_the_levels() -> None:
    measured = [3.0, -3.0, 0.0, 30.0, -30.0, 1.0, 2.0]
    batch, usual = sent(with_sites(gain_offset_db=measured)), sent()
    for column in ("power_dbm", "snr_db"):
        got_db = getattr(batch, column) - getattr(usual, column)
        np.testing.assert_allclose(got_db, np.broadcast_to(measured, (2000, 7)), atol=1e-3)


def test_each_site_has_its_noise_floor() -> None:
    figures_db = [0.0, 5.5, 10.0, 15.0, 20.0, 25.0, 30.0]
    network = with_sites(noise_figure_db=figures_db)
    floor_dbm = noise_floor_dbm(LOUD, figures_db)
    batch = sent(network)
    np.testing.assert_allclose(batch.power_dbm - batch.snr_db, np.broadcast_to(floor_dbm, (2000, 7)), atol=1e-4)
    # A site that detects nothing gives its floor, and no more.
    batch = sent(network, path_loss="log_distance", path_loss_exponent=6, detection_threshold_db=0, min_detections=1)
    silent = ~batch.signal_present
    assert silent.any(0).all()
    for i in range(7):
        np.testing.assert_allclose(batch.power_dbm[silent[:, i], i], floor_dbm[i], rtol=1e-6)
    for column in (batch.snr_db, batch.frequency_offset_hz, batch.toa_ns, batch.toa_sigma_ns, batch.toa_present):
        assert (column[silent] == 0).all()


def detected_and_snr(**change: object) -> tuple[np.ndarray, np.ndarray]:
    """Which links detect, and the SNR of all of them, known from the same transmissions at a threshold of -20 dB."""
    weak = {"path_loss": "log_distance", "path_loss_exponent": 3.2, "tx_power_w": (1.0,), "min_detections": 1}
    all_detected, batch = sent(n=CHUNK_SIZE, **weak), sent(n=CHUNK_SIZE, **weak | change)
    _, was, now = np.intersect1d(all_detected.tx_lat, batch.tx_lat, return_indices=True)
    assert len(was) > 6000
    assert all_detected.signal_present.all()
    return batch.signal_present[now], all_detected.snr_db[was]


def test_half_of_the_signals_are_detected_at_the_threshold_and_most_above_it() -> None:
    detected, snr_db = detected_and_snr(detection_threshold_db=20.0, detection_width_db=3.0)
    for low_db, high_db in ((11, 14), (14, 17), (17, 19), (19, 21), (21, 23), (23, 26), (26, 29)):
        those = (snr_db > low_db) & (snr_db < high_db)
        assert detected[those].mean() == pytest.approx(norm.cdf((snr_db[those] - 20) / 3).mean(), abs=0.02)


def test_a_narrow_transition_is_a_step_at_the_threshold() -> None:
    detected, snr_db = detected_and_snr(detection_threshold_db=20.0, detection_width_db=0.01)
    np.testing.assert_array_equal(detected[snr_db > 20.1], True)
    np.testing.assert_array_equal(detected[snr_db < 19.9], False)
    assert 0.3 < detected.mean() < 0.99


@pytest.mark.parametrize("least", [2, 5, 7])
def test_transmissions_that_too_few_detect_are_left_out(least: int) -> None:
    scenario = DEFAULT.model_copy(update={"path_loss_exponent": 4.5, "min_detections": 1})
    everything = simulate_chunk(spec_of(scenario, n=CHUNK_SIZE), 0)
    chunk = simulate_chunk(spec_of(scenario.model_copy(update={"min_detections": least}), n=300), 0)
    heard = everything.batch.num_detections >= least
    np.testing.assert_array_equal(chunk.batch.tx_lat, everything.batch.tx_lat[heard][:300])
    np.testing.assert_array_equal(chunk.batch.power_dbm, everything.batch.power_dbm[heard][:300])
    assert chunk.rejected_few_detections == chunk.candidates - 300
    assert chunk.rejected_path_loss_range == 0
    # Beside those, only transmissions that nobody heard were looked at.
    passed_over = np.flatnonzero(heard)[299] + 1 - 300
    assert passed_over <= chunk.rejected_few_detections <= passed_over + everything.rejected_few_detections


@pytest.mark.parametrize(
    ("model", "low_km", "high_km", "extent_km"),
    [(PathLossModel.egli, 1.6, 80.5, 90), (PathLossModel.hata, 1.0, 20.0, 18)],
)
def test_links_outside_the_range_of_the_path_loss_are_left_out(
    model: PathLossModel, low_km: float, high_km: float, extent_km: float
) -> None:
    network = random_network(4, seed=1, extent_km=extent_km)
    change = {"frequency_mhz": 435.0, "rx_height_m": 30.0, "area_margin_km": 3.0}
    free = simulate_chunk(
        DatasetSpec(network, Scenario.model_validate(LOUD.model_dump() | change), CHUNK_SIZE, 0), 0
    ).batch
    scenario = Scenario.model_validate(LOUD.model_dump() | change | {"path_loss": model})
    chunk = simulate_chunk(DatasetSpec(network, scenario, 1000, 0), 0)
    en_m = network.frame.enu_m(free.tx_lat, free.tx_lon, 2.0)
    distance_km = np.linalg.norm(en_m[:, None] - network.site_enu_m, axis=-1) / 1e3
    inside = ((distance_km >= low_km) & (distance_km <= high_km)).all(1)
    assert (distance_km[:1000].min(1) < low_km).any()
    assert (distance_km[:1000].max(1) > high_km).any()
    np.testing.assert_array_equal(chunk.batch.tx_lat, free.tx_lat[inside][:1000])
    assert chunk.candidates == np.flatnonzero(inside)[999] + 1
    assert chunk.rejected_path_loss_range == chunk.candidates - 1000
    assert chunk.rejected_few_detections == 0
    loss_db = path_loss_function(scenario)(distance_km[inside][:1000])
    free_space_db = path_loss_function(LOUD.model_copy(update=change))(distance_km[inside][:1000])
    got_db = chunk.batch.power_dbm.astype(float) - free.power_dbm[inside][:1000]
    np.testing.assert_allclose(got_db, free_space_db - loss_db, atol=0.01)


def test_candidates_that_are_out_of_range_are_not_counted_as_unheard() -> None:
    network = random_network(4, seed=1, extent_km=90)
    scenario = Scenario(path_loss=PathLossModel.egli, area_margin_km=3, min_detections=4)
    whole, part = (simulate_chunk(DatasetSpec(network, scenario, n, 0), 0) for n in (CHUNK_SIZE, 10))
    for chunk in (whole, part):
        assert chunk.rejected_path_loss_range > 0
        assert chunk.rejected_few_detections > 0
        assert len(chunk.batch) + chunk.rejected_few_detections + chunk.rejected_path_loss_range == chunk.candidates
    # Out of range are the same candidates, whether they are heard or not.
    heard = simulate_chunk(DatasetSpec(network, scenario.model_copy(update={"min_detections": 1}), CHUNK_SIZE, 0), 0)
    assert whole.rejected_path_loss_range / whole.candidates == pytest.approx(
        heard.rejected_path_loss_range / heard.candidates, rel=0.05
    )
    assert whole.candidates > heard.candidates


def test_an_obstacle_weakens_its_share_of_the_links() -> None:
    # The obstacles are drawn before the shadowing: two scenarios with obstacles draw alike, none and some do not.
    some = {"knife_edge_probability": 0.3, "knife_edge_height_m": 1.0}
    weaker_db = (sent(**some).power_dbm - sent(**some | {"knife_edge_height_m": 2000.0}).power_dbm).astype(float)
    behind = weaker_db > 0.01
    assert (weaker_db > -1e-3).all()
    assert behind.mean() == pytest.approx(0.3, abs=0.01)
    # Nearly no obstacle, by its height and by its share.
    for low in (some, {"knife_edge_probability": 1e-9, "knife_edge_height_m": 50.0}):
        batch = sent(**low)
        free_space_db = 32.45 + 20 * np.log10(145) + 20 * np.log10(distances_m(batch, 2.0) / 1e3)
        loss_db = 74 - batch.power_dbm - free_space_db
        assert loss_db.mean() == pytest.approx(0.3 * 6.1 if low is some else 0, abs=0.1)


def test_obstacles_are_as_high_as_was_said_in_the_mean() -> None:
    batch = sent(knife_edge_probability=1, knife_edge_height_m=400.0)
    distance_m = distances_m(batch, 2.0)
    free_space_db = 32.45 + 20 * np.log10(145) + 20 * np.log10(distance_m / 1e3)
    # J(v) = 6.9 + 20 lg(sqrt(x^2 + 1) + x) solved for x = v - 0.1.
    ratio = 10 ** ((74 - batch.power_dbm - free_space_db - 6.9) / 20)
    v = (ratio - 1 / ratio) / 2 + 0.1
    height_m = v / np.sqrt(8 / (299.792458 / 145 * distance_m))
    assert height_m.mean() == pytest.approx(400, rel=0.04)
    assert height_m.std() == pytest.approx(400, rel=0.06)
    assert np.abs(np.corrcoef(height_m.T) - np.eye(7)).max() < 0.1


@pytest.mark.parametrize(("power_w", "share"), [((25.0, 5.0), (0.3, 0.7)), ((1.0, 2.0, 4.0), (0.5, 0.0, 0.5))])
def test_transmitters_are_of_the_power_classes_by_their_shares(
    power_w: tuple[float, ...], share: tuple[float, ...]
) -> None:
    batch = sent(tx_power_w=power_w, tx_power_share=share, n=CHUNK_SIZE)
    for power, part in zip(power_w, share, strict=True):
        is_class = np.isclose(batch.tx_power_dbm, 30 + 10 * np.log10(power), atol=1e-4)
        assert is_class.mean() == pytest.approx(part, abs=0.02)
    free_space_db = 32.45 + 20 * np.log10(145) + 20 * np.log10(distances_m(batch, 2.0) / 1e3)
    assert (batch.power_dbm - (batch.tx_power_dbm[:, None] + 4 - free_space_db)).std() == pytest.approx(0.5, rel=0.02)


def test_transmitters_stand_anywhere_in_the_sites_box_and_its_margin() -> None:
    for margin_km in (0.0, 50.0):
        batch = sent(area_margin_km=margin_km, n=CHUNK_SIZE)
        en_m = NORTH_WEST_ITALY.frame.enu_m(batch.tx_lat, batch.tx_lon, 2.0)[:, :2]
        low_m = NORTH_WEST_ITALY.site_enu_m[:, :2].min(0) - margin_km * 1e3
        high_m = NORTH_WEST_ITALY.site_enu_m[:, :2].max(0) + margin_km * 1e3
        share = (en_m - low_m) / (high_m - low_m)
        assert share.min() > -1e-6
        assert share.max() < 1 + 1e-6
        for axis in (0, 1):
            assert kstest(share[:, axis], "uniform").pvalue > 0.01
        assert abs(np.corrcoef(share.T)[0, 1]) < 0.05


def test_frequency_offsets_say_nothing_of_the_position() -> None:
    batch = simulate_chunk(spec_of(n=CHUNK_SIZE), 0).batch
    every = batch.signal_present.all(1)
    offset_hz = batch.frequency_offset_hz[every].astype(float)
    # One draw a transmission, and one a receiver of each.
    assert offset_hz.mean() == pytest.approx(0, abs=6)
    assert offset_hz.mean(1).std() == pytest.approx(145, rel=0.05)
    between_hz = offset_hz[:, 0] - offset_hz[:, 1:].T
    assert between_hz.std(1) == pytest.approx(14.5 * np.sqrt(2), rel=0.05)
    for place in (batch.tx_lat[every], batch.tx_lon[every]):
        assert np.abs(np.corrcoef(place, between_hz)[0, 1:]).max() < 0.05


@pytest.mark.parametrize(("mhz", "tx_ppm", "rx_ppm"), [(145.0, 20.0, 0.0), (1000.0, 1.0, 0.1), (145.0, 0.0, 5.0)])
def test_frequency_offsets_are_parts_of_a_million(mhz: float, tx_ppm: float, rx_ppm: float) -> None:
    change = {"frequency_mhz": mhz, "tx_frequency_error_ppm": tx_ppm, "rx_frequency_error_ppm": rx_ppm}
    batch = sent(**change)
    assert batch.frequency_hz.tolist() == [round(mhz * 1e6)] * 2000
    assert batch.frequency_offset_hz.std() == pytest.approx(mhz * np.hypot(tx_ppm, rx_ppm), rel=0.04)
    within_hz = batch.frequency_offset_hz.std(1, ddof=1)
    assert np.sqrt(np.mean(within_hz**2)) == pytest.approx(mhz * rx_ppm, rel=0.04, abs=1e-3)


def fisher_information(batch: Samples, scenario: Scenario, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Information (3, 3) on east, north and emission time of the arrivals, (2, 2) of the levels: by differences."""
    lat, lon = batch.tx_lat[row], batch.tx_lon[row]
    frame, step_m = LocalFrame(lat, lon), 5.0

    def ranges_at(east_m: float, north_m: float) -> np.ndarray:
        moved = frame.geodetic(np.array([east_m, north_m]), scenario.tx_height_m)
        sent_m = np.array(pymap3d.geodetic2ecef(*moved, scenario.tx_height_m))
        sites_m = [pymap3d.geodetic2ecef(s.lat, s.lon, s.altitude_m) for s in NORTH_WEST_ITALY.sites]
        return np.linalg.norm(np.array(sites_m) - sent_m, axis=1)

    around = [ranges_at(step_m, 0), ranges_at(-step_m, 0), ranges_at(0, step_m), ranges_at(0, -step_m)]
    by_place = np.stack([around[0] - around[1], around[2] - around[3]], axis=1) / (2 * step_m)
    timed = batch.toa_present[row]
    rows = np.append(by_place[timed], np.ones((timed.sum(), 1)), axis=1)
    weight = 1 / (0.299792458 * batch.toa_sigma_ns[row, timed].astype(float)) ** 2
    heard = batch.signal_present[row]
    loss_db = [path_loss_function(scenario)(ranges_m / 1e3)[heard] for ranges_m in around]
    level = np.stack([loss_db[1] - loss_db[0], loss_db[3] - loss_db[2]], axis=1) / (2 * step_m)
    power_dbm = 30 + 10 * np.log10(scenario.tx_power_w)
    mean_dbm = np.dot(scenario.tx_power_share, power_dbm)
    common = np.dot(scenario.tx_power_share, (power_dbm - mean_dbm) ** 2) + scenario.shadowing_common_db**2
    covariance = (scenario.shadowing_link_db**2 + scenario.gain_offset_sigma_db**2) * np.eye(heard.sum()) + common
    return rows.T @ (weight[:, None] * rows), level.T @ np.linalg.inv(covariance) @ level


@pytest.mark.parametrize(
    "change",
    [{}, {"features": "rss"}, {"shadowing_link_db": 3.0, "shadowing_common_db": 1.0, "clock_sigma_ns": 5000.0}],
    ids=["default", "levels alone", "poor clocks"],
)
def test_the_stored_geometry_is_that_of_the_measurements(change: dict) -> None:
    scenario = Scenario.model_validate({"path_loss_exponent": 4.0} | change)
    batch = simulate_chunk(spec_of(scenario, n=60), 0).batch
    assert change.get("features") == "rss" or (batch.toa_present.sum(1) >= 3).sum() > 50
    for row in range(len(batch)):
        by_time, by_level = fisher_information(batch, scenario, row)
        eliminated = np.zeros((2, 2))
        if batch.toa_present[row].any():
            eliminated = by_time[:2, :2] - np.outer(by_time[:2, 2], by_time[2, :2]) / by_time[2, 2]
        bound_m = np.sqrt(np.trace(np.linalg.inv(eliminated + by_level)))
        assert batch.crlb_m[row] == pytest.approx(bound_m, rel=2e-3)
        timed = batch.toa_present[row]
        if timed.sum() < 3:
            assert np.isnan([batch.hdop[row], batch.gdop[row]]).all()
            continue
        equal = replace(batch, toa_sigma_ns=np.where(batch.toa_present, 1 / 0.299792458, 0).astype(np.float32))
        q = np.linalg.inv(fisher_information(equal, scenario, row)[0])
        assert batch.hdop[row] == pytest.approx(np.sqrt(q[0, 0] + q[1, 1]), rel=2e-3)
        assert batch.gdop[row] == pytest.approx(np.sqrt(np.trace(q)), rel=2e-3)


def test_signal_strength_scenario_and_untimed_sites_have_no_arrival_times() -> None:
    batch = simulate_chunk(spec_of(PRESETS[Preset.rss], n=100), 0).batch
    assert not batch.toa_present.any()
    assert np.isnan(batch.gdop).all()
    assert np.isfinite(batch.crlb_m).all()
    first, *others = NORTH_WEST_ITALY.sites
    mixed = ReceiverNetwork(name="m", sites=(first.model_copy(update={"timing": Timing.none}), *others))
    batch = simulate_chunk(DatasetSpec(mixed, DEFAULT, 100, 0), 0).batch
    assert not batch.toa_present[:, 0].any()
    assert batch.signal_present[:, 0].any()
    assert batch.toa_present[:, 1:].any()


def test_specification_refuses_contradictions() -> None:
    with pytest.raises(ValueError, match=r"min_detections \(8\) must not exceed the network's 7 sites"):
        spec_of(Scenario(min_detections=8))
    with pytest.raises(ValueError, match="hata holds for frequency_mhz from 150 to 1500, got 145"):
        spec_of(Scenario(path_loss=PathLossModel.hata, rx_height_m=30))
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        spec_of(n=0)
    with pytest.raises(ValueError, match=r"seed must be 0 to 2\^63 - 1, got -1"):
        spec_of(seed=-1)
    with pytest.raises(ValueError, match=r"seed must be 0 to 2\^63 - 1, got 9223372036854775808"):
        spec_of(seed=2**63)
    largest = spec_of(Scenario(min_detections=7), n=1, seed=2**63 - 1)
    assert len(simulate_chunk(largest, 0).batch) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tx_power_share": (0.5, 0.6, 0.3)}, "tx_power_share must be non-negative and sum to 1"),
        ({"tx_power_w": (5.0,)}, "tx_power_share must have one share for each"),
        ({"tx_power_w": (0.0, 5.0, 5.0)}, "tx_power_w must lie in 0.001 to 10000"),
        ({"signal_bandwidth_khz": 20.0}, "must not exceed noise_bandwidth_khz"),
        ({"nlos_probability": 0.95}, "nlos_probability"),
        ({"nlos_prob": 0.1}, "nlos_prob"),
    ],
)
def test_scenario_refuses_contradictions(change: dict, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Scenario.model_validate(change)


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        (
            {"path_loss_exponent": 6, "area_margin_km": 100},
            "lower min_detections or area_margin_km, or raise tx_power_w",
        ),
        ({"path_loss": "hata", "frequency_mhz": 435, "rx_height_m": 30}, "take another path_loss or a smaller network"),
    ],
    ids=["nobody hears", "out of range"],
)
def test_a_scenario_that_rejects_nearly_all_is_refused_with_the_way_out(change: dict, way_out: str) -> None:
    scenario = Scenario.model_validate(change)
    with pytest.raises(ValueError, match=f"^the scenario rejects too many transmitters: .*; {way_out}$") as caught:
        simulate_chunk(DatasetSpec(random_network(3, seed=0), scenario, 10, 0), 0)
    told = re.search(
        r"(\d+) of (\d+) candidates accepted \((\d+) heard by fewer than min_detections = (\d) receivers, (\d+) "
        rf"outside the range of path_loss {scenario.path_loss.value}\)",
        str(caught.value),
    )
    assert told is not None
    accepted, candidates, few, least, out_of_range = map(int, told.groups())
    assert accepted + few + out_of_range == candidates
    assert 64 * accepted < 64 * CHUNK_SIZE <= candidates < 70 * CHUNK_SIZE
    assert least == scenario.min_detections
    assert (out_of_range > few) == (scenario.path_loss is PathLossModel.hata)


def test_a_scenario_that_accepts_one_in_forty_is_simulated() -> None:
    network = random_network(3, seed=0, extent_km=30)
    scenario = Scenario(path_loss_exponent=5.6, area_margin_km=200)
    chunk = simulate_chunk(DatasetSpec(network, scenario, CHUNK_SIZE, 0), 0)
    assert 1 / 60 < CHUNK_SIZE / chunk.candidates < 1 / 25


def handmade_batch() -> Samples:
    """Five samples, of which the last two have no geometry, with round numbers."""
    batch = simulate_chunk(spec_of(n=5), 0).batch
    signal = np.zeros((5, 7), bool)
    signal[:, :3] = True
    signal[0, 3:5] = True
    snr_db = np.zeros((5, 7), np.float32)
    snr_db[signal] = [0, 10, 20, 30, 40, *range(1, 13)]
    nan = np.nan
    return replace(
        batch,
        signal_present=signal,
        toa_present=signal & (np.arange(7) != 1),
        snr_db=snr_db,
        gdop=np.array([2, 5, 4, 9, nan], np.float32),
        hdop=np.array([1, 1, 1, 1, nan], np.float32),
        crlb_m=np.array([30, 500, 40, 900, 700], np.float32),
        sample_id=np.frombuffer(
            b"".join(bytes([first]) + bytes(15) for first in (0x00, 0x20, 0xB4, 0xC8, 0xFF)), np.uint8
        ).reshape(5, 16),
    )


def test_every_number_of_the_quality_metrics_is_what_its_name_says() -> None:
    batch = handmade_batch()
    chunks = [
        Chunk(batch.take(slice(0, 3)), candidates=9, rejected_few_detections=4, rejected_path_loss_range=2),
        Chunk(batch.take(slice(3, 5)), candidates=6, rejected_few_detections=1, rejected_path_loss_range=3),
    ]
    snr_db = [0, 10, 20, 30, 40, *range(1, 13)]
    expected = {
        "train_count": 2,
        "val_count": 2,
        "test_count": 1,
        "candidates": 15,
        "rejected_few_detections": 5,
        "rejected_path_loss_range": 5,
        "acceptance_rate": round(5 / 15, 4),
        "mean_detections": 17 / 5,
        "snr_p5_db": round(float(np.quantile(snr_db, 0.05)), 4),
        "snr_p50_db": round(float(np.quantile(snr_db, 0.50)), 4),
        "snr_p95_db": round(float(np.quantile(snr_db, 0.95)), 4),
        "gdop_p50": 4.5,  # of 2, 4, 5, 9
        "good_geometry_share": 2 / 5,  # GDOP below five: 2 and 4
        "crlb_good_geom_rms_m": round(np.sqrt((30**2 + 40**2) / 2), 4),
        "crlb_good_geom_p50_m": 35.0,
    }
    assert quality_metrics(batch, iter(chunks)) == expected
    wider = quality_metrics(batch, chunks, max_gdop=6.0)
    assert (wider["good_geometry_share"], wider["crlb_good_geom_p50_m"]) == (3 / 5, 40.0)


def test_quality_metrics_of_simulated_samples_add_up() -> None:
    chunks = list(simulate_chunks(spec_of(PRESETS[Preset.valley], n=CHUNK_SIZE + 1000)))
    batch = Samples.concatenate([chunk.batch for chunk in chunks])
    metrics = quality_metrics(batch, chunks)
    assert metrics["train_count"] + metrics["val_count"] + metrics["test_count"] == len(batch)
    assert metrics["candidates"] == len(batch) + metrics["rejected_few_detections"]
    assert metrics["acceptance_rate"] == pytest.approx(len(batch) / metrics["candidates"], abs=1e-4)
    assert 0.5 < metrics["acceptance_rate"] < 1
    assert metrics["rejected_path_loss_range"] == 0
    assert metrics["snr_p5_db"] < metrics["snr_p50_db"] < metrics["snr_p95_db"]


@pytest.mark.parametrize("preset", list(Preset))
def test_most_transmitters_of_every_preset_are_heard(preset: Preset) -> None:
    """The shares of docs/physics.md, "Transmitters"."""
    told = {Preset.valley: 0.82, Preset.urban: 0.99, Preset.handheld: 0.98, Preset.wideband: 0.97}
    chunk = simulate_chunk(spec_of(PRESETS[preset], n=CHUNK_SIZE), 0)
    assert len(chunk.batch) / chunk.candidates == pytest.approx(told.get(preset, 1.0), abs=0.015)


def test_quality_metrics_without_arrival_times_are_null() -> None:
    chunks = list(simulate_chunks(spec_of(PRESETS[Preset.rss], n=100)))
    metrics = quality_metrics(chunks[0].batch, chunks)
    nulls = {name for name, value in metrics.items() if value is None}
    assert nulls == {"gdop_p50", "crlb_good_geom_rms_m", "crlb_good_geom_p50_m"}
    assert metrics["good_geometry_share"] == 0
