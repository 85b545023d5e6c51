"""The shape of the graph, and what loading it costs."""

import re
import subprocess
import sys

import dagster as dg

from triangulation_pipeline.definitions import defs
from triangulation_pipeline.defs.automation.settings import AutomationSettings
from triangulation_pipeline.defs.config import STEP_CONFIGS, ScenarioOverrides
from triangulation_pipeline.network import ReceiverNetwork, Site
from triangulation_pipeline.storage.settings import Settings
from triangulation_pipeline_tests.conftest import ROOT


def test_loadable() -> None:
    dg.Definitions.validate_loadable(defs)


def test_graph_is_the_designed_one() -> None:
    graph = defs.resolve_asset_graph()
    parents = {
        key.to_user_string(): sorted(p.to_user_string() for p in graph.get(key).parent_keys)
        for key in graph.materializable_asset_keys
    }
    assert parents == {
        "receiver_network": [],
        "synthetic_dataset": ["receiver_network"],
        "training_split": ["synthetic_dataset"],
        "validation_split": ["synthetic_dataset"],
        "test_split": ["synthetic_dataset"],
        "trained_model": ["training_split", "validation_split"],
        "model_evaluation": ["test_split", "trained_model", "training_split"],
        "registered_model": ["model_evaluation", "test_split", "trained_model"],
    }
    checks = {key.name: graph.get_check_spec(key).blocking for key in graph.asset_check_keys}
    assert checks == {
        "dataset_quality": False,
        "splits_disjoint_and_complete": True,
        "checkpoint_is_sound": True,
        "accuracy": False,
        "calibration": False,
        "calibration_by_arrival_times": False,
        "near_exact_posterior": False,
        "better_than_classical": False,
        "not_worse_than_production": False,
    }


def test_the_operators_page_has_the_edges_of_the_graph() -> None:
    graph = defs.resolve_asset_graph()
    section = (ROOT / "docs" / "operations.md").read_text().partition("## The graph")[2].partition("\n## ")[0]
    told: dict[str, set[str]] = {}
    for assets, parents in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]*)\|", section, re.MULTILINE):
        told |= {asset: set(re.findall(r"`(\w+)`", parents)) for asset in re.findall(r"`(\w+)`", assets)}
    assert told == {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.materializable_asset_keys
    }


def test_nothing_launches_by_itself_until_it_is_turned_on() -> None:
    repository = defs.get_repository_def()
    found = {found.name: found.default_status.value for found in (*repository.sensor_defs, *repository.schedule_defs)}
    assert found.pop("job_reconciler") == "RUNNING"  # which launches nothing
    assert found == dict.fromkeys(
        ("new_dataset", "network_file_changed", "evaluate_and_register", "periodic_retraining"), "STOPPED"
    )


def test_one_run_at_a_time_trains_or_registers_and_each_run_is_one_process() -> None:
    pools = {key.to_user_string(): asset.op.pool for asset in defs.assets or () for key in asset.keys}  # type: ignore[union-attr]
    assert {name: pool for name, pool in pools.items() if pool} == {
        "trained_model": "training",
        "registered_model": "training",
    }
    job = defs.resolve_job_def("train_locator")
    assert job.executor_def.name == "in_process"
    assert job.asset_layer.executable_asset_keys == defs.resolve_asset_graph().materializable_asset_keys


def test_what_launches_trainings_launches_the_one_job_twice_a_minute_at_most() -> None:
    repository = defs.get_repository_def()
    sensors = {found.name: found for found in repository.sensor_defs}
    for name in ("new_dataset", "network_file_changed", "evaluate_and_register"):
        assert sensors[name].minimum_interval_seconds == 30
    for name in ("new_dataset", "network_file_changed"):
        assert sensors[name].job_name == "train_locator"
    (schedule,) = repository.schedule_defs
    assert schedule.job_name == "train_locator"


def test_every_switch_says_what_it_does() -> None:
    repository = defs.get_repository_def()
    told = {found.name: found.description or "" for found in (*repository.sensor_defs, *repository.schedule_defs)}
    assert told.pop("job_reconciler").startswith("Keep it on. It launches nothing.")
    for name, description in told.items():
        assert description.startswith("Launches "), name


def test_the_settings_of_every_step_are_checked_before_the_first_step() -> None:
    schemas = {
        node.name: node.definition.config_schema.config_type for node in defs.resolve_job_def("train_locator").nodes
    }
    fields = {name: set(schema.fields) for name, schema in schemas.items() if isinstance(schema, dg.Shape)}
    assert fields == {step: set(model.model_fields) for step, model in STEP_CONFIGS.items()}


def test_every_setting_is_described_by_a_whole_sentence() -> None:
    """In the launchpad, in a network file, and in the environment."""
    for model in (*STEP_CONFIGS.values(), ScenarioOverrides, Site, ReceiverNetwork, AutomationSettings, Settings):
        for name, field in model.model_fields.items():
            description = field.description or ""
            assert description.endswith("."), f"{model.__name__}.{name}: {description}"
            first, _, _ = description.partition(". ")
            assert len(first.split()) >= 5, f"{model.__name__}.{name}: {description}"


def test_loading_imports_neither_pytorch_nor_plots() -> None:
    code = (
        "import sys, triangulation_pipeline.definitions\n"
        "print([name for name in ('torch', 'matplotlib', 'scipy', 'pandas') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in found.stdout
    assert "matplotlib" not in found.stdout
