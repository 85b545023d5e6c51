"""What every command starts with: the home, the database, the webserver, and faults that end in one sentence."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.validation import printable, shown

if TYPE_CHECKING:
    import dagster as dg
    from sqlalchemy import Engine

    from triangulation_pipeline.jobs.states import JobRecord

JOB = "train_locator"
SHORTEST_PREFIX = 4
JOB_IS = f"JOB is the id of a job or of one of its runs, or the first {SHORTEST_PREFIX} characters of it or more."
INTERRUPTED = 130
"""The exit code after Ctrl-C."""

Command = Callable[..., Any]


@contextmanager
def sentences() -> Iterator[None]:
    """Bad input, storage faults and what the webserver refuses end with their one sentence and exit code 1."""
    from triangulation_pipeline.client import WebserverError

    try:
        yield
    except (ValueError, StorageError, WebserverError) as error:
        raise click.ClickException(printable(str(error))) from None


def use_home() -> None:
    """Works in ``DAGSTER_HOME``, or in the current folder where that is the project's root."""
    if not os.environ.get("DAGSTER_HOME"):
        if not Path("dagster.yaml").is_file():
            raise ValueError(
                "DAGSTER_HOME is not set and the current folder has no dagster.yaml; set it to the project's folder, "
                "or change to that: every command but `network` reads the database, which TRIANGULATION_DATABASE_URL "
                "names or else is in that folder, and --url says only where Dagster's webserver is"
            )
        os.environ["DAGSTER_HOME"] = str(Path.cwd())
    home = Path(os.environ["DAGSTER_HOME"])
    if not home.is_absolute() or not home.is_dir():
        raise ValueError(f"DAGSTER_HOME must be the absolute path of a folder, got {str(home)!r}")
    # dagster.yaml names its places relative to the folder that Dagster's processes are started in: this one.
    os.chdir(home)


def open_engine() -> "Engine":
    """The database of the home. Raises ValueError and StorageError."""
    use_home()
    from triangulation_pipeline.storage.engine import open_database
    from triangulation_pipeline.storage.settings import read_settings

    return open_database(read_settings().database_url)


def find_named(
    engine: "Engine", name: str, runs_named: "Callable[[str], list[Any]]"
) -> "tuple[JobRecord | None, Any | None]":
    """The job that ``name`` is an id of: its own, that of any of its runs, or the beginning of one; and the run of that
    id, where the database does not know it, with a job or without.

    ``runs_named`` gives Dagster's runs whose ids begin so.
    Raises ValueError where the name is too short or ambiguous, and StorageError where nothing has it.
    """
    from triangulation_pipeline.client import WebserverError
    from triangulation_pipeline.jobs.states import list_jobs

    prefix = name.strip().lower()
    if len(prefix) < SHORTEST_PREFIX:
        raise ValueError(
            f"a job or run is named by its id, or the first {SHORTEST_PREFIX} characters of it or more, got "
            f"{shown(name)}"
        )
    jobs = {job.id: job for job in list_jobs(engine)}
    ids = {job.id for job in jobs.values() if any(known.startswith(prefix) for known in (job.id, job.run_id or ""))}
    runs = []
    if not ids:
        try:
            runs = runs_named(prefix)
        except WebserverError as error:
            raise StorageError(f"there is no training job {shown(name)}, and no word of such a run: {error}") from None
        ids = {run.root_run_id if run.root_run_id in jobs else run.run_id for run in runs}
    if not ids:
        raise StorageError(f"there is no training job and no run {shown(name)}")
    if len(ids) > 1:
        some = ", ".join(sorted(ids)[:3])
        raise ValueError(f"{name} is the beginning of {len(ids)} ids ({some}); give more of it")
    return jobs.get(ids.pop()), runs[0] if len(runs) == 1 else None


def get_job_named(engine: "Engine", name: str, runs_named: "Callable[[str], list[Any]]") -> "JobRecord":
    """The job, as ``find_named`` finds it. Raises StorageError where there is none, also where there is a run."""
    job, run = find_named(engine, name, runs_named)
    if job is None:
        assert run is not None
        raise StorageError(f"run {run.run_id} has no training job: it did not come to train, or has not yet")
    return job


def open_instance() -> "dg.DagsterInstance":
    """Dagster's instance. The first process makes its SQLite files alone: of two that do so at once Dagster lets one
    fail."""
    import dagster as dg
    from filelock import FileLock

    from triangulation_pipeline.storage.objects import make_private

    try:
        make_private(Path(".dagster"))
        with FileLock(Path(".dagster") / "opening.lock"):
            return dg.DagsterInstance.get()
    except OSError as error:
        raise ValueError(f"DAGSTER_HOME ({Path.cwd()}) cannot be written: {error.strerror}") from None


def runs_here(beginning: str) -> "list[dg.DagsterRun]":
    """The runs of this home whose ids begin so."""
    with open_instance() as instance:
        ids = [run_id for run_id in instance.get_run_ids() if run_id.startswith(beginning)]
        return [run for run in map(instance.get_run_by_id, ids) if run is not None]


def json_option(command: Command) -> Command:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, with whole ids and all columns.")(command)


def url_option(command: Command) -> Command:
    """``--url``."""
    return click.option(
        "--url",
        metavar="URL",
        help="Address of Dagster's webserver. The default is TRIANGULATION_WEBSERVER_URL, or http://localhost:3000.",
    )(command)


def config_option(command: Command) -> Command:
    """``--config``."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
        help="Dagster run config in YAML; what is left out keeps its default.",
    )(command)
