"""What a run is told to take from the environment or from a file is in none of its events."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from triangulation_pipeline.defs.config import STEP_CONFIGS, check_run_config, network_path, refuse_environment
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings

VARIABLE, SECRET = "THE_SECRET_KEY", "wJalrXUtnFEMI-K7MDENG"
TAKEN = {"env": VARIABLE}
# Of each step the settings that Dagster would let the environment fill in: texts and whole numbers.
PLACES = [
    (step, name)
    for step, model in STEP_CONFIGS.items()
    for name, field in model.model_fields.items()
    if re.search(r"\b(str|int)\b", str(field.annotation))
]


@pytest.fixture
def used(whole_run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run after which every asset can be launched alone, on an instance whose environment holds a secret."""
    monkeypatch.setenv(VARIABLE, SECRET)
    return whole_run


def everything_told(run: Run) -> str:
    return "\n".join(str(entry) for entry in run.instance.all_logs(run.run_id))


def test_every_text_and_number_is_tried() -> None:
    have_neither = {"network_plan", "model_evaluation"}
    assert {step for step, _ in PLACES} == set(STEP_CONFIGS) - have_neither
    assert ("trained_model", "parent_model_id") in PLACES
    assert ("synthetic_dataset", "dataset_id") in PLACES
    assert len(PLACES) >= 10


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
@pytest.mark.parametrize(("step", "name"), PLACES)
def test_no_step_shows_the_environment(used: Run, step: str, name: str, together: bool) -> None:
    selection = None if together else [step]
    config = {"ops": {step: {"config": {name: TAKEN}}}}
    if "int" in str(STEP_CONFIGS[step].model_fields[name].annotation):
        # Dagster reads the variable at launch, and says that it holds no whole number.
        with pytest.raises(dg.DagsterInvalidConfigError, match=f'"{VARIABLE}" cannot be coerced') as refused:
            execute(config, selection, used.instance)
        assert SECRET not in str(refused.value)
        return
    run = execute(config, selection, used.instance)
    told = everything_told(run)
    assert not run.result.success
    assert f"ops.{step}.config.{name}: {{env: '{VARIABLE}'}} is not taken, as settings are shown to everyone" in told
    assert SECRET not in told
    assert not run.result.get_asset_materialization_events()


@pytest.mark.parametrize(
    "run_config",
    [
        {"ops": {"synthetic_dataset": {"config": {"scenario": {"tx_power_w": [1.0, TAKEN]}}}}},
        {"ops": {"trained_model": {"config": {"job_name": TAKEN}}}},
        {"loggers": {"console": {"config": {"name": TAKEN}}}},
        {"resources": {"storage": {"config": TAKEN}}},
        TAKEN,
    ],
)
def test_wherever_the_environment_is_named_it_is_refused(run_config: dict[str, Any]) -> None:
    for check in (refuse_environment, check_run_config):
        with pytest.raises(ValueError, match=rf"{{env: '{VARIABLE}'}} is not taken"):
            check(run_config)


def test_a_setting_of_several_keys_is_no_variable() -> None:
    refuse_environment({"ops": {"x": {"config": {"env": "a", "other": "b"}}}, "empty": [], "none": None})


def test_a_file_that_is_no_network_is_not_quoted(used: Run, tmp_path: Path) -> None:
    for name, text in (
        ("kubeconfig", f"users:\n- name: admin\n  user: {{token: {SECRET}}}\n"),
        ("sites.yaml", f"name: n\nsites: [{{name: a, lat: {SECRET}, lon: 7}}]\npassword: {SECRET}\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        run = execute({"ops": {"receiver_network": {"config": {"network_file": str(path)}}}}, None, used.instance)
        assert not run.result.success
        assert SECRET not in everything_told(run)
        assert str(path) in run.failure()


def test_settings_that_are_wrong_are_not_quoted_by_dagster(used: Run) -> None:
    """Dagster makes the object of a step's settings before the step can look at them."""
    run = execute(settings(trained_model={"parent_model_id": f"{SECRET}!"}), ["trained_model"], used.instance)
    assert not run.result.success
    assert "input_value" not in everything_told(run).replace(repr({"parent_model_id": f"{SECRET}!"}), "")


def test_network_files_lie_in_the_folder_that_is_allowed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outside = tmp_path / "networks", tmp_path / "secret.yaml"
    (folder / "sub").mkdir(parents=True)
    outside.write_text("token: secret")
    (folder / "link.yaml").symlink_to(outside)
    # As Kubernetes lays the files of a ConfigMap.
    (folder / "..data").symlink_to("sub")
    (folder / "mapped.yaml").symlink_to("..data/mapped.yaml")
    monkeypatch.setenv("TRIANGULATION_NETWORK_FOLDER", str(folder))
    for name in ("mine.yaml", f"{folder}/mine.yaml", "sub/../mine.yaml"):
        assert network_path(name) == folder / "mine.yaml"
    assert network_path("mapped.yaml") == folder / "sub" / "mapped.yaml"
    refusal = rf"lies outside {folder}, the folder of network files \(TRIANGULATION_NETWORK_FOLDER\)"
    for name in ("../secret.yaml", str(outside), "link.yaml", "/proc/self/environ", "~/x.yaml", f"{folder}2/x.yaml"):
        with pytest.raises(ValueError, match=refusal):
            network_path(name)
    run = execute(settings(receiver_network={"network_file": str(outside)}))
    assert run.failed_step() == "receiver_network"
    assert f"network file {outside} lies outside {folder}" in run.failure()
    monkeypatch.setenv("TRIANGULATION_NETWORK_FOLDER", "networks")  # resolved against home
    assert network_path("mine.yaml") == home / "networks" / "mine.yaml"
    monkeypatch.setenv("TRIANGULATION_NETWORK_FOLDER", "~nobody-of-this-name/networks")
    with pytest.raises(ValueError, match=r"^TRIANGULATION_NETWORK_FOLDER is not the name of a folder$"):
        network_path("mine.yaml")
    monkeypatch.delenv("TRIANGULATION_NETWORK_FOLDER")
    assert network_path("mine.yaml") == home / "mine.yaml"
    assert network_path(str(outside)) == outside


def test_odd_sites_are_a_warning_on_the_page_of_the_network(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "twins.yaml"
    path.write_text(
        "name: twins\nsites:\n"
        "  - {name: a, lat: 45.0, lon: 7.0}\n  - {name: A, lat: 45.2, lon: 7.9}\n  - {name: c, lat: 44.6, lon: 8.3}\n"
    )
    run = execute(settings(receiver_network={"network_file": str(path)}), ["receiver_network"])
    assert run.metadata("receiver_network")["warnings"] == ("the names of sites 'a' and 'A' look alike")
    plain = execute(settings(), ["receiver_network"])
    assert "warnings" not in plain.metadata("receiver_network")
    assert plain.metadata("receiver_network")["network_digest"] == NORTH_WEST_ITALY.digest


def test_a_gain_that_was_measured_at_some_sites_only_is_shown_at_those(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "measured.yaml"
    path.write_text(
        "name: measured\nsites:\n  - {name: a, lat: 45.0, lon: 7.0, gain_offset_db: 0.7}\n"
        "  - {name: b, lat: 45.2, lon: 7.9}\n  - {name: c, lat: 44.6, lon: 8.3}\n"
    )
    run = execute(settings(receiver_network={"network_file": str(path)}), ["receiver_network"])
    rows = run.metadata("receiver_network")["sites"]
    assert [(row["number"], row["gain_offset_db"]) for row in rows] == [(1, 0.7), (2, None), (3, None)]
