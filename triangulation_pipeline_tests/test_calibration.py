"""What is known of sites, estimated from transmissions of known position and taken off."""

from dataclasses import replace

import numpy as np
import pytest

from triangulation_pipeline import calibration
from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Timing, random_network
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples

BIAS_NS = np.array([150.0, -300.0, 80.0, 0.0, 420.0, -90.0, 40.0])
GAIN_DB = np.array([2.0, -3.5, 0.0, 6.0, -1.0, 0.5, 4.0])
KNOWN = ReceiverNetwork(
    name="with gains",
    sites=tuple(
        site.model_copy(update={"gain_offset_db": float(gain_db)})
        for site, gain_db in zip(NORTH_WEST_ITALY.sites, GAIN_DB, strict=True)
    ),
)


def biased(scenario: Scenario, n: int, seed: int = 0) -> Samples:
    """Rows of sites with these gains and clock biases."""
    batch = simulate(DatasetSpec(KNOWN, scenario, n, seed))
    return replace(batch, toa_ns=np.where(batch.toa_present, batch.toa_ns + BIAS_NS, 0.0))


@pytest.fixture(scope="module")
def default() -> Samples:
    return biased(PRESETS[Preset.default], 2000)


def estimate_calibration(layout: Layout, samples: Samples) -> SiteCalibration:
    return calibration.estimate_calibration(layout, samples, samples.tx_lat, samples.tx_lon, samples.tx_power_dbm)


def bias_z(found: SiteCalibration) -> np.ndarray:
    known = np.isfinite(found.toa_bias_sigma_ns)
    error_ns = found.toa_bias_ns - (BIAS_NS - BIAS_NS[known].mean())
    return error_ns[known] / found.toa_bias_sigma_ns[known]


def gain_z(found: SiteCalibration) -> np.ndarray:
    known = np.isfinite(found.gain_offset_sigma_db)
    return ((found.gain_offset_db - GAIN_DB) / found.gain_offset_sigma_db)[known]


@pytest.mark.parametrize("preset", [Preset.default, Preset.line_of_sight, Preset.valley, Preset.urban])
def test_known_biases_and_gains_are_found_within_their_standard_errors(preset: Preset) -> None:
    scenario = PRESETS[preset]
    found = [estimate_calibration(Layout(KNOWN, scenario), biased(scenario, 400, seed)) for seed in range(12)]
    biases, gains = np.concatenate([*map(bias_z, found)]), np.concatenate([*map(gain_z, found)])
    assert len(biases) == 84
    assert len(gains) >= 40
    # The standard error of the sample is 8 to 11 %; where many paths are late the errors are told up to a fifth small.
    for z in (biases, gains):
        assert 0.75 < np.sqrt(np.mean(z**2)) < 1.35
        assert np.abs(z).max() < 4.5
    assert all(abs(one.toa_bias_ns.sum()) < 1e-9 for one in found)


def test_more_rows_make_it_more_certain(default: Samples) -> None:
    layout = Layout(KNOWN, PRESETS[Preset.default])
    few, many = (estimate_calibration(layout, default.take(slice(0, n))) for n in (200, 2000))
    for one in ("toa_bias_sigma_ns", "gain_offset_sigma_db"):
        np.testing.assert_allclose(getattr(few, one) / getattr(many, one), np.sqrt(10), rtol=0.4)
    assert many.toa_bias_sigma_ns.max() < 2.5
    assert many.gain_offset_sigma_db.max() < 0.3
    np.testing.assert_array_equal(many.rows, default.signal_present.sum(0))
    assert (many.from_ns, many.to_ns) == (default.time_ns[0], default.time_ns[-1])
    assert many.age_s(int(default.time_ns[-1]) + 90 * 10**9) == 90
    assert SiteCalibration.of_network(KNOWN).age_s(0) is None


def test_it_stands_delays_and_outliers_on_either_side(default: Samples) -> None:
    """A tenth of one site's times is early, a tenth of another's late, by far."""
    odd = np.arange(len(default))[:, None] % 10 == 0
    shift_ns = np.where(odd & (np.arange(7) == 1), -1e5, 0) + np.where(odd & (np.arange(7) == 3), 1e5, 0)
    batch = replace(default, toa_ns=default.toa_ns + np.where(default.toa_present, shift_ns, 0))
    for scenario in (PRESETS[Preset.default], PRESETS[Preset.line_of_sight]):
        found = estimate_calibration(Layout(KNOWN, scenario), batch)
        # The mean would move by 10,000 ns.
        np.testing.assert_allclose(found.toa_bias_ns, BIAS_NS - BIAS_NS.mean(), atol=40)


def test_applied_it_takes_biases_and_gains_off(default: Samples) -> None:
    layout = Layout(KNOWN, PRESETS[Preset.default])
    found = estimate_calibration(layout, default)
    calibrated = found.apply(layout, default)
    assert type(calibrated) is Samples
    heard, silent, timed = default.signal_present, ~default.signal_present, default.toa_present
    assert silent.any()
    for place in (heard, silent):
        off_db = (default.power_dbm - calibrated.power_dbm)[place]
        np.testing.assert_allclose(off_db, np.broadcast_to(found.gain_offset_db, heard.shape)[place], atol=1e-4)
    off_ns = (default.toa_ns - calibrated.toa_ns)[timed]
    np.testing.assert_allclose(off_ns, np.broadcast_to(found.toa_bias_ns, timed.shape)[timed], atol=1e-6)
    np.testing.assert_allclose(
        calibrated.toa_sigma_ns,
        np.where(timed, np.hypot(default.toa_sigma_ns * found.toa_sigma_factor, found.toa_bias_sigma_ns), 0),
        rtol=1e-6,
    )
    # What is left of the biases and gains cannot be told from nothing.
    unknown = Layout(NORTH_WEST_ITALY, layout.scenario)
    again = estimate_calibration(unknown, calibrated)
    assert np.abs(again.toa_bias_ns).max() < 0.2
    assert np.abs(again.gain_offset_db).max() < 0.2


def test_a_network_file_tells_gains_and_no_bias(default: Samples) -> None:
    told, layout = SiteCalibration.of_network(KNOWN), Layout(KNOWN, PRESETS[Preset.default])
    np.testing.assert_array_equal(told.gain_offset_db, GAIN_DB)
    calibrated = told.apply(layout, default)
    np.testing.assert_allclose(default.power_dbm - calibrated.power_dbm, np.broadcast_to(GAIN_DB, (2000, 7)), atol=1e-4)
    untouched = SiteCalibration.of_network(NORTH_WEST_ITALY).apply(layout, default)
    for name in ("toa_ns", "toa_sigma_ns", "power_dbm", "toa_present"):
        np.testing.assert_array_equal(getattr(untouched, name), getattr(default, name))
    np.testing.assert_array_equal(calibrated.toa_ns, default.toa_ns)


def test_what_no_row_tells_of_is_unknown(default: Samples) -> None:
    """A site without arrival times, two that share no transmission with any other, and one that hears nothing."""
    first = np.arange(len(default))[:, None] < 1500
    alone = np.where(np.arange(len(default))[:, None] % 2, np.arange(7) == 4, np.arange(7) == 5)
    hears = np.where(first, np.arange(7) < 4, alone)
    timed = default.toa_present & hears & (np.arange(7) != 2)
    batch = replace(default, toa_present=timed, signal_present=default.signal_present & hears)
    layout = Layout(KNOWN, PRESETS[Preset.default])
    found = estimate_calibration(layout, batch)
    assert np.isinf(found.toa_bias_sigma_ns).tolist() == [False, False, True, False, True, True, True]
    assert found.toa_bias_ns[[2, 4, 5, 6]].tolist() == [0, 0, 0, 0]
    assert np.abs(bias_z(found)).max() < 4
    assert found.rows[6] == 0
    assert np.isinf(found.gain_offset_sigma_db[6])
    assert found.gain_offset_db[6] == 0
    # Times of a clock that nobody knows count as not calibrated.
    calibrated = found.apply(layout, default)
    np.testing.assert_array_equal(calibrated.toa_present, default.toa_present)
    unknown = default.toa_present & np.isin(np.arange(7), (2, 4, 5, 6))
    np.testing.assert_allclose(
        calibrated.toa_sigma_ns[unknown], np.hypot(default.toa_sigma_ns, 90.0)[unknown], rtol=1e-6
    )
    np.testing.assert_array_equal(calibrated.toa_ns[unknown], default.toa_ns[unknown])
    levels_alone = replace(default, toa_present=np.zeros_like(timed))
    alone = estimate_calibration(Layout(KNOWN, PRESETS[Preset.rss]), levels_alone)
    assert np.isinf(alone.toa_bias_sigma_ns).all()
    assert np.abs(gain_z(alone)).max() < 4


def test_sites_that_no_transmission_joins_are_groups_that_never_mix(default: Samples) -> None:
    first = np.arange(len(default)) < 1200
    own = np.where(first[:, None], np.arange(7) < 4, np.arange(7) >= 4)
    layout = Layout(KNOWN, PRESETS[Preset.default])
    found = estimate_calibration(layout, replace(default, toa_present=default.toa_present & own))
    np.testing.assert_array_equal(found.group, [0, 0, 0, 0, 1, 1, 1])
    for sites in (slice(0, 4), slice(4, 7)):
        error_ns = found.toa_bias_ns[sites] - (BIAS_NS[sites] - BIAS_NS[sites].mean())
        assert np.abs(error_ns / found.toa_bias_sigma_ns[sites]).max() < 4
        assert found.toa_bias_ns[sites].sum() == pytest.approx(0, abs=1e-6)
    kept = found.apply(layout, default)
    of_each = np.stack([default.toa_present[:, :4].sum(1), default.toa_present[:, 4:].sum(1)])
    np.testing.assert_array_equal(
        kept.toa_present, default.toa_present & (found.group == np.where(of_each[1] > of_each[0], 1, 0)[:, None])
    )
    alone = found.apply(layout, replace(default, toa_present=default.toa_present & own))
    np.testing.assert_array_equal(alone.toa_present, default.toa_present & own)


def test_another_number_of_receivers_and_no_rows_are_refused(default: Samples) -> None:
    layout = Layout(random_network(5, seed=0), PRESETS[Preset.default])
    sentence = "^the calibration is of 5 sites, the measurements are of 7$"
    with pytest.raises(ValueError, match=sentence):
        estimate_calibration(layout, default)
    with pytest.raises(ValueError, match=sentence):
        SiteCalibration.of_network(layout.network).apply(layout, default)
    with pytest.raises(ValueError, match=r"^a calibration needs transmissions of known position, there are none$"):
        estimate_calibration(Layout(KNOWN, PRESETS[Preset.default]), default.take(slice(0, 0)))


def test_a_level_that_was_not_reported_tells_nothing(default: Samples) -> None:
    """A missing level is as if the receiver had been too weak to be used."""
    rng = np.random.default_rng(8)
    absent = default.signal_present & (rng.random(default.power_dbm.shape) < 0.3)
    part = replace(default, power_dbm=np.where(absent, np.float32(np.nan), default.power_dbm))
    layout = Layout(KNOWN, PRESETS[Preset.default])
    found, whole = estimate_calibration(layout, part), estimate_calibration(layout, default)
    assert np.abs(gain_z(found)).max() < 4.5
    assert (found.gain_offset_sigma_db > whole.gain_offset_sigma_db).all()
    np.testing.assert_array_equal(found.toa_bias_ns, whole.toa_bias_ns)


@pytest.mark.parametrize("preset", [Preset.default, Preset.urban])
def test_without_the_power_gains_are_relative_and_nothing_else_changes(preset: Preset) -> None:
    z = []
    for seed in range(8):
        batch = biased(PRESETS[preset], 400, seed)
        layout = Layout(KNOWN, PRESETS[preset])
        found = calibration.estimate_calibration(layout, batch, batch.tx_lat, batch.tx_lon)
        known = np.isfinite(found.gain_offset_sigma_db)
        assert found.gain_offset_db[known].sum() == pytest.approx(0, abs=1e-9)
        error_db = found.gain_offset_db - (GAIN_DB - GAIN_DB[known].mean())
        z.append((error_db / found.gain_offset_sigma_db)[known])
        with_power = estimate_calibration(layout, batch)
        np.testing.assert_array_equal(found.toa_bias_ns, with_power.toa_bias_ns)
    assert len(np.concatenate(z)) >= 40
    assert 0.7 < np.sqrt(np.mean(np.concatenate(z) ** 2)) < 1.35


@pytest.mark.parametrize("preset", [Preset.default, Preset.line_of_sight, Preset.urban])
def test_the_noise_of_clocks_their_drift_and_outliers_are_found_within_their_standard_errors(preset: Preset) -> None:
    """What receivers say of their noise is wrong by these factors, one drifts, and a tenth of one's times is absurd."""
    factor, drift = np.array([1, 2, 0.5, 1, 5, 1, 1]), np.array([0, 0, 0, 2.0, 0, 0, 0])
    z: list[np.ndarray] = []
    for seed in range(6):
        batch = biased(PRESETS[preset], 400, seed)
        since_s = (batch.time_ns - batch.time_ns[0])[:, None] / 1e9
        odd = (np.arange(400)[:, None] % 10 == 3) & (np.arange(7) == 6)
        shift_ns = since_s * drift + np.where(odd, -3e4, 0)
        batch = replace(
            batch,
            toa_ns=batch.toa_ns + np.where(batch.toa_present, shift_ns, 0),
            toa_sigma_ns=(batch.toa_sigma_ns / factor).astype(np.float32),
        )
        found = estimate_calibration(Layout(KNOWN, PRESETS[preset]), batch)
        steady = [0, 1, 2, 4, 5]  # a drift is noise too, and the factor of the last rests on fewer rows
        z.append(((found.toa_sigma_factor - factor) / found.toa_sigma_factor_sigma)[steady])
        z.append((found.drift_ns_per_s - (drift - drift.mean())) / found.drift_sigma_ns_per_s)
        assert found.outlier_share[6] == pytest.approx(0.1, abs=4 * found.outlier_share_sigma[6])
        assert found.outlier_share[:6].max() < 0.02
    everything = np.concatenate(z)
    assert 0.7 < np.sqrt(np.mean(everything**2)) < 1.4
    assert np.abs(everything).max() < 5


def test_few_rows_leave_the_noise_near_what_receivers_say(default: Samples) -> None:
    found = estimate_calibration(Layout(KNOWN, PRESETS[Preset.default]), default.take(slice(0, 3)))
    assert (np.abs(np.log(found.toa_sigma_factor)) < 1).all()
    assert (found.toa_sigma_factor_sigma > 0.2).all()
    one = estimate_calibration(Layout(KNOWN, PRESETS[Preset.default]), default.take(slice(0, 1)))
    assert np.isinf(one.drift_sigma_ns_per_s).all()
    assert np.isfinite(one.toa_bias_sigma_ns).any()


def test_sites_that_nobody_calibrated_are_uncertain_by_their_clocks() -> None:
    timings = (Timing.gps, Timing.radarcape_gps, Timing.beast, Timing.dump1090, Timing.none)
    sites = tuple(site.model_copy(update={"timing": t}) for site, t in zip(KNOWN.sites, timings, strict=False))
    network = ReceiverNetwork(name="clocks", sites=(sites[0].model_copy(update={"gain_offset_db": None}), *sites[1:]))
    prior = SiteCalibration.prior(network)
    np.testing.assert_allclose(prior.toa_bias_sigma_ns[:4], [90, 91.2, 122.4, 508.0], atol=0.1)
    np.testing.assert_array_equal(prior.gain_offset_sigma_db, [3, 0, 0, 0, 0])
    np.testing.assert_array_equal(prior.gain_offset_db[1:], GAIN_DB[1:5])
    layout = Layout(network, PRESETS[Preset.default])
    assert prior.conditions(layout).scenario.gain_offset_sigma_db == pytest.approx(np.sqrt(9 / 5))
    assert SiteCalibration.of_network(network).conditions(layout) == layout


def test_a_site_with_few_rows_does_not_blur_the_others(default: Samples) -> None:
    layout = Layout(KNOWN, PRESETS[Preset.default])
    rare = (np.arange(len(default))[:, None] < 5) | (np.arange(7) != 4)
    batch = replace(default, toa_present=default.toa_present & rare)
    found, whole = estimate_calibration(layout, batch), estimate_calibration(layout, default)
    others = np.arange(7) != 4
    np.testing.assert_allclose(found.toa_bias_sigma_ns[others], whole.toa_bias_sigma_ns[others], rtol=0.15)
    np.testing.assert_allclose(found.drift_sigma_ns_per_s[others], whole.drift_sigma_ns_per_s[others], rtol=0.15)
    assert found.toa_bias_ns[others].sum() == pytest.approx(0, abs=1e-9)
    expected_ns = BIAS_NS - BIAS_NS[others].mean()
    assert (np.abs(found.toa_bias_ns - expected_ns) < 4 * found.toa_bias_sigma_ns).all()
    assert found.toa_bias_sigma_ns[4] > 10
