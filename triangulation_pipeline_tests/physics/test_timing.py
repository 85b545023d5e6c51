import numpy as np
import pytest

from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.timing import toa_sigma_ns


def test_two_equal_receivers_give_steins_time_difference() -> None:
    scenario = Scenario(clock_sigma_ns=1, site_bias_sigma_ns=0)
    snr = 10 ** (20 / 10)
    # Stein 1981: sigma = 1 / (beta sqrt(B T gamma)), 1 / gamma = (1/g1 + 1/g2 + 1/(g1 g2)) / 2.
    gamma = 2 / (2 / snr + 1 / snr**2)
    beta = np.pi * 8e3 / np.sqrt(3)
    stein_ns = 1e9 / (beta * np.sqrt(12.5e3 * 1.0 * gamma))
    one = np.sqrt(toa_sigma_ns(scenario, 20.0) ** 2 - 1)
    assert np.sqrt(2) * one == pytest.approx(stein_ns, rel=0.005)
    assert toa_sigma_ns(PRESETS[Preset.default], 200.0) == pytest.approx(np.hypot(50, 10))
    assert (np.diff(toa_sigma_ns(scenario, np.arange(-20, 60))) < 0).all()


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ({"signal_bandwidth_khz": 4.0}, 2),
        ({"noise_bandwidth_khz": 50.0}, 1 / 2),
        ({"burst_s": 0.25}, 2),
        ({"frequency_mhz": 435.0}, 1),
        ({"clock_sigma_ns": 1000.0}, 1),
        ({"site_bias_sigma_ns": 1000.0}, 1),
    ],
)
def test_correlation_noise_falls_with_bandwidth_and_time(change: dict, factor: float) -> None:
    def correlation_ns(scenario: Scenario) -> np.ndarray:
        snr_db = np.array([-20.0, 0.0, 10.0])
        rest_ns2 = scenario.clock_sigma_ns**2 + scenario.site_bias_sigma_ns**2
        return np.sqrt(toa_sigma_ns(scenario, snr_db) ** 2 - rest_ns2)

    usual = correlation_ns(Scenario())
    np.testing.assert_allclose(correlation_ns(Scenario.model_validate(change)), factor * usual, rtol=1e-6)
    # Ten decibels more are ten times the signal.
    assert usual[1] / usual[2] == pytest.approx(np.sqrt(10), rel=1e-6)
    # beta = pi 8000 / sqrt 3 per second; 2 B T = 25,000.
    assert usual[1] == pytest.approx(1e9 / (np.pi * 8000 / np.sqrt(3) * np.sqrt(25_000)), rel=1e-6)
