import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.physics.propagation import (
    egli_loss_db,
    free_space_loss_db,
    hata_loss_db,
    knife_edge_loss_db,
    knife_edge_parameter,
    log_distance_loss_db,
    noise_floor_dbm,
    path_loss_function,
    path_loss_slope_db,
    plane_earth_loss_db,
)
from triangulation_pipeline.physics.scenario import PRESETS, PathLossModel, Preset, Scenario
from triangulation_pipeline.physics.timing import toa_sigma_ns


def test_textbook_values() -> None:
    assert free_space_loss_db(1.0, 145.0) == pytest.approx(75.68, abs=0.01)
    assert free_space_loss_db(100.0, 145.0) == pytest.approx(115.68, abs=0.01)
    assert hata_loss_db(1.0, 900.0, 30.0, 1.5) == pytest.approx(126.4, abs=0.1)
    assert plane_earth_loss_db(10.0, 900.0, 30.0, 1.5) == pytest.approx(160 - 20 * np.log10(45), abs=1e-9)
    # Egli: 40 dB a decade, six decibels for twice the height; the two branches nearly meet at 10 m.
    assert egli_loss_db(10.0, 145.0, 20.0, 2.0) - egli_loss_db(1.0, 145.0, 20.0, 2.0) == pytest.approx(40)
    assert egli_loss_db(10.0, 100.0, 10.0, 1.5) == pytest.approx(40 + 40 - 20 + 76.3 - 1.76, abs=0.01)
    assert egli_loss_db(10.0, 145.0, 20.0, 10.0) == pytest.approx(egli_loss_db(10.0, 145.0, 20.0, 10.001), abs=0.5)
    assert log_distance_loss_db(10.0, 145.0, 3.5) == pytest.approx(75.68 + 35, abs=0.01)
    assert log_distance_loss_db(0.5, 145.0, 3.5) == free_space_loss_db(0.5, 145.0)


def test_plane_earth_meets_free_space_at_the_break() -> None:
    break_km = 4e-3 * np.pi * 30 * 2 * 145 / 299.792458
    near, far = plane_earth_loss_db([break_km * 0.9999, break_km * 1.0001], 145.0, 30.0, 2.0)
    assert far == pytest.approx(near, abs=0.02)


@pytest.mark.parametrize("model", list(PathLossModel))
def test_loss_grows_with_distance_and_the_slope_is_its_derivative(model: PathLossModel) -> None:
    scenario = Scenario(path_loss=model, frequency_mhz=435.0, tx_height_m=2.0, rx_height_m=30.0)
    km = np.geomspace(1.7, 19.5, 200)
    loss_db = path_loss_function(scenario)(km)
    assert (np.diff(loss_db) > 0).all()
    np.testing.assert_allclose(path_loss_slope_db(scenario, km), np.gradient(loss_db, np.log(km)), rtol=0.2)


@pytest.mark.parametrize(
    ("scenario", "parts"),
    [
        (Scenario(path_loss=PathLossModel.hata, rx_height_m=30), ["hata", "frequency_mhz", "145", "150"]),
        (Scenario(path_loss=PathLossModel.hata, frequency_mhz=435), ["hata", "higher", "30", "10"]),
        (
            Scenario(path_loss=PathLossModel.hata, frequency_mhz=435, rx_height_m=50, tx_height_m=20),
            ["hata", "lower", "20"],
        ),
        (Scenario(path_loss=PathLossModel.egli, frequency_mhz=1300), ["egli", "1000", "1300"]),
    ],
)
def test_models_refuse_what_they_do_not_cover(scenario: Scenario, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="path_loss") as caught:
        path_loss_function(scenario)
    assert all(part in str(caught.value) for part in parts), caught.value


@settings(max_examples=50)
@given(st.floats(-5, 20), st.floats(0, 5))
def test_knife_edge_loss_falls_as_clearance_grows(v: float, more: float) -> None:
    assert knife_edge_loss_db(v + more) + 1e-12 >= knife_edge_loss_db(v) >= 0


def test_knife_edge_values() -> None:
    assert knife_edge_loss_db(0.0) == pytest.approx(6.03, abs=0.01)
    assert knife_edge_loss_db(2.4) == pytest.approx(20.5, abs=0.3)
    assert knife_edge_loss_db(-0.79) == 0
    # Grazing an edge of 1 m at the middle of 1 km, wavelength 1 m: v = h sqrt(2 / lambda (2 / d + 2 / d)).
    assert knife_edge_parameter(1.0, 1.0, 299.792458) == pytest.approx(np.sqrt(2 * (1 / 500 + 1 / 500)))


def test_default_noise_floor() -> None:
    assert noise_floor_dbm(PRESETS[Preset.default], 5.5) == pytest.approx(-124.0, abs=0.1)
    city = Scenario(man_made_noise="city")
    assert noise_floor_dbm(city, 5.5) - noise_floor_dbm(PRESETS[Preset.default], 5.5) > 7
    # Where man-made noise is negligible, the receiver's own remains.
    quiet = Scenario(man_made_noise="quiet_rural", frequency_mhz=3000.0)
    assert noise_floor_dbm(quiet, 5.5) == pytest.approx(-174 + 10 * np.log10(12500) + 5.5, abs=1e-9)


def test_two_equal_receivers_give_steins_time_difference() -> None:
    scenario = Scenario(clock_sigma_ns=1)
    snr = 10 ** (20 / 10)
    # Stein 1981: sigma = 1 / (beta sqrt(B T gamma)), 1 / gamma = (1/g1 + 1/g2 + 1/(g1 g2)) / 2.
    gamma = 2 / (2 / snr + 1 / snr**2)
    beta = np.pi * 8e3 / np.sqrt(3)
    stein_ns = 1e9 / (beta * np.sqrt(12.5e3 * 1.0 * gamma))
    one = np.sqrt(toa_sigma_ns(scenario, 20.0) ** 2 - 1)
    assert np.sqrt(2) * one == pytest.approx(stein_ns, rel=0.005)
    assert toa_sigma_ns(PRESETS[Preset.default], 200.0) == pytest.approx(50.0)
    assert (np.diff(toa_sigma_ns(scenario, np.arange(-20, 60))) < 0).all()
