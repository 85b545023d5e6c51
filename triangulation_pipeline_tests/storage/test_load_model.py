"""Models by what a person calls them."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from triangulation_pipeline.formats.recording import recording_of, write_measurements
from triangulation_pipeline.model.checkpoint import Checkpoint, write_checkpoint
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.models import load_model
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import FolderStore
from triangulation_pipeline_tests.storage.test_registry import MakeJob, register
from triangulation_pipeline_tests.test_documentation import blocks, printed


def other_weights(factor: float) -> Checkpoint:
    universal = universal_model()
    return replace(universal, weights={name: factor * tensor for name, tensor in universal.weights.items()})


def test_a_registered_model_is_found_by_name_version_or_production(
    engine: Engine,
    database_url: str,
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", database_url)
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", str(tmp_path / "objects"))
    store, job = FolderStore(tmp_path / "objects"), make_job()
    made = [other_weights(factor) for factor in (0.5, 0.7)]
    for number, checkpoint in enumerate(made):
        content = write_checkpoint(checkpoint)
        stored = store.put(f"{number}/best_model.pth", content)
        digest = hashlib.sha256(content).hexdigest()
        register(engine, job, pytorch_model_location=stored.location, sha256=digest, passed=number == 0)
    for reference, expected in (
        ("locator", 0),
        ("locator@production", 0),
        ("locator/1", 0),
        ("locator/2", 1),
        ("locator:2", 1),
    ):
        assert load_model(reference).weights_digest == made[expected].weights_digest, reference
    assert load_model("universal").weights_digest == universal_model().weights_digest
    with pytest.raises(StorageError, match="there is no model 'locator/3' in the registry"):
        load_model("locator/3")
    with pytest.raises(StorageError, match="there is no model 'other' in the registry"):
        load_model("other")


def test_the_lines_of_the_readme(
    engine: Engine, database_url: str, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model of a run of the default settings in production, and a recording of its receivers."""
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", database_url)
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", str(tmp_path / "objects"))
    monkeypatch.chdir(tmp_path)
    universal = universal_model()
    spec = universal.spec.model_copy(update={"network": NORTH_WEST_ITALY, "scenario": Scenario()})
    content = write_checkpoint(replace(universal, spec=spec))
    stored = FolderStore(tmp_path / "objects").put("best_model.pth", content)
    digest = hashlib.sha256(content).hexdigest()
    made = {"pytorch_model_location": stored.location, "sha256": digest, "passed": True}
    register(engine, make_job(), model_name="rf-triangulation", **made)
    samples = simulate(DatasetSpec(NORTH_WEST_ITALY, Scenario(), 30, seed=1))
    write_measurements(recording_of(samples, NORTH_WEST_ITALY), tmp_path / "measurements.csv")
    (block,) = (block for block in blocks("README.md", "python") if block.content.startswith("import pandas"))
    names: dict[str, Any] = {}
    assert printed(block.content, names) == []
    assert names["fixes"]["error_m"].median() < 200
    assert len(names["fixes"]) == 30


def test_looking_for_a_model_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", f"sqlite:///{tmp_path}/none/here.db")
    with pytest.raises(StorageError, match=r"there is no database to find the model 'locator/1' in: .*here\.db"):
        load_model("locator/1")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="a model must be universal, name, name/version"):
        load_model("two words")
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"^model .*bad\.pth: "):
        load_model(str(tmp_path / "bad.pth"))
