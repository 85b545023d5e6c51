"""Opening the database, at the newest schema, and the transaction that writes."""

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

# Longer than any transaction here: a dataset of millions of samples is written in a single one.
BUSY_TIMEOUT_S = 600.0
# Each lost race means that somebody else's row went in, each lost connection that the server began anew.
MOST_TRIES = 10

_Result = TypeVar("_Result")

# Alembic keeps the running migration in a global: one at a time in a process, whatever the database.
_migrating = threading.Lock()


def parse_url(url: str) -> URL:
    """A database URL, checked: a SQLite file, or PostgreSQL by psycopg 3.

    Raises ValueError with one sentence, free of passwords, for another scheme or driver, a SQLite database in memory, a
    missing name, parameters that are not supported, or a password that libraries would not find the end of.
    """
    address = None
    if "://" in url and not url.startswith("sqlite"):  # which has a path, where every character may stand
        try:
            address = parse_address(url)
        except ValueError as error:
            raise ValueError(f"the database URL {error}") from None
    # After a question mark the library drops without a word what is no parameter, and takes another file or database.
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
    """An engine for the database at ``url``, migrated to the newest schema; a SQLite file is created where missing.

    Any number of processes may open the same database at once. Raises ValueError for a URL that ``parse_url`` refuses
    and StorageError for a place that cannot be written or reached, a file that is no database, a role without the
    rights it needs, or a database made by a newer version of this package.
    """
    parsed = parse_url(url)
    arguments = _sqlite_arguments(parsed) if _is_sqlite(parsed) else postgresql.engine_arguments()
    # Without escape codes, which PostgreSQL takes in a database of UTF-8 alone.
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


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction to read by. Raises StorageError where the database cannot be reached or does not answer.

    A server that is away is waited for up to DEADLINE_S.
    """
    with _sentences(engine, "read"), _begun(engine, "read") as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write: committed at the end, rolled back where anything is raised.

    On SQLite it takes the write lock at once: a transaction that begins by reading and then writes fails, without
    waiting, when another one wrote in between. PostgreSQL's writers exclude each other only by the rows they touch; a
    server that is away before the transaction begins is waited for up to DEADLINE_S.
    Raises StorageError where the database cannot be written (locked for longer than BUSY_TIMEOUT_S, disk full,
    read-only, unreachable) and ValueError where a value does not fit its column.
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
    """What ``write`` returns; tried again where another process took the same unique key first, or where the server
    undid the transaction: the connection was lost before it could be committed, or two waited for each other.

    Raises StorageError where that happens MOST_TRIES times on end, or where the connection is lost while it commits,
    unless ``write`` is ``repeatable``: done twice it leaves what it leaves when done once.
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
    """The server rolled the transaction back; it may be tried again as it is."""


class _Unknown(StorageError):
    """The connection was lost while the transaction was committed."""


def _begun(
    engine: Engine,
    verb: str,
    *,
    takes_write_lock: bool = False,
    may_pass: Callable[[BaseException | None], bool] = postgresql.may_pass,
) -> Connection:
    """A connection in a transaction; while what ``may_pass`` says of PostgreSQL's error is true it is waited for."""

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
        raise  # for who knows which key it is
    except DBAPIError as error:
        # A server that became a standby, a right that was taken away.
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
        # A server that is away is not waited for: a wrong place is the likelier cause.
        with _begun(engine, "opened", may_pass=postgresql.is_taken) as connection:
            if not _is_sqlite(engine.url):
                postgresql.check_settings(connection)
                postgresql.check_readable(connection)
            current = MigrationContext.configure(connection).get_current_revision()
            is_newest = current == script.get_current_head()
            if is_newest and (_is_sqlite(engine.url) or not postgresql.waits_for_hypertables(connection)):
                return  # without the write lock: another process may hold it for long
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
