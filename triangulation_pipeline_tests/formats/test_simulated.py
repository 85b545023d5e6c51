"""Simulated recordings: what is constant in them, what they tell, and what they do not."""

import numpy as np
import pytest

from triangulation_pipeline.formats.simulated import simulated_recording
from triangulation_pipeline.network import NORTH_WEST_ITALY, Timing
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import path_loss_function
from triangulation_pipeline.physics.scenario import PRESETS, Preset

UNCALIBRATED = Layout(NORTH_WEST_ITALY, PRESETS[Preset.uncalibrated])
DIRECT = Layout(
    NORTH_WEST_ITALY, UNCALIBRATED.scenario.model_copy(update={"nlos_probability": 0.0, "shadowing_link_db": 0.5})
)


def against_the_mean(values: np.ndarray) -> np.ndarray:
    """(n, r) from the mean of each row."""
    return values - values.mean(axis=1, keepdims=True)


def test_biases_and_gains_are_constant_and_the_rest_is_the_noise_that_receivers_state() -> None:
    recording, truth = simulated_recording(DIRECT, 3000, 1.0, seed=5)
    assert recording.is_known.all()
    whole = recording.take(recording.measurements.toa_present.all(1))
    assert len(whole) > 1500
    seen, true_m = whole.measurements, (whole.latitude, whole.longitude, whole.altitude_m)
    distance_m, _ = Geometry(NORTH_WEST_ITALY, whole.altitude_m).ranges_m(NORTH_WEST_ITALY.frame.en_m(*true_m))
    off_ns = against_the_mean(seen.toa_ns - distance_m / SPEED_OF_LIGHT_M_PER_NS) - truth.toa_bias_ns
    sigma_ns = seen.toa_sigma_ns
    np.testing.assert_allclose(off_ns.mean(0), 0, atol=5)
    # The mean of seven is taken off, and with it a part of the noise of each.
    variance = sigma_ns**2 * (1 - 2 / 7) + (sigma_ns**2).sum(1, keepdims=True) / 49
    np.testing.assert_allclose(np.sqrt((off_ns**2 / variance).mean(0)), 1, atol=0.05)
    assert 50 <= sigma_ns.min() < 51  # of a strong signal that of the time stamp alone
    assert abs(truth.toa_bias_ns.sum()) < 1e-6
    level_db = against_the_mean(seen.power_dbm + path_loss_function(DIRECT.scenario)(distance_m / 1e3))
    np.testing.assert_allclose((level_db - truth.gain_offset_db).std(0), 0.5 * np.sqrt(6 / 7), atol=0.05)


def test_biases_and_gains_are_as_large_as_is_expected_of_receivers_that_nobody_calibrated() -> None:
    drawn = [simulated_recording(UNCALIBRATED, 1, 1.0, seed)[1] for seed in range(20)]
    for name, sigma in (("toa_bias_ns", 90.0), ("gain_offset_db", 3.0)):
        values = np.array([getattr(truth, name) for truth in drawn])
        assert np.sqrt((values**2).mean()) == pytest.approx(sigma * np.sqrt(6 / 7), rel=0.2)


def test_what_the_network_file_knows_of_a_site_holds() -> None:
    """Its gain is that one, and a clock with a known deviation is off by as much."""
    sites = list(NORTH_WEST_ITALY.sites)
    sites[0] = sites[0].model_copy(update={"gain_offset_db": 20.0})
    sites[1] = sites[1].model_copy(update={"timing": Timing.dump1090})
    sites[2] = sites[2].model_copy(update={"timing": Timing.none})
    known = Layout(NORTH_WEST_ITALY.model_copy(update={"sites": tuple(sites)}), UNCALIBRATED.scenario)
    gains, biases = [], []
    for seed in range(8):
        recording, truth = simulated_recording(known, 50, 1.0, seed)
        assert not recording.measurements.toa_present[:, 2].any()
        gains.append(truth.gain_offset_db[0] - truth.gain_offset_db[1:].mean())
        biases.append(truth.toa_bias_ns[1] - truth.toa_bias_ns[[0, 3, 4, 5, 6]].mean())
    assert np.mean(gains) == pytest.approx(20, abs=2)
    assert 250 < np.sqrt(np.mean(np.square(biases))) < 1000


def test_what_is_told_does_not_change_what_is_measured() -> None:
    some, truth = simulated_recording(UNCALIBRATED, 400, 0.1, seed=1)
    everything, same = simulated_recording(UNCALIBRATED, 400, 1.0, seed=1)
    assert 20 < some.is_known.sum() < 60
    assert everything.is_known.all()
    np.testing.assert_array_equal(some.measurements.toa_ns, everything.measurements.toa_ns)
    np.testing.assert_array_equal(truth.toa_bias_ns, same.toa_bias_ns)
    assert some.transmission_id[[0, 399]].tolist() == ["t001", "t400"]
    other, _ = simulated_recording(UNCALIBRATED, 400, 0.1, seed=2)
    assert not np.array_equal(other.measurements.power_dbm, some.measurements.power_dbm)


def test_values_have_the_digits_that_receivers_write() -> None:
    seen = simulated_recording(UNCALIBRATED, 100, 0.1, seed=1)[0].measurements
    np.testing.assert_array_equal(seen.toa_ns, np.rint(seen.toa_ns))
    np.testing.assert_array_equal(seen.power_dbm, seen.power_dbm.round(1))
