"""Dagster's instance in DAGSTER_HOME, for commands that do without the webserver."""

from pathlib import Path

import dagster as dg
from filelock import FileLock

from triangulation_pipeline.storage.objects import make_private


def open_instance() -> dg.DagsterInstance:
    """Dagster's instance. Raises ValueError if DAGSTER_HOME cannot be written."""
    try:
        make_private(Path(".dagster"))
        # If two processes make Dagster's SQLite files at the same time, one of them fails.
        with FileLock(Path(".dagster") / "opening.lock"):
            return dg.DagsterInstance.get()
    except OSError as error:
        raise ValueError(f"DAGSTER_HOME ({Path.cwd()}) cannot be written: {error.strerror}") from None


def runs_here(beginning: str) -> list[dg.DagsterRun]:
    """The runs in DAGSTER_HOME whose ids have that beginning."""
    with open_instance() as instance:
        ids = [run_id for run_id in instance.get_run_ids() if run_id.startswith(beginning)]
        return [run for run in map(instance.get_run_by_id, ids) if run is not None]
