"""Dagster's manners: groups, kinds, versions of the code, and what is taken from Dagster that it does not export."""

import ast
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import dagster as dg
import dagster_webserver
import pytest
import yaml
from dagster._daemon.auto_run_reexecution import event_log_consumer

from triangulation_pipeline.definitions import defs
from triangulation_pipeline.defs.dagster_private import begin_retries_here
from triangulation_pipeline.model.spec import LOCATOR_VERSION
from triangulation_pipeline.physics import dataset_spec
from triangulation_pipeline.physics.dataset_spec import GENERATOR_VERSION
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.storage.datasets import get_dataset, list_datasets
from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.defs.test_whole_run import stale
from triangulation_pipeline_tests.storage.model_rows import get_model, list_models

PACKAGE = ROOT / "triangulation_pipeline"


def private_imports(path: Path) -> list[str]:
    """Modules and names of Dagster's packages that begin with an underscore, which a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [name for name in names if re.match(r"dagster\w*\.(.*\.)?_", name)]
    return found


def test_only_one_file_reaches_into_dagster() -> None:
    found = {str(path.relative_to(PACKAGE)): private_imports(path) for path in PACKAGE.rglob("*.py")}
    assert {name for name, imports in found.items() if imports} == {"defs/dagster_private.py"}
    # By attribute, which an import would not show.
    assert [path.name for path in PACKAGE.rglob("*.py") if re.search(r"\bdg\._\w", path.read_text())] == []


def test_first_start_of_the_daemon_warns_of_nothing(whole_run: Run, caplog: pytest.LogCaptureFixture) -> None:
    instance, kinds = whole_run.instance, event_log_consumer.DAGSTER_EVENT_TYPES

    def cursors() -> dict[dg.DagsterEventType, int | None]:
        return event_log_consumer._fetch_persisted_cursors(instance, kinds, logging.getLogger("daemon"))

    assert set(cursors().values()) == {None}
    assert "No cursor for event type" in caplog.text, "as it would be"
    caplog.clear()
    begin_retries_here(instance)
    last = instance.event_log_storage.get_maximum_record_id()
    assert last
    assert cursors() == dict.fromkeys(kinds, last)
    assert caplog.text == ""
    event_log_consumer._persist_cursors(instance, dict.fromkeys(kinds, 7))
    begin_retries_here(instance)
    assert cursors() == dict.fromkeys(kinds, 7), "where the daemon has been, it goes on"


def test_groups_are_those_of_the_design() -> None:
    graph = defs.resolve_asset_graph()
    groups: dict[str, set[str]] = {}
    for key in graph.materializable_asset_keys:
        groups.setdefault(str(graph.get(key).group_name), set()).add(key.to_user_string())
    assert groups == {
        "network": {"receiver_network", "network_plan"},
        "simulation": {"synthetic_dataset", "training_split", "validation_split", "test_split"},
        "model": {"trained_model", "model_evaluation", "registered_model"},
    }


def test_every_kind_has_an_icon_on_the_page() -> None:
    graph = defs.resolve_asset_graph()
    kinds = {kind for key in graph.materializable_asset_keys for kind in graph.get(key).kinds}
    assert kinds
    built = Path(dagster_webserver.__file__).parent / "webapp" / "build" / "_next" / "static" / "chunks"
    icons = {
        name
        for path in built.glob("*.js")
        for name in re.findall(r'[,{]"?([a-z0-9_]+)"?:\{(?:color:"[^"]*",)?icon:', path.read_text(errors="replace"))
    }
    assert "sqlalchemy" not in icons, "it would be found for any word"
    assert kinds <= icons


def test_code_versions_name_the_arithmetic() -> None:
    graph = defs.resolve_asset_graph()
    versions = {key.to_user_string(): str(graph.get(key).code_version) for key in graph.materializable_asset_keys}
    for name, version in versions.items():
        assert re.fullmatch(r"[a-z]+ \d+(, [a-z]+ \d+)*", version), name
    of = {
        f"generator {GENERATOR_VERSION}": {"synthetic_dataset"},
        f"solvers {SOLVERS_VERSION}": {"trained_model", "model_evaluation"},
        f"locator {LOCATOR_VERSION}": {"trained_model", "model_evaluation", "registered_model"},
    }
    for part, assets in of.items():
        assert {name for name, version in versions.items() if part in version.split(", ")} == assets


def with_code_version(**versions: str) -> dg.Definitions:
    """The code location after a change of the arithmetic of these assets."""

    def changed(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.to_user_string()
        return spec.replace_attributes(code_version=versions[name]) if name in versions else spec

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return defs.map_asset_specs(func=changed)


def materialise_what_is_stale(instance: dg.DagsterInstance, location: dg.Definitions) -> list[set[str]]:
    """As `Materialize unsynced` on the page of the graph, until there is nothing left; what each time made."""
    made = []
    while found := set(stale(instance, location)):
        assert len(made) < 8
        assert execute(settings(), sorted(found), instance, location=location).result.success
        made.append(found)
    return made


def test_change_of_a_solver_makes_stale_what_it_decides(whole_run: Run) -> None:
    instance = whole_run.instance
    changed = with_code_version(trained_model="solvers 2", model_evaluation="solvers 2")
    why = ["has a new code version"]
    assert stale(instance, changed) == {"trained_model": why, "model_evaluation": why}
    # The weights come out equal, as no solver was changed in truth: their version stays in sync.
    assert materialise_what_is_stale(instance, changed) == [{"trained_model", "model_evaluation"}]
    (model,) = list_models(whole_run.engine)
    assert model.version == 1


def test_change_of_the_generator_makes_another_dataset_and_all_that_follows(
    whole_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialise_what_is_stale(whole_run.instance, defs)
    monkeypatch.setattr(dataset_spec, "GENERATOR_VERSION", GENERATOR_VERSION + 1)
    changed = with_code_version(synthetic_dataset=f"generator {GENERATOR_VERSION + 1}")
    assert materialise_what_is_stale(whole_run.instance, changed) == [
        {"synthetic_dataset"},
        {"training_split", "validation_split", "test_split"},
        {"trained_model", "model_evaluation", "registered_model"},
    ]
    new, old = list_datasets(whole_run.engine)
    assert {new.config["generator_version"], old.config["generator_version"]} == {
        GENERATOR_VERSION,
        GENERATOR_VERSION + 1,
    }
    model = get_model(whole_run.engine, "rf-triangulation")
    assert (
        get_dataset(whole_run.engine, model.synthetic_dataset_id).config["generator_version"] == GENERATOR_VERSION + 1
    )
    monkeypatch.undo()
    assert set(stale(whole_run.instance, defs)) == {"synthetic_dataset"}, "and back"


@pytest.mark.faults
def test_mixed_datasets_are_told_apart_by_name(whole_run: Run) -> None:
    """Each sentence says which id is whose."""
    instance = whole_run.instance
    old = execute(settings(), instance=instance).metadata("synthetic_dataset")["dataset_id"]
    chain = ["receiver_network", "synthetic_dataset"]
    changed = settings(synthetic_dataset={"seed": 1})
    made = execute(changed, [*chain, "training_split"], instance)
    new = made.metadata("synthetic_dataset")["dataset_id"]
    # The check beside the training split looks at all three.
    told = [e.description for e in made.result.get_asset_check_evaluations() if not e.passed]
    assert told == [
        f"training_split is of dataset {new}, validation_split of dataset {old}, test_split of dataset {old}; "
        "materialise them in one run"
    ]
    assert execute(changed, ["trained_model"], instance).failure() == (
        f"training_split is of dataset {new}, validation_split of dataset {old}; materialise them in one run"
    )
    assert execute(changed, ["model_evaluation"], instance).failure() == (
        f"trained_model is of dataset {old}, training_split of dataset {new}, test_split of dataset {old}; "
        "materialise them in one run"
    )
    assert execute(changed, [*chain, "test_split"], instance).result.success
    # Two splits that fit each other, and a model that was trained on rows that may be among them.
    assert execute(changed, ["model_evaluation"], instance).failure() == (
        f"trained_model is of dataset {old}, training_split of dataset {new}, test_split of dataset {new}; "
        "materialise them in one run"
    )
    assert execute(changed, ["registered_model"], instance).failure() == (
        f"model_evaluation is of dataset {old}, test_split of dataset {new}; materialise them in one run"
    )


def description_of_storage(**environment: str) -> str:
    code = (
        "from triangulation_pipeline.definitions import defs\n"
        "print(defs.get_repository_def().get_top_level_resources()['storage'].description)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return done.stdout


def test_page_of_the_storage_shows_its_places_without_secrets(home: Path) -> None:
    shown = description_of_storage()
    assert f"- database: `sqlite:///{home}/.dagster/triangulation.db`" in shown
    assert f"- object store: `{home}/.dagster/objects`" in shown
    shown = description_of_storage(
        TRIANGULATION_DATABASE_URL="postgresql://pipeline:wJalrXUtnFEMI@db.example.org:5433/tri?sslkey=/keys/mine",
        TRIANGULATION_OBJECT_STORE="s3://bucket/prefix",
        AWS_SECRET_ACCESS_KEY="wJalrXUtnFEMI",
    )
    assert "`postgresql+psycopg://pipeline:***@db.example.org:5433/tri`" in shown
    assert "`s3://bucket/prefix`" in shown
    assert "wJalrXUtnFEMI" not in shown
    assert "/keys/mine" not in shown
    shown = description_of_storage(TRIANGULATION_DATABASE_URL="mysql://pipeline:wJalrXUtnFEMI@db/x")
    assert "Wrong: TRIANGULATION_DATABASE_URL: the database URL must begin with" in shown
    assert "wJalrXUtnFEMI" not in shown


def test_dg_names_the_code_location_that_the_workspace_names() -> None:
    tool: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert tool["dg"] == {
        "directory_type": "project",
        "project": {
            "root_module": PACKAGE.name,
            "code_location_target_module": entry["python_module"]["module_name"],
            "code_location_name": entry["python_module"]["location_name"],
        },
    }


def test_dg_checks_and_lists_the_definitions(home: Path) -> None:
    """Where it is installed, as in `pip install dagster-dg-cli==1.13.27`: with it come twenty packages more."""
    dg_program = os.environ.get("TRIANGULATION_TEST_DG") or shutil.which("dg", path=str(Path(sys.executable).parent))
    if dg_program is None:
        pytest.skip("dg is not installed beside Python, and TRIANGULATION_TEST_DG names none")
    for command in (["check", "defs"], ["list", "defs", "--json"]):
        done = subprocess.run([dg_program, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Warning" not in done.stderr
    assert "receiver_network" in done.stdout
