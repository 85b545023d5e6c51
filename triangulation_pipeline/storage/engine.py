"""Opening the database, at the newest schema, and the transaction that writes."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from triangulation_pipeline.storage.errors import StorageError

# Longer than any transaction here: a dataset is written in a single one.
BUSY_TIMEOUT_S = 60.0

# Alembic keeps the running migration in a global: one at a time in a process, whatever the database.
_migrating = threading.Lock()


def parse_url(url: str) -> URL:
    """A database URL, checked: for now a SQLite file.

    Raises ValueError with one sentence, free of passwords, for another scheme, a database in memory, or parameters.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("the database URL cannot be read; write it as in sqlite:////folder/triangulation.db") from None
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ValueError(
            f"the database URL must begin with sqlite:///, other databases are not supported yet; "
            f"got the scheme {parsed.drivername!r}"
        )
    if parsed.query:
        raise ValueError(f"the database URL takes no parameters, got {', '.join(map(repr, sorted(parsed.query)))}")
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise ValueError(
            "the database URL must name a file, as in sqlite:////folder/triangulation.db; "
            "a database in memory would be lost with the process"
        )
    return parsed


def open_database(url: str) -> Engine:
    """An engine for the database at ``url``, created where it is missing and migrated to the newest schema.

    Any number of processes may open the same database at once. Raises ValueError for a URL that ``parse_url`` refuses
    and StorageError for a place that cannot be written, a file that is no database, or a database made by a newer
    version of this package.
    """
    parsed = parse_url(url)
    path = Path(str(parsed.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"database {path} cannot be opened: {error.strerror}: {error.filename}") from None
    engine = create_engine(
        parsed,
        connect_args={"timeout": BUSY_TIMEOUT_S},
        json_serializer=partial(json.dumps, allow_nan=False),
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    try:
        _use_write_ahead_log(engine)
        _migrate(engine)
    except (DBAPIError, sqlite3.Error) as error:
        engine.dispose()
        raise StorageError(f"database {path} cannot be opened: {_cause(error)}") from None
    except StorageError:
        engine.dispose()
        raise
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write: committed at the end, rolled back where anything is raised.

    On SQLite it takes the write lock at once: a transaction that begins by reading and then writes fails, without
    waiting, when another one wrote in between. Raises StorageError where the database cannot be written (locked for
    longer than BUSY_TIMEOUT_S, disk full, read-only).
    """
    try:
        with engine.connect().execution_options(takes_write_lock=True) as connection, connection.begin():
            yield connection
    except OperationalError as error:
        raise StorageError(f"database {engine.url.database} cannot be written: {_cause(error)}") from error


def _cause(error: DBAPIError | sqlite3.Error) -> str:
    return str(error.orig if isinstance(error, DBAPIError) else error)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin, and commit before DDL, on its own account
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    takes_lock = connection.get_execution_options().get("takes_write_lock", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if takes_lock else "BEGIN")


def _use_write_ahead_log(engine: Engine) -> None:
    """Switches the file to WAL, for good. Of two that do so at once SQLite refuses one without waiting: we wait."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    raw = engine.raw_connection()
    try:
        while True:
            try:
                raw.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    finally:
        raw.close()


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "triangulation_pipeline.storage:migrations")
    with _migrating:
        script = ScriptDirectory.from_config(config)
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        if current == script.get_current_head():
            return  # without the write lock: another process may hold it for long
        if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
            raise StorageError(
                f"database {engine.url.database} is at schema revision {current!r}, which this version of "
                "triangulation_pipeline does not know; use the newer version that wrote it"
            )
        with writing(engine) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
