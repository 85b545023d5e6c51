"""The folder and the database that a command works with."""

import os
from pathlib import Path

from sqlalchemy import Engine

from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.settings import read_settings


def use_home() -> None:
    """Changes to the folder ``DAGSTER_HOME``; if it is not set, the current folder must have a dagster.yaml.

    Raises ValueError if there is no such folder.
    """
    check_home(
        "this command reads the database, which is there if TRIANGULATION_DATABASE_URL names no other (--url only "
        "names Dagster's webserver)"
    )
    # dagster.yaml names its places relative to the folder that Dagster's processes are started in: this one.
    os.chdir(os.environ["DAGSTER_HOME"])


def check_home(because: str) -> None:
    """Sets ``DAGSTER_HOME`` to the current folder if it is not set. Raises ValueError as ``use_home`` does, which says
    why the folder is needed."""
    if not os.environ.get("DAGSTER_HOME"):
        if not Path("dagster.yaml").is_file():
            raise ValueError(
                "DAGSTER_HOME is not set and the current folder has no dagster.yaml; set it to the project's folder, "
                f"or change to that folder: {because}"
            )
        os.environ["DAGSTER_HOME"] = str(Path.cwd())
    dagster_home = Path(os.environ["DAGSTER_HOME"])
    if not dagster_home.is_absolute() or not dagster_home.is_dir():
        raise ValueError(f"DAGSTER_HOME must be the absolute path of a folder, got {str(dagster_home)!r}")


def open_engine() -> Engine:
    """Changes to DAGSTER_HOME and opens the database. Raises ValueError and StorageError."""
    use_home()
    return open_database(read_settings().database_url)


def open_engine_from_here(because: str) -> Engine:
    """Opens the database of DAGSTER_HOME, and stays in the folder that other paths of the command line are relative to.
    Raises ValueError, which says why the database is needed, and StorageError."""
    check_home(because)
    return open_database(read_settings().database_url)
