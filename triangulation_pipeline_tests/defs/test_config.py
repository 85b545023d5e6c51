"""The settings of the steps: what each does, what it takes, and what contradicts what."""

from pathlib import Path
from typing import Any

import pytest

from triangulation_pipeline.defs.config import (
    STEP_CONFIGS,
    ModelEvaluationConfig,
    ReceiverNetworkConfig,
    RegisteredModelConfig,
    ScenarioOverrides,
    SyntheticDatasetConfig,
    TrainedModelConfig,
    check_run_config,
    network_path,
    settings_of,
)
from triangulation_pipeline.network import NORTH_WEST_ITALY, random_network
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.physics.scenario import PRESETS, Features, Preset, Scenario
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.defs.test_automation import write_network

OTHER = random_network(5, seed=1)


def config(**steps: dict[str, Any]) -> dict[str, Any]:
    """Run config with these settings of each step."""
    return {"ops": {step: {"config": settings} for step, settings in steps.items()}}


def refusal(run_config: dict[str, Any], **how: bool) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        check_run_config(run_config, **how)
    return str(refused.value)


def test_what_is_left_out_is_the_documented_default() -> None:
    assert ReceiverNetworkConfig().network() == NORTH_WEST_ITALY
    assert SyntheticDatasetConfig().spec(OTHER) == DatasetSpec(OTHER, PRESETS[Preset.default], 50_000, 0)
    assert TrainingConfig.model_validate(TrainedModelConfig().model_dump()) == TrainingConfig()
    assert ModelEvaluationConfig().max_rmse_m == 100.0
    assert RegisteredModelConfig().model_name == "rf-triangulation"


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_text_is_a_setting_left_out(empty: str | None) -> None:
    assert ReceiverNetworkConfig(network_file=empty).network() == NORTH_WEST_ITALY
    assert not SyntheticDatasetConfig(dataset_id=empty, seed=3).dataset_id


@pytest.mark.parametrize("run_config", [{}, {"ops": None}, {"ops": {}}, {"ops": dict.fromkeys(STEP_CONFIGS)}])
def test_run_config_without_settings_is_the_defaults(run_config: dict[str, Any]) -> None:
    found = check_run_config(run_config)
    assert found == settings_of(run_config)
    assert found.network == NORTH_WEST_ITALY
    assert found.receiver_network.network_file == ""
    assert found.registered_model.model_name == "rf-triangulation"
    assert found.trained_model == TrainedModelConfig()


def test_each_step_is_given_its_own_settings(home: Path) -> None:
    write_network(home / "sites.yaml", OTHER)
    run_config = config(
        receiver_network={"network_file": "sites.yaml"},
        trained_model={"epochs": 7},
        registered_model={"model_name": "mine"},
    )
    found = settings_of(run_config)
    assert found.receiver_network.network_file == "sites.yaml"
    assert found.network.digest == OTHER.digest
    (home / "sites.yaml").unlink()
    assert found.network.digest == OTHER.digest, "it is read once"
    assert found.trained_model.epochs == 7
    assert found.registered_model.model_name == "mine"


def test_a_dataset_is_its_preset_with_what_differs_from_it() -> None:
    settings = SyntheticDatasetConfig(
        preset=Preset.valley,
        scenario=ScenarioOverrides(knife_edge_probability=0.0, tx_power_w=[7.0], tx_power_share=[1.0]),
        num_samples=2000,
        seed=9,
    )
    valley = PRESETS[Preset.valley]
    scenario = valley.model_copy(update={"knife_edge_probability": 0.0, "tx_power_w": (7.0,), "tx_power_share": (1.0,)})
    assert valley.path_loss_exponent == scenario.path_loss_exponent == 4.5
    assert settings.spec(OTHER) == DatasetSpec(OTHER, scenario, 2000, 9)


def test_random_layouts_take_the_preset_and_no_network(home: Path) -> None:
    settings = SyntheticDatasetConfig(layouts=Layouts.random, preset=Preset.handheld, num_samples=2000, seed=9)
    assert settings.spec(OTHER) == DatasetSpec(None, PRESETS[Preset.handheld], 2000, 9, Layouts.random)
    random = {"layouts": "random"}
    check_run_config(config(synthetic_dataset=random))
    write_network(home / "sites.yaml", OTHER)
    told = refusal(config(synthetic_dataset=random, receiver_network={"network_file": "sites.yaml"}))
    assert told == "synthetic_dataset: layouts: random draws its networks; leave out network_file of receiver_network"
    told = refusal(config(synthetic_dataset=random | {"preset": "wideband"}))
    assert told == (
        "synthetic_dataset: layouts: random draws clock_sigma_ns for each layout, so it must be left at 50, got 15"
    )


def test_a_parameter_of_zero_is_no_parameter_left_out() -> None:
    zero = SyntheticDatasetConfig(scenario=ScenarioOverrides(shadowing_common_db=0.0)).spec(OTHER)
    assert (zero.scenario.shadowing_common_db, PRESETS[Preset.default].shadowing_common_db) == (0.0, 4.0)
    assert SyntheticDatasetConfig(preset=Preset.rss).spec(OTHER).scenario.features is Features.rss


def test_every_parameter_of_the_simulation_can_be_set() -> None:
    assert set(ScenarioOverrides.model_fields) == set(Scenario.model_fields)


NAME = "registered_model", "model_name"
DATASET = "synthetic_dataset"


@pytest.mark.parametrize(
    ("step", "name", "taken", "refused"),
    [
        (DATASET, "num_samples", [1000, 5_000_000], [999, 5_000_001]),
        (DATASET, "seed", [0, 2**63 - 1], [-1, 2**63]),
        ("model_evaluation", "max_rmse_m", [1e-9, 1e7], [0.0, 1.0001e7, float("nan")]),
        (*NAME, ["a", "7.b_c-D", "x" * 255], ["", "x" * 256, "-a", ".a", "a b", "a/b", "é"]),
        ("trained_model", "epochs", [2, 5000], [0, 5001]),
    ],
)
def test_each_setting_takes_its_range_and_nothing_beyond(
    step: str, name: str, taken: list[Any], refused: list[Any]
) -> None:
    for value in taken:
        check_run_config(config(**{step: {name: value}}))
    for value in refused:
        assert refusal(config(**{step: {name: value}})).startswith(f"{step}: {name}: ")


@pytest.mark.parametrize("makes_network", [True, False])
def test_parameters_of_the_simulation_have_their_ranges_whatever_the_network(makes_network: bool) -> None:
    for parameter, value in (("path_loss_exponent", 1.9), ("min_detections", 65), ("burst_s", 0.0)):
        told = refusal(config(synthetic_dataset={"scenario": {parameter: value}}), makes_network=makes_network)
        assert told.startswith(f"synthetic_dataset: scenario.{parameter}: Input should be ")
    wrong = {"tx_power_w": [0.0], "tx_power_share": [1.0]}
    assert refusal(config(synthetic_dataset={"scenario": wrong})).startswith("synthetic_dataset: scenario: tx_power_w")


@pytest.mark.parametrize(
    "other",
    [{"preset": "rss"}, {"layouts": "random"}, {"scenario": {"burst_s": 2.0}}, {"num_samples": 1000}, {"seed": 1}],
    ids=lambda other: next(iter(other)),
)
def test_a_dataset_that_exists_is_not_told_how_to_be(other: dict[str, Any]) -> None:
    named = {"dataset_id": "00000000-0000-4000-8000-000000000000"}
    check_run_config(config(synthetic_dataset=named))
    check_run_config(config(synthetic_dataset=other))
    (name,) = other
    told = refusal(config(synthetic_dataset=named | other))
    assert told == f"synthetic_dataset: dataset_id takes a dataset as it is: leave out {name}"


def test_an_id_of_a_dataset_is_taken_as_it_is_kept() -> None:
    settings = SyntheticDatasetConfig(dataset_id="6F1C2C5E3A524D8A8A0C0D3F7A3A9B11")
    assert settings.dataset_id == "6f1c2c5e-3a52-4d8a-8a0c-0d3f7a3a9b11"


HATA = config(synthetic_dataset={"scenario": {"path_loss": "hata"}})


def test_the_dataset_is_held_against_the_network_unless_it_is_made_elsewhere() -> None:
    """By default, too: who launches a run relies on it."""
    sentence = "synthetic_dataset: path_loss hata holds for frequency_mhz from 150 to 1500, got 145"
    assert refusal(HATA) == refusal(HATA, makes_network=True) == sentence
    check_run_config(HATA, makes_network=False)
    many = config(synthetic_dataset={"scenario": {"min_detections": 8}})
    assert refusal(many) == "synthetic_dataset: min_detections (8) must not exceed the network's 7 sites"
    check_run_config(many, makes_network=False)


def test_a_network_file_is_read_only_where_the_run_makes_the_network(tmp_path: Path) -> None:
    run_config = config(receiver_network={"network_file": str(tmp_path / "none.yaml")})
    assert refusal(run_config) == f"receiver_network: network file {tmp_path}/none.yaml does not exist"
    check_run_config(run_config, makes_network=False)


def test_the_device_is_looked_for_only_where_the_run_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = config(trained_model={"accelerator": "gpu"})
    assert refusal(asked).startswith("trained_model: accelerator: gpu was asked for")
    check_run_config(asked, runs_here=False)
    for accelerator in ("cpu", "auto"):
        check_run_config(config(trained_model={"accelerator": accelerator}))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_run_config(asked)


def test_the_folder_of_network_files_may_be_a_link_and_blanks_are_none(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "networks").symlink_to("mounted")
    monkeypatch.setenv("TRIANGULATION_NETWORK_FOLDER", f" {tmp_path}/networks ")
    assert network_path("mine.yaml") == tmp_path / "mounted" / "mine.yaml"
    monkeypatch.setenv("TRIANGULATION_NETWORK_FOLDER", "  ")
    assert network_path("/anywhere/mine.yaml") == Path("/anywhere/mine.yaml")
    assert network_path("mine.yaml") == home / "mine.yaml"


@pytest.mark.parametrize("folder", [None, "networks"])
def test_the_home_of_an_unknown_user_is_no_place_of_a_network(
    home: Path, monkeypatch: pytest.MonkeyPatch, folder: str | None
) -> None:
    monkeypatch.delenv("TRIANGULATION_NETWORK_FOLDER", raising=False)
    if folder is not None:
        monkeypatch.setenv("TRIANGULATION_NETWORK_FOLDER", folder)
    with pytest.raises(ValueError, match=r"^network file ~nobody-of-this-name/x.yaml is not the name of a file$"):
        network_path("~nobody-of-this-name/x.yaml")
