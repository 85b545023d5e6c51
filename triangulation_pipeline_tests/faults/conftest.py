"""Worker processes that really die, and what must hold of a home at any moment."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from triangulation_pipeline.jobs.record import load_checkpoint, read_metrics, read_state
from triangulation_pipeline.jobs.states import JobRecord, list_jobs
from triangulation_pipeline.model.checkpoint import load
from triangulation_pipeline.storage.datasets import list_datasets, verify_dataset
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.objects import FolderStore
from triangulation_pipeline.storage.settings import read_settings
from triangulation_pipeline_tests.storage.model_rows import list_models

COMMAND = [sys.executable, "-m", "triangulation_pipeline.cli"]


def write_config(folder: Path, name: str = "run.yaml", **steps: dict[str, Any]) -> Path:
    """A run.yaml with these settings by step."""
    path = folder / name
    path.write_text(yaml.safe_dump({"ops": {step: {"config": config} for step, config in steps.items()}}))
    return path


def worker(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """``triangulation`` with these arguments, in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the worker, and then to what copied its output, which may not notice."""
    process.kill()
    process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    """What a worker printed, once it has ended well."""
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    return printed


def jobs_of_a_sound_home() -> list[JobRecord]:
    """All jobs of the environment's home, the newest first, after looking at everything that a kill may have torn:
    rows that point to objects, digests, epochs without a gap, datasets without a missing row."""
    settings = read_settings()
    assert isinstance(settings.object_store, Path)
    engine, objects = open_database(settings.database_url), FolderStore(settings.object_store)
    try:
        for dataset in list_datasets(engine):
            verify_dataset(engine, dataset.id)
        for model in list_models(engine):
            load_checkpoint(objects, model.pytorch_model_location, model.sha256)
        jobs = list_jobs(engine)
        for job in jobs:
            assert read_metrics(engine, job.id)["epoch"].tolist() == list(range(1, job.current_epoch + 1))
            assert (job.state_location is None) == (job.current_epoch == 0)
            if (state := read_state(objects, job)) is not None:
                assert len(load(state)["history"]) == job.current_epoch
        return jobs
    finally:
        engine.dispose()
