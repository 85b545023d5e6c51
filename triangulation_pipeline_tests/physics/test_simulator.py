from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
from pydantic import ValidationError

from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Timing
from triangulation_pipeline.physics.scenario import PRESETS, Environment, PathLossModel, Preset, Scenario
from triangulation_pipeline.physics.simulator import (
    CHUNK_SIZE,
    DatasetSpec,
    quality_metrics,
    simulate,
    simulate_chunk,
    site_constants,
)
from triangulation_pipeline.samples import SampleBatch, samples_digest

DEFAULT = PRESETS[Preset.default]


def spec_of(scenario: Scenario = DEFAULT, n: int = 2 * CHUNK_SIZE + 100, seed: int = 0) -> DatasetSpec:
    return DatasetSpec(NORTH_WEST_ITALY, scenario, n, seed)


def digest_of(spec: DatasetSpec) -> str:
    return samples_digest(chunk.batch for chunk in simulate(spec))


def test_chunks_may_come_in_any_order_and_from_other_processes() -> None:
    spec = spec_of()
    in_order = digest_of(spec)
    backwards = list(simulate(spec, reversed(range(spec.num_chunks))))[::-1]
    assert samples_digest(chunk.batch for chunk in backwards) == in_order
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        elsewhere = list(pool.map(partial(simulate_chunk, spec), range(spec.num_chunks)))
    assert samples_digest(chunk.batch for chunk in elsewhere) == in_order


def test_a_longer_dataset_begins_with_the_same_samples() -> None:
    short, long = spec_of(n=CHUNK_SIZE + 50), spec_of()
    grown = SampleBatch.concatenate([c.batch for c in simulate(long)]).take(slice(0, CHUNK_SIZE + 50))
    assert samples_digest([grown]) == digest_of(short)
    assert short.sample_namespace == long.sample_namespace
    assert short.dataset_id != long.dataset_id


def test_seed_and_scenario_are_honoured() -> None:
    specs = [spec_of(n=50), spec_of(n=50, seed=1), spec_of(Scenario(path_loss_exponent=3.6), n=50)]
    assert len({digest_of(spec) for spec in specs}) == 3
    assert len({spec.dataset_id for spec in specs}) == 3
    assert digest_of(specs[0]) == digest_of(spec_of(n=50, seed=0))


def test_site_constants_belong_to_the_site() -> None:
    constants = site_constants(NORTH_WEST_ITALY, DEFAULT)
    doubled = site_constants(NORTH_WEST_ITALY, Scenario(site_bias_sigma_ns=60))
    np.testing.assert_allclose(doubled.toa_bias_ns, 2 * constants.toa_bias_ns)
    assert np.unique(constants.gain_offset_db).size == 7
    first, *others = NORTH_WEST_ITALY.sites
    measured = ReceiverNetwork(name="m", sites=(first.model_copy(update={"gain_offset_db": 1.5}), *others))
    assert site_constants(measured, DEFAULT).gain_offset_db[0] == 1.5


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
    """PHYSICS section 2: shares of all transmitters, site gains zero."""
    scenario = Scenario(path_loss_exponent=exponent, gain_offset_sigma_db=0, site_bias_sigma_ns=0, min_detections=1)
    chunk = simulate_chunk(spec_of(scenario, n=CHUNK_SIZE), 0)
    heard, all_sent = chunk.batch.num_receivers, chunk.candidates
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
    # Without delays and freed of the biases, the arrival times differ from the ranges by their stated noise.
    distance_m = np.linalg.norm(en_m[:, None] - NORTH_WEST_ITALY.site_enu_m, axis=-1)
    bias_ns = site_constants(NORTH_WEST_ITALY, scenario).toa_bias_ns
    error_ns = batch.toa_ns - distance_m / 0.299792458 - bias_ns
    every = batch.toa_present.all(1)
    error_ns, sigma_ns = error_ns[every], batch.toa_sigma_ns[every]
    pair = (error_ns[:, 0] - error_ns[:, 6]) / np.hypot(sigma_ns[:, 0], sigma_ns[:, 6])
    assert pair.mean() == pytest.approx(0, abs=0.05)
    assert pair.std() == pytest.approx(1, abs=0.04)


def test_frequency_offsets_say_nothing_of_the_position() -> None:
    batch = simulate_chunk(spec_of(n=CHUNK_SIZE), 0).batch
    every = batch.signal_present.all(1)
    offset_hz = batch.frequency_offset_hz[every].astype(float)
    # One draw a transmission and one a site: differences between sites are the same in every row.
    assert np.ptp(offset_hz - offset_hz[:, :1], axis=0).max() < 1e-3
    assert offset_hz[:, 0].std() == pytest.approx(145, rel=0.05)


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
    with pytest.raises(ValueError, match=r"seed must be 0 to .*, got -1"):
        spec_of(seed=-1)


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


def test_a_scenario_nobody_hears_is_refused() -> None:
    harsh = Scenario(path_loss_exponent=6, man_made_noise=Environment.city, min_detections=7)
    with pytest.raises(ValueError, match="rejects too many transmitters") as caught:
        simulate_chunk(spec_of(harsh, n=10), 0)
    assert "\n" not in str(caught.value)
    assert "min_detections = 7" in str(caught.value)


def test_quality_metrics_count_everything_and_know_null() -> None:
    chunks = list(simulate(spec_of(PRESETS[Preset.valley], n=CHUNK_SIZE + 1000)))
    batch = SampleBatch.concatenate([chunk.batch for chunk in chunks])
    metrics = quality_metrics(batch, chunks)
    assert metrics["train_count"] + metrics["val_count"] + metrics["test_count"] == len(batch)
    assert metrics["candidates"] == len(batch) + metrics["rejected_few_detections"]
    assert metrics["rejected_path_loss_range"] == 0
    assert metrics["snr_p5_db"] < metrics["snr_p50_db"] < metrics["snr_p95_db"]
    chunks = list(simulate(spec_of(PRESETS[Preset.rss], n=100)))
    metrics = quality_metrics(chunks[0].batch, chunks)
    assert metrics["gdop_p50"] is None
    assert metrics["crlb_good_geom_rms_m"] is None
