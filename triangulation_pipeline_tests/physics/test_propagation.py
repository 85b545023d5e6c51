import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.physics.propagation import (
    distance_range_km,
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
from triangulation_pipeline.physics.scenario import PRESETS, Environment, PathLossModel, Preset, Scenario


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
    # Up to it the loss is that of free space, beyond it forty decibels a decade.
    for km in (0.1 * break_km, 0.99 * break_km):
        assert plane_earth_loss_db(km, 145.0, 30.0, 2.0) == free_space_loss_db(km, 145.0)
    for km in (1.01 * break_km, 10 * break_km):
        assert plane_earth_loss_db(km, 145.0, 30.0, 2.0) == pytest.approx(40 * np.log10(km * 1e3) - 20 * np.log10(60))


@pytest.mark.parametrize(
    ("km", "mhz", "base_m", "mobile_m", "loss_db"),
    [
        # 69.55 + 26.16 lg f - 13.82 lg h_b - a + (44.9 - 6.55 lg h_b) lg d
        # with a = (1.1 lg f - 0.7) h_m - (1.56 lg f - 0.8)
        (1, 900, 30, 1.5, 126.403),
        (10, 900, 30, 1.5, 161.628),
        (20, 900, 30, 1.5, 172.232),
        (10, 150, 30, 1.5, 141.342),
        (10, 1500, 200, 10, 126.882),
    ],
)
def test_hatas_urban_loss(km: float, mhz: float, base_m: float, mobile_m: float, loss_db: float) -> None:
    assert hata_loss_db(km, mhz, base_m, mobile_m) == pytest.approx(loss_db, abs=0.001)


@pytest.mark.parametrize(
    ("mhz", "tx_m", "rx_m", "loss_db"),
    [
        # At 10 km: 20 lg f + 40 - 20 lg h_t + 76.3 - 10 lg h_r up to 10 m, 85.9 - 20 lg h_r above.
        (100, 1, 10, 146.3),
        (1000, 1, 10, 166.3),
        (100, 10, 1, 136.3),
        (100, 1, 100, 125.9),
        (100, 1, 10.001, 145.899),
    ],
)
def test_eglis_median_loss(mhz: float, tx_m: float, rx_m: float, loss_db: float) -> None:
    assert egli_loss_db(10.0, mhz, tx_m, rx_m) == pytest.approx(loss_db, abs=0.001)


def test_the_scenario_says_which_loss_and_its_parameters() -> None:
    km = np.array([2.0, 5.0, 19.0])

    def loss_db(model: PathLossModel, **change: float) -> np.ndarray:
        settings = {"frequency_mhz": 435.0, "tx_height_m": 2.0, "rx_height_m": 40.0, "path_loss_exponent": 3.0}
        return path_loss_function(Scenario.model_validate(settings | change | {"path_loss": model}))(km)

    np.testing.assert_array_equal(loss_db(PathLossModel.free_space), free_space_loss_db(km, 435.0))
    np.testing.assert_array_equal(loss_db(PathLossModel.plane_earth), plane_earth_loss_db(km, 435.0, 2.0, 40.0))
    np.testing.assert_array_equal(loss_db(PathLossModel.egli), egli_loss_db(km, 435.0, 2.0, 40.0))
    np.testing.assert_array_equal(loss_db(PathLossModel.log_distance), log_distance_loss_db(km, 435.0, 3.0))
    # The higher antenna is Hata's base, whichever that is.
    hata = hata_loss_db(km, 435.0, 40.0, 2.0)
    np.testing.assert_array_equal(loss_db(PathLossModel.hata), hata)
    np.testing.assert_array_equal(loss_db(PathLossModel.hata, tx_height_m=40.0, rx_height_m=2.0), hata)


def test_the_distances_for_which_a_model_is_stated() -> None:
    assert {model: distance_range_km(model) for model in PathLossModel} == {
        PathLossModel.free_space: (0.001, np.inf),
        PathLossModel.plane_earth: (0.001, np.inf),
        PathLossModel.egli: (1.6, 80.5),  # 1 to 50 miles
        PathLossModel.hata: (1.0, 20.0),
        PathLossModel.log_distance: (0.001, np.inf),
    }


@pytest.mark.parametrize(
    ("model", "field", "low", "high", "told"),
    [
        (PathLossModel.egli, "frequency_mhz", 40, 1000, "frequency_mhz"),
        (PathLossModel.hata, "frequency_mhz", 150, 1500, "frequency_mhz"),
        (PathLossModel.hata, "rx_height_m", 30, 200, "the higher of tx_height_m and rx_height_m"),
        (PathLossModel.hata, "tx_height_m", 1, 10, "the lower of tx_height_m and rx_height_m"),
    ],
)
def test_models_hold_within_their_limits(model: PathLossModel, field: str, low: float, high: float, told: str) -> None:
    settings = {"path_loss": model, "frequency_mhz": 435.0, "tx_height_m": 2.0, "rx_height_m": 40.0}
    for good in (low, high):
        assert path_loss_function(Scenario.model_validate(settings | {field: good}))(np.array(5.0)) > 0
    for bad in (low * 0.999, high * 1.001):
        sentence = f"path_loss {model.value} holds for {told} from {low:g} to {high:g}, got {bad:g}"
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            path_loss_function(Scenario.model_validate(settings | {field: bad}))


@pytest.mark.parametrize("model", list(PathLossModel))
def test_loss_grows_with_distance_and_the_slope_is_its_derivative(model: PathLossModel) -> None:
    scenario = Scenario(path_loss=model, frequency_mhz=435.0, tx_height_m=2.0, rx_height_m=30.0)
    km = np.geomspace(1.7, 19.5, 200)
    loss_db = path_loss_function(scenario)(km)
    assert (np.diff(loss_db) > 0).all()
    # Away from the break of plane earth, where the slope jumps.
    inside = slice(1, -1) if model is not PathLossModel.plane_earth else slice(20, -1)
    slope_db = path_loss_slope_db(scenario, km)
    np.testing.assert_allclose(slope_db[inside], np.gradient(loss_db, np.log(km))[inside], rtol=1e-4)


@pytest.mark.parametrize(("exponent", "km"), [(3.5, 10.0), (6.0, 50.0), (2.0, 50.0), (3.5, 0.5)])
def test_the_slope_of_log_distance_is_its_exponent(exponent: float, km: float) -> None:
    slope_db = path_loss_slope_db(Scenario(path_loss_exponent=exponent), np.array(km))
    assert slope_db == pytest.approx(10 * (exponent if km > 1 else 2) / np.log(10))


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
    # 6.9 + 20 lg(sqrt((v - 0.1)^2 + 1) + v - 0.1)
    assert knife_edge_loss_db(1.0) == pytest.approx(13.926, abs=0.001)
    assert knife_edge_loss_db(2.4) == pytest.approx(20.539, abs=0.001)
    assert knife_edge_loss_db(10.1) == pytest.approx(32.942, abs=0.001)
    assert knife_edge_loss_db(-0.7) == pytest.approx(0.536, abs=0.001)
    assert knife_edge_loss_db(-0.77) == pytest.approx(0.069, abs=0.001)
    np.testing.assert_array_equal(knife_edge_loss_db([-0.7801, -5.0]), 0)
    # Grazing an edge of 1 m at the middle of 1 km, wavelength 1 m: v = h sqrt(2 / lambda (2 / d + 2 / d)).
    assert knife_edge_parameter(1.0, 1.0, 299.792458) == pytest.approx(np.sqrt(2 * (1 / 500 + 1 / 500)))
    assert knife_edge_parameter(30.0, 4.0, 100.0) == pytest.approx(30 * np.sqrt(2 / 2.99792458 * (1 / 2000 + 1 / 2000)))


def test_default_noise_floor() -> None:
    assert noise_floor_dbm(PRESETS[Preset.default], 5.5) == pytest.approx(-124.0, abs=0.1)


@pytest.mark.parametrize(
    ("environment", "c", "d"),
    [
        (Environment.city, 76.8, 27.7),
        (Environment.residential, 72.5, 27.7),
        (Environment.rural, 67.2, 27.7),
        (Environment.quiet_rural, 53.6, 28.6),
    ],
)
def test_noise_is_thermal_the_receivers_and_man_made(environment: Environment, c: float, d: float) -> None:
    """ITU-R P.372: f = f_a + f_r - 1, F_a = c - d lg f_MHz."""
    for mhz, bandwidth_khz, figure_db in ((30.0, 12.5, 5.5), (60.0, 200.0, 5.5), (60.0, 12.5, 15.0)):
        scenario = Scenario(frequency_mhz=mhz, noise_bandwidth_khz=bandwidth_khz, man_made_noise=environment)
        factor = 10 ** ((c - d * np.log10(mhz)) / 10) + 10 ** (figure_db / 10) - 1
        expected_dbm = -174 + 10 * np.log10(bandwidth_khz * 1000 * factor)
        assert noise_floor_dbm(scenario, figure_db) == pytest.approx(expected_dbm, abs=1e-9)
    assert noise_floor_dbm(scenario, [0.0, 30.0]).shape == (2,)


def test_where_man_made_noise_is_negligible_the_receivers_remains() -> None:
    quiet = Scenario(man_made_noise="quiet_rural", frequency_mhz=3000.0)
    assert noise_floor_dbm(quiet, 5.5) == pytest.approx(-174 + 10 * np.log10(12500) + 5.5, abs=1e-9)
