import re

import numpy as np
import pytest
from pydantic import ValidationError

from triangulation_pipeline.physics.scenario import PRESETS, Environment, Features, PathLossModel, Preset, Scenario

# So that neither bandwidth is refused for the other.
WIDE = {"noise_bandwidth_khz": 20_000, "signal_bandwidth_khz": 0.1}
LISTS = ("tx_power_w", "tx_power_share")
CHOICES = {"features": Features, "path_loss": PathLossModel, "man_made_noise": Environment}


@pytest.mark.parametrize("field", sorted(set(Scenario.model_fields) - set(LISTS) - set(CHOICES)))
def test_every_number_has_the_limits_that_its_description_says(field: str) -> None:
    told = re.search(r"(-?[\d.]+) to ([\d.]*\d)", Scenario.model_fields[field].description or "")
    assert told is not None
    low, high = map(float, told.groups())
    for good in (low, high):
        assert getattr(Scenario.model_validate(WIDE | {field: good}), field) == good
    step = 1 if field == "min_detections" else 1e-9
    for bad in (low - step, high + step * max(1, high), float("nan"), "much"):
        with pytest.raises(ValidationError, match=field):
            Scenario.model_validate(WIDE | {field: bad})


@pytest.mark.parametrize("field", sorted(CHOICES))
def test_every_choice_is_taken_by_its_name_and_no_other(field: str) -> None:
    description = Scenario.model_fields[field].description or ""
    for choice in CHOICES[field]:
        assert getattr(Scenario.model_validate({field: choice.value}), field) is choice
        assert re.search(rf"\b{choice.value}\b", description)
    with pytest.raises(ValidationError, match=field):
        Scenario.model_validate({field: "other"})


@pytest.mark.parametrize(
    ("power_w", "share"),
    [((0.001, 10_000), (0.0, 1.0)), ((1,), (1 + 5e-7,)), ((1,) * 16, (1 / 16,) * 16)],
    ids=["least and most", "nearly one", "sixteen classes"],
)
def test_power_classes_that_are_taken(power_w: tuple[float, ...], share: tuple[float, ...]) -> None:
    scenario = Scenario(tx_power_w=power_w, tx_power_share=share)
    assert (scenario.tx_power_w, scenario.tx_power_share) == (power_w, share)


@pytest.mark.parametrize(
    ("power_w", "share", "sentence"),
    [
        ((0.0009,), (1,), "tx_power_w must lie in 0.001 to 10000, got"),
        ((5, 10_001), (0.5, 0.5), "tx_power_w must lie in 0.001 to 10000, got"),
        ((float("nan"),), (1,), "tx_power_w must lie in 0.001 to 10000, got"),
        ((5, 25), (0.5, 0.5 + 2e-6), "tx_power_share must be non-negative and sum to 1, got"),
        ((5, 25), (0.5, 0.5 - 2e-6), "tx_power_share must be non-negative and sum to 1, got"),
        ((5, 25), (-0.1, 1.1), "tx_power_share must be non-negative and sum to 1, got"),
        ((5, 25), (1,), "tx_power_share must have one share for each of the 2 values of tx_power_w, it has 1"),
        ((5,), (0.5, 0.5), "tx_power_share must have one share for each of the 1 values of tx_power_w, it has 2"),
        ((), (), "tx_power_w"),
        ((1,) * 17, (1 / 17,) * 17, "tx_power_w"),
    ],
)
def test_power_classes_that_are_refused(power_w: tuple[float, ...], share: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        Scenario(tx_power_w=power_w, tx_power_share=share)


def test_a_signal_is_as_wide_as_the_noise_at_most() -> None:
    assert Scenario(signal_bandwidth_khz=12.5).signal_bandwidth_khz == 12.5
    with pytest.raises(ValidationError, match=r"signal_bandwidth_khz \(12.6\) must not exceed noise_bandwidth_khz"):
        Scenario(signal_bandwidth_khz=12.6)


def test_presets_differ_from_the_default_in_what_they_are_named_for() -> None:
    default = PRESETS[Preset.default].model_dump()
    differs = {
        preset: {name: value for name, value in scenario.model_dump().items() if value != default[name]}
        for preset, scenario in PRESETS.items()
    }
    assert differs == {
        Preset.default: {},
        Preset.line_of_sight: {"nlos_probability": 0.0},
        Preset.valley: {"path_loss_exponent": 4.5},
        Preset.urban: {
            "man_made_noise": Environment.city,
            "shadowing_link_db": 9.0,
            "nlos_probability": 0.3,
            "nlos_mean_ns": 1000.0,
        },
        Preset.handheld: {
            "tx_power_w": (5.0,),
            "tx_power_share": (1.0,),
            "tx_antenna_gain_dbi": -5.0,
            "tx_height_m": 1.5,
        },
        Preset.wideband: {"noise_bandwidth_khz": 200.0, "signal_bandwidth_khz": 180.0, "clock_sigma_ns": 15.0},
        Preset.rss: {"features": Features.rss},
        Preset.uncalibrated: {"site_bias_sigma_ns": 90.0, "gain_offset_sigma_db": 3.0},
    }
    assert Scenario() == PRESETS[Preset.default]
    assert list(PRESETS) == list(Preset)


def test_quantities_in_other_units() -> None:
    scenario = Scenario(frequency_mhz=433.9205, area_margin_km=1.5, tx_power_w=(0.001, 1, 50), tx_power_share=(0, 0, 1))
    assert scenario.frequency_hz == 433_920_500
    assert scenario.area_margin_m == 1500
    np.testing.assert_allclose(scenario.tx_power_dbm, (0, 30, 46.9897), atol=1e-4)


def test_the_altitude_is_the_height_unless_it_is_given() -> None:
    assert Scenario(tx_height_m=12).transmitter_altitude_m == 12
    assert Scenario(tx_height_m=12, tx_altitude_m=-3).transmitter_altitude_m == -3
    for altitude_m in (-501, 20_001):
        with pytest.raises(ValidationError, match="tx_altitude_m"):
            Scenario(tx_altitude_m=altitude_m)


def test_the_level_of_a_link_varies_by_shadowing_and_what_is_left_of_the_gain() -> None:
    assert Scenario(shadowing_link_db=4, gain_offset_sigma_db=3).link_level_sigma_db == pytest.approx(5)


def test_the_common_level_varies_by_power_class_and_shadowing() -> None:
    # 40 and 60 dBm, three of four at 60: mean 55, variance (15^2 + 3 * 5^2) / 4 = 75.
    scenario = Scenario(tx_power_w=(10, 1000), tx_power_share=(0.25, 0.75), shadowing_common_db=3)
    assert scenario.mean_tx_power_dbm == pytest.approx(55)
    assert scenario.common_level_variance_db2 == pytest.approx(75 + 9)
    one = Scenario(tx_power_w=(10,), tx_power_share=(1,), shadowing_common_db=4)
    assert one.common_level_variance_db2 == pytest.approx(16)
