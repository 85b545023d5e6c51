"""What PostgreSQL needs beside SQL: connections that end, one schema, one migration at a time, hypertables, sentences.

A database administrator does once, for a role without any other right::

    CREATE DATABASE triangulation;
    CREATE EXTENSION timescaledb;  -- inside it, where TimescaleDB is installed
    CREATE SCHEMA triangulation AUTHORIZATION the_role;  -- inside it
    GRANT CONNECT ON DATABASE triangulation TO the_role;

A role with ``CREATE`` on the database makes the schema itself, but may then also make extensions. Where the extension
is created later, the next process that opens the database turns the tables into hypertables, with the rows they hold:
nobody has to remember a step, at most one process does it, and it waits for other users of the table, and makes them
wait, as any migration does.
"""

import logging
import re
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, text

from triangulation_pipeline.storage.errors import StorageError

DRIVER = "postgresql+psycopg"
SCHEMA = "triangulation"
# Of the tables with these names, the column that splits them into chunks of time.
HYPERTABLES = {"synthetic_training_samples": "timestamp", "training_metrics": "timestamp"}

CONNECT_TIMEOUT_S = 10
# A statement is at most one batch of samples going in, or one dataset coming out.
STATEMENT_TIMEOUT_S = 600
# Longer than any transaction here: a dataset is written in a single one, and a second writer waits.
LOCK_TIMEOUT_S = 300

# What the URL may say beside the place: a socket's folder, and encryption. All else is set here.
URL_PARAMETERS = frozenset({"host", "sslmode", "sslrootcert", "sslcert", "sslkey"})

# Any number will do, so long as no other program takes the same one in this database.
_MIGRATION_LOCK = 0x7472_6961_6E67

_log = logging.getLogger(__name__)


def check_url(url: URL) -> URL:
    """The URL with its driver written out. Raises ValueError, free of passwords, for what is not supported."""
    if url.drivername not in {"postgresql", DRIVER}:
        raise ValueError(
            f"the database URL must begin with postgresql:// (psycopg 3, written out {DRIVER}://), "
            f"got the scheme {url.drivername!r}"
        )
    if odd := sorted(set(url.query) - URL_PARAMETERS):
        raise ValueError(
            f"the database URL takes only the parameters {', '.join(sorted(URL_PARAMETERS))}; "
            f"got {', '.join(map(repr, odd))}"
        )
    if not url.database:
        raise ValueError("the database URL must name a database, as in postgresql://user@host/triangulation")
    return url.set(drivername=DRIVER)


def engine_arguments() -> dict[str, Any]:
    """Arguments of ``create_engine``: a connection that broke while it was idle is replaced before it is used.

    READ COMMITTED is written out because the writers here rely on it: once a lock is had, the next statement sees what
    its holder committed.
    """
    settings = {
        "search_path": SCHEMA,
        "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
        "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    }
    return {
        "pool_pre_ping": True,
        "isolation_level": "READ COMMITTED",
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "triangulation_pipeline",
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        },
    }


def begin_migration(connection: Connection) -> None:
    """Takes the lock of migrations until the transaction ends, then creates the schema where it is missing.

    Raises StorageError where the role may do neither that nor create tables in the schema.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    found = connection.execute(
        text(
            "SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE') FROM pg_namespace "
            "WHERE nspname = :schema"
        ),
        {"schema": SCHEMA},
    ).scalar_one_or_none()
    if found is None:
        # Asked beforehand: CREATE SCHEMA IF NOT EXISTS needs the right even where there is nothing to create.
        role, database, may = connection.execute(
            text(
                "SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE')",
            )
        ).one()
        if not may:
            raise StorageError(
                f"role {role!r} may not create the schema {SCHEMA!r} in database {database!r}; an administrator makes "
                f"it: CREATE SCHEMA {SCHEMA} AUTHORIZATION {role}"
            )
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    elif not found:
        role = connection.scalar(text("SELECT current_user"))
        raise StorageError(
            f"role {role!r} may not create tables in the schema {SCHEMA!r}, which is there already; an administrator "
            f"grants it: GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {role}"
        )


def waits_for_hypertables(connection: Connection) -> bool:
    """Whether the extension is there and a table that could be a hypertable is a plain one still."""
    plain, extension_schema = _plain_tables(connection)
    return bool(plain) and extension_schema is not None


def make_hypertables(connection: Connection, *, is_new: bool) -> None:
    """Turns plain tables into hypertables where the extension is there; where it is not, logs so for new tables.

    Only what every edition of TimescaleDB has: no compression, no retention. The lock of migrations must be held.
    """
    plain, extension_schema = _plain_tables(connection)
    if extension_schema is None:
        if is_new:
            _log.warning(
                "the extension timescaledb is not installed in this database: %s are plain tables, until a process "
                "opens the database after CREATE EXTENSION timescaledb",
                " and ".join(plain),
            )
        return
    connection.execute(text("SET LOCAL statement_timeout = 0"))  # for the rows that plain tables may hold
    for name in plain:
        # The keys begin with what is asked for, so no further index on the time alone.
        connection.execute(
            text(
                f'SELECT "{extension_schema}".create_hypertable(:table, :column, create_default_indexes => false, '
                "migrate_data => true)"
            ),
            {"table": f"{SCHEMA}.{name}", "column": HYPERTABLES[name]},
        )


def queue_for_chunks(connection: Connection, referred_to: str) -> None:
    """To come first in a transaction that writes to a table and then to a hypertable with a foreign key to it; on other
    databases it does nothing.

    The first row of a chunk takes this very lock on the table, which two transactions that have written to it would
    wait for without end.
    """
    if connection.dialect.name == "postgresql" and connection.scalar(
        text("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'")
    ):
        connection.execute(text(f"LOCK TABLE {referred_to} IN SHARE ROW EXCLUSIVE MODE"))


def cause(url: URL, error: psycopg.Error) -> str:
    """Why it failed, in words, on one line and without the password."""
    text_of = str(error)
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return f"another process held a lock on it for longer than {LOCK_TIMEOUT_S} s"
    if isinstance(error, psycopg.errors.QueryCanceled) and "statement timeout" in text_of:
        return f"a statement took longer than {STATEMENT_TIMEOUT_S} s"
    # A connection that is not made has no error code, only the server's or the library's words.
    for pattern, words in (
        (r"password authentication failed|no password supplied", f"wrong user or password for user {url.username!r}"),
        (r'database "[^"]*" does not exist', f"there is no database {url.database!r} on this server; create it first"),
        (r"Connection refused", "connection refused; is the server running there?"),
        (r"failed to resolve host|could not translate host name", "the host name is unknown"),
        (r"timeout expired", f"no answer within {CONNECT_TIMEOUT_S} s"),
    ):
        if re.search(pattern, text_of):
            return words
    first_line = (error.diag.message_primary or text_of).strip().partition("\n")[0]
    return first_line.replace(url.password, "***") if url.password else first_line


def may_pass(error: BaseException | None) -> bool:
    """Whether a connection that could not be made may be made later: all that is not said to be final."""
    final = (
        r"password authentication failed|no password supplied|does not exist|permission denied|pg_hba\.conf|"
        r"server does not support SSL|certificate verify failed"
    )
    return isinstance(error, psycopg.OperationalError) and re.search(final, str(error)) is None


def place(url: URL) -> str:
    """The database and its server, for messages."""
    host = url.host or url.query.get("host") or "the local socket"
    return f"{url.database} on {host}" + (f":{url.port}" if url.port else "")


def _plain_tables(connection: Connection) -> tuple[list[str], str | None]:
    """Those of HYPERTABLES that are plain tables, and the schema of the extension, None where it is absent."""
    extension_schema = connection.scalar(
        text(
            "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace "
            "WHERE extname = 'timescaledb'"
        )
    )
    if extension_schema is None:
        return list(HYPERTABLES), None
    made = connection.scalars(
        text("SELECT hypertable_name FROM timescaledb_information.hypertables WHERE hypertable_schema = :schema"),
        {"schema": SCHEMA},
    ).all()
    return [name for name in HYPERTABLES if name not in made], extension_schema
