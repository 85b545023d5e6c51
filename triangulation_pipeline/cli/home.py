"""What every command starts with: the home, the database, the webserver, and faults that end in one sentence."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from triangulation_pipeline.cli.tables import say
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.validation import printable

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from triangulation_pipeline.storage.jobs import JobRecord

JOB = "train_locator"
SHORTEST_PREFIX = 4
INTERRUPTED = 130
"""The exit code after Ctrl-C."""

Command = Callable[..., Any]


@contextmanager
def sentences() -> Iterator[None]:
    """Bad input, storage faults and what the webserver refuses end with their one sentence and exit code 1; Ctrl-C with
    exit code 130."""
    from triangulation_pipeline.client import WebserverError

    try:
        yield
    except (ValueError, StorageError, WebserverError) as error:
        raise click.ClickException(printable(str(error))) from None
    except KeyboardInterrupt:
        say("stopped", err=True)
        sys.exit(INTERRUPTED)


def use_home() -> None:
    """Works in ``DAGSTER_HOME``, or in the current folder where that is the project's root."""
    if not os.environ.get("DAGSTER_HOME"):
        if not Path("dagster.yaml").is_file():
            raise ValueError(
                "DAGSTER_HOME is not set and the current folder has no dagster.yaml; set it, or change folder"
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


def match_job(engine: "Engine", name: str) -> "JobRecord | None":
    """The job whose id is or begins with ``name``, or None. Raises ValueError where it is too short or ambiguous."""
    from triangulation_pipeline.storage.jobs import list_jobs

    prefix = name.strip().lower()
    if len(prefix) < SHORTEST_PREFIX:
        raise ValueError(f"a job is named by its id or the first {SHORTEST_PREFIX} characters or more, got {name!r}")
    found = [job for job in list_jobs(engine) if job.id.startswith(prefix)]
    if len(found) > 1:
        shown = ", ".join(job.id for job in found[:3])
        raise ValueError(f"{name} is the beginning of {len(found)} jobs' ids ({shown}); give more of it")
    return found[0] if found else None


def get_job_named(engine: "Engine", name: str) -> "JobRecord":
    """The job whose id is or begins with ``name``. Raises StorageError where there is none."""
    if (job := match_job(engine, name)) is None:
        raise StorageError(f"there is no training job {name}")
    return job


def json_option(command: Command) -> Command:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")(command)


def url_option(command: Command) -> Command:
    """``--url``."""
    return click.option(
        "--url",
        metavar="URL",
        help="Dagster's webserver; else TRIANGULATION_WEBSERVER_URL, else http://localhost:3000.",
    )(command)


def config_option(command: Command) -> Command:
    """``--config``."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
        help="Dagster run config (YAML): what differs from the defaults.",
    )(command)
