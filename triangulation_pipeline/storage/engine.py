"""Opening the database at the newest schema, and its transactions."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError

from triangulation_pipeline.address import parse_address
from triangulation_pipeline.storage import postgresql
from triangulation_pipeline.storage.errors import StorageError, quoted
from triangulation_pipeline.storage.objects import make_private
from triangulation_pipeline.storage.retry import DEADLINE_S, retry
from triangulation_pipeline.validation import shown

# Longer than any transaction here: a dataset of millions of samples is written in one.
BUSY_TIMEOUT_S = 600.0
# A lost race means that the row of another process was written; a lost connection, that the server restarted.
MOST_TRIES = 10

_Result = TypeVar("_Result")

# Alembic keeps the running migration in a global variable, so a process may run only one at a time.
_migrating = threading.Lock()


def parse_url(url: str) -> URL:
    """Checks a database URL: a SQLite file, or PostgreSQL by psycopg 3.

    Raises ValueError for another scheme or driver, a SQLite database in memory, a missing name, parameters that are not
    supported, or a password whose end libraries would not find. The message is one sentence and shows no password.
    """
    address = None
    if "://" in url and not url.startswith("sqlite"):  # a path, in which every character is allowed
        try:
            address = parse_address(url)
        except ValueError as error:
            raise ValueError(f"the database URL {error}") from None
    # The library silently drops what follows a question mark and is no parameter, and opens another file or database.
    _, mark, parameters = url.partition("?")
    if mark and (url.startswith("sqlite") or not all("=" in part for part in parameters.split("&"))):
        raise ValueError(
            "the database URL has a '?' in the name of a file or database, or parameters that it may not have"
        )
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(
            "the database URL cannot be read; write it as in sqlite:////folder/triangulation.db or "
            "postgresql://user:password@host/triangulation, with %-codes for special characters of the password"
        ) from None
    if address is not None and parsed.drivername.partition("+")[0] == "postgresql":
        return postgresql.check_url(parsed, address)
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ValueError(
            f"the database URL must begin with sqlite:/// or postgresql://, got the scheme {shown(parsed.drivername)}"
        )
    if parsed.username is not None or parsed.host:
        raise ValueError("the database URL of a file has no host, as in sqlite:////folder/triangulation.db")
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise ValueError(
            "the database URL must name a file, as in sqlite:////folder/triangulation.db; "
            "a database in memory would be lost with the process"
        )
    return parsed


def open_database(url: str) -> Engine:
    """An engine for the database at ``url``, migrated to the newest schema. A missing SQLite file is created.

    Any number of processes may open the same database at once. Raises ValueError for a URL that ``parse_url`` refuses.
    Raises StorageError if the database cannot be written or reached, if the file is no database, if the role lacks a
    right, or if a newer version of this package made the database.
    """
    parsed = parse_url(url)
    arguments = _sqlite_arguments(parsed) if _is_sqlite(parsed) else postgresql.engine_arguments()
    # Without escape codes, which PostgreSQL accepts only in a database with the encoding UTF-8.
    serializer = partial(json.dumps, allow_nan=False, ensure_ascii=False)
    engine = create_engine(parsed, json_serializer=serializer, **arguments)
    try:
        if _is_sqlite(parsed):
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            _use_write_ahead_log(engine)
        else:
            event.listen(engine, "begin", postgresql.begin_transaction)
        _migrate(engine)
    except (DBAPIError, sqlite3.Error) as error:
        engine.dispose()
        raise StorageError(f"database {_place(parsed)} cannot be opened: {_cause(parsed, error)}") from None
    except StorageError:
        engine.dispose()
        raise
    return engine


def open_existing_database(url: str, sought: str) -> Engine:
    """As ``open_database``, to look for something: that makes no database. Raises StorageError also if a SQLite file is
    missing."""
    parsed = parse_url(url)
    if _is_sqlite(parsed) and not Path(str(parsed.database)).exists():
        raise StorageError(
            f"there is no database to find {sought} in: {quoted(parsed.database)} does not exist; change to "
            "the project's folder, or set DAGSTER_HOME to it"
        )
    return open_database(url)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Context manager: a transaction for reading.

    If the server is unreachable, the beginning of the transaction is retried for DEADLINE_S. Raises StorageError if the
    database cannot be reached or does not answer.
    """
    with _sentences(engine, "read"), _begun(engine, "read") as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Context manager: a transaction for writing. It is committed at the end, and rolled back if an error is raised.

    On SQLite it takes the write lock at once: a transaction that reads first and writes later would fail, without
    waiting, if another one writes in between. Writers of PostgreSQL exclude each other only by the rows that they
    touch. If a server is unreachable, the beginning of the transaction is retried for DEADLINE_S.
    Raises StorageError if the database cannot be written (locked for longer than BUSY_TIMEOUT_S, disk full, read-only,
    unreachable), and ValueError if a value does not fit its column.
    """
    commits = False
    try:
        with _sentences(engine, "written"), _begun(engine, "written", takes_write_lock=True) as connection:
            transaction = connection.get_transaction()
            assert transaction is not None
            with transaction:
                yield connection
                commits = True
    except _Undone as error:
        if commits:
            raise _Unknown(f"{error}; whether it was written before is not known") from None
        raise


def in_one_transaction(engine: Engine, write: Callable[[Connection], _Result], *, repeatable: bool = False) -> _Result:
    """The result of ``write``, called in a transaction.

    It is called again if another process wrote the same unique key first, or if the server undid the transaction (the
    connection was lost before the commit, or two transactions waited for each other). Raises StorageError after
    MOST_TRIES such calls. It also raises StorageError if the connection is lost during the commit, unless ``write`` is
    ``repeatable``: calling it twice has the same effect as calling it once.
    """
    for _ in range(MOST_TRIES):
        try:
            with writing(engine) as connection:
                return write(connection)
        except IntegrityError as error:
            lost: Exception = StorageError(f"other processes kept writing the same row: {quoted(error.orig)}")
        except _Undone as error:
            lost = error
        except _Unknown as error:
            if not repeatable:
                raise
            lost = error
    raise lost


class _Undone(StorageError):
    """The server rolled the transaction back. The same transaction may be tried again."""


class _Unknown(StorageError):
    """The connection was lost during the commit, so that nobody knows whether it was done."""


def _begun(
    engine: Engine,
    verb: str,
    *,
    takes_write_lock: bool = False,
    may_pass: Callable[[BaseException | None], bool] = postgresql.may_pass,
) -> Connection:
    """A connection in a transaction. It is retried while ``may_pass`` says of PostgreSQL's error that it may pass."""

    def begin() -> Connection:
        connection = engine.connect().execution_options(takes_write_lock=takes_write_lock)
        try:
            connection.begin()
        except BaseException:
            connection.close()
            raise
        return connection

    def why(error: Exception) -> str | None:
        passes = isinstance(error, OperationalError) and may_pass(error.orig)
        return _cause(engine.url, error) if passes else None

    failed = f"database {_place(engine.url)} cannot be {verb}"
    return begin() if _is_sqlite(engine.url) else retry(begin, failed, why, DEADLINE_S)


@contextmanager
def _sentences(engine: Engine, verb: str) -> Iterator[None]:
    try:
        yield
    except (OperationalError, psycopg.OperationalError) as error:
        undone = isinstance(error, OperationalError) and (
            error.connection_invalidated or isinstance(error.orig, psycopg.errors.DeadlockDetected)
        )
        kind = _Undone if undone else StorageError
        raise kind(f"database {_place(engine.url)} cannot be {verb}: {_cause(engine.url, error)}") from None
    except (DataError, psycopg.DataError) as error:
        raise ValueError(f"database {_place(engine.url)} refuses a value: {_cause(engine.url, error)}") from None
    except IntegrityError:
        raise  # the caller knows which unique key collided
    except DBAPIError as error:
        # For example the server became a standby, or the role lost a right.
        raise StorageError(f"database {_place(engine.url)} cannot be {verb}: {_cause(engine.url, error)}") from None


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _place(url: URL) -> str:
    return quoted(url.database) if _is_sqlite(url) else postgresql.place(url)


def _cause(url: URL, error: BaseException) -> str:
    original = error.orig if isinstance(error, DBAPIError) else error
    return postgresql.cause(url, original) if isinstance(original, psycopg.Error) else quoted(original)


def _sqlite_arguments(url: URL) -> dict[str, Any]:
    path = Path(str(url.database))
    try:
        make_private(path.parent)
    except OSError as error:
        raise StorageError(
            f"database {quoted(path)} cannot be opened: {error.strerror}: {quoted(error.filename)}"
        ) from None
    return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # else the driver would begin transactions, and commit before DDL, by itself
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    takes_lock = connection.get_execution_options().get("takes_write_lock", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if takes_lock else "BEGIN")


def _use_write_ahead_log(engine: Engine) -> None:
    """Switches the file permanently to WAL. If two processes do so at once, SQLite refuses one without waiting, so this
    function waits."""
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
        # Without retries: if the server is unreachable, a wrong address is the likelier cause.
        with _begun(engine, "opened", may_pass=postgresql.is_taken) as connection:
            if not _is_sqlite(engine.url):
                postgresql.check_settings(connection)
                postgresql.check_readable(connection)
            current = MigrationContext.configure(connection).get_current_revision()
            is_newest = current == script.get_current_head()
            if is_newest and (_is_sqlite(engine.url) or not postgresql.waits_for_hypertables(connection)):
                return  # without the write lock, which another process may hold for long
        if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
            raise StorageError(
                f"database {_place(engine.url)} is at schema revision {shown(current)}, which this version of "
                "triangulation_pipeline does not know; use the newer version that wrote it"
            )
        with writing(engine) as connection:
            if not _is_sqlite(engine.url):
                postgresql.begin_migration(connection, is_new=current is None)
            is_new = MigrationContext.configure(connection).get_current_revision() is None
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if not _is_sqlite(engine.url):
                postgresql.make_hypertables(connection, is_new=is_new)
