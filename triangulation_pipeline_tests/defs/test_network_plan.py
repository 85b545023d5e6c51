"""The asset ``network_plan``: its page, and the conditions that it is made for."""

from typing import Any

import pytest

from triangulation_pipeline.defs.config import check_run_config
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.plan import best_further_site, plan_network
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings

STEPS = ["receiver_network", "network_plan"]


def conditions(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run.metadata("network_plan")["scenario"]
    return found


def test_the_page_has_maps_numbers_and_what_they_say(home: None) -> None:
    run = execute(settings(), STEPS)
    assert run.result.success
    shown = run.metadata("network_plan")
    for name in ("bound_map", "hdop_map", "receiver_map"):
        assert shown[name].startswith("![")
        assert "](data:image/png;base64," in shown[name]
    plan = plan_network(NORTH_WEST_ITALY, Scenario())
    assert shown["p95_m"] == pytest.approx(plan.numbers.p95_m, rel=1e-4)
    assert shown["heard_by_3"] == pytest.approx(plan.numbers.heard_by_3, rel=1e-4)
    rows = shown["numbers"]
    assert [row["sites"] for row in rows[:3]] == ["all 7 sites", "with one more", "without Milano-Baggio"]
    assert rows[1]["p95_m"] == pytest.approx(best_further_site(plan).numbers.p95_m, rel=1e-4)
    assert shown["summary"].startswith("without Milano-Baggio, the bound of 95 % of the area goes from")
    # The same again has the same data version; another scenario has not.
    assert version(execute(settings(), STEPS, run.instance)) == version(run)
    other = execute(settings(network_plan={"preset": "rss"}), STEPS, run.instance)
    assert version(other) != version(run)
    assert "hdop_map" in other.metadata("network_plan"), "also where no arrival times are"


def version(run: Run) -> str:
    (made,) = (
        event
        for event in run.result.get_asset_materialization_events()
        if event.asset_key is not None and event.asset_key.path == ["network_plan"]
    )
    assert made.materialization.tags is not None
    return made.materialization.tags["dagster/data_version"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({}, PRESETS[Preset.default]),
        ({"synthetic_dataset": {"preset": "valley"}}, PRESETS[Preset.valley]),
        (
            {"synthetic_dataset": {"preset": "valley", "scenario": {"clock_sigma_ns": 20.0}}},
            Scenario(path_loss_exponent=4.5, clock_sigma_ns=20.0),
        ),
        ({"synthetic_dataset": {"preset": "valley"}, "network_plan": {"preset": "handheld"}}, PRESETS[Preset.handheld]),
        (
            {"network_plan": {"preset": "valley", "scenario": {"frequency_mhz": 433.0}}},
            Scenario(path_loss_exponent=4.5, frequency_mhz=433.0),
        ),
        ({"synthetic_dataset": {"preset": "handheld", "layouts": "random"}}, PRESETS[Preset.default]),
    ],
)
def test_conditions_are_those_of_the_dataset_unless_the_plan_has_its_own(
    steps: dict[str, Any], expected: Scenario
) -> None:
    assert check_run_config(settings(**steps)).planned == expected


def test_the_conditions_are_those_that_the_run_is_made_for(home: None) -> None:
    run = execute(settings(synthetic_dataset={"preset": "valley"}), STEPS)
    assert conditions(run) == PRESETS[Preset.valley].model_dump(mode="json", exclude_none=True)
    # Where bounds are missing, there is no number.
    assert run.metadata("network_plan")["located_share"] < 1
    weak = execute(
        settings(network_plan={"preset": "valley", "scenario": {"tx_power_w": [1], "tx_power_share": [1]}}), STEPS
    )
    shown = weak.metadata("network_plan")
    assert "p95_m" not in shown
    assert shown["numbers"][0]["p95_m"] is None


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"scenario": {"clock_sigma_ns": 20}}, "network_plan: scenario changes a preset: give preset too"),
        (
            {"preset": "default", "scenario": {"path_loss": "hata"}},
            "network_plan: path_loss hata holds for frequency_mhz from 150 to 1500, got 145",
        ),
        (
            {"preset": "default", "scenario": {"min_detections": 9}},
            r"network_plan: min_detections \(9\) must not exceed the network's 7 sites",
        ),
        (
            {"preset": "default", "scenario": {"signal_bandwidth_khz": 20}},
            r"network_plan: scenario: signal_bandwidth_khz \(20\) must not exceed noise_bandwidth_khz",
        ),
    ],
)
def test_wrong_conditions_are_refused_before_the_first_step(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        check_run_config({"ops": {"network_plan": {"config": config}}})
