"""What PostgreSQL needs beside SQL: time limits, one schema, one migration at a time, hypertables, error messages.

An administrator does this once, for a role without any other right::

    CREATE DATABASE triangulation;
    CREATE EXTENSION timescaledb;  -- in that database, if TimescaleDB is installed
    CREATE SCHEMA triangulation AUTHORIZATION the_role;  -- in that database
    GRANT CONNECT ON DATABASE triangulation TO the_role;

A role with ``CREATE`` on the database makes the schema itself, but may then also make extensions. If the extension is
created later, the next process that opens the database turns the tables into hypertables, with their rows. So nobody
has to remember this step. At most one process does it; like any migration it waits for other users of the table, and
they wait for it.
"""

import logging
import re
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, NullPool, text

from triangulation_pipeline.address import Address
from triangulation_pipeline.storage.errors import StorageError, quoted
from triangulation_pipeline.validation import shown

DRIVER = "postgresql+psycopg"
SCHEMA = "triangulation"
# The tables that become hypertables, and the column that splits each into chunks of time.
HYPERTABLES = {"synthetic_training_samples": "timestamp", "training_metrics": "timestamp"}

CONNECT_TIMEOUT_S = 10
# The longest statements write one batch of samples, or read one dataset.
STATEMENT_TIMEOUT_S = 600
# Longer than any transaction here: a dataset is written in one, and a second writer waits.
LOCK_TIMEOUT_S = 300

# The allowed parameters of the URL: the folder of a socket, and encryption. Everything else is set here.
URL_PARAMETERS = frozenset({"host", "sslmode", "sslrootcert", "sslcert", "sslkey"})

# Any number that no other program uses in this database.
MIGRATION_LOCK = 0x7472_6961_6E67

# Messages of PostgreSQL and PgBouncer.
_NO_LOGIN = r"(password|SASL) authentication failed|no password supplied|no such user"
_NO_DATABASE = r'database "[^"]*" does not exist|no such database'
_TAKEN = r"too many (connections|clients)|connection slots are|no more connections allowed|query_wait_timeout"

_log = logging.getLogger(__name__)


def check_url(url: URL, address: Address) -> URL:
    """The URL with the name of its driver. ``address`` is the same URL, split by our own rule.

    Raises ValueError, without a password in it, for what is not supported.
    """
    if url.drivername not in {"postgresql", DRIVER}:
        raise ValueError(
            f"the database URL must begin with postgresql:// (psycopg 3, written out {DRIVER}://), "
            f"got the scheme {shown(url.drivername)}"
        )
    if odd := sorted(set(url.query) - URL_PARAMETERS):
        raise ValueError(
            f"the database URL takes only the parameters {', '.join(sorted(URL_PARAMETERS))}; "
            f"got {', '.join(map(shown, odd))}"
        )
    folder = url.query.get("host", "")
    if (url.host or "", url.port) != (address.host, address.port) or not isinstance(folder, str) or "," in folder:
        raise ValueError("the database URL must name one host, as in postgresql://user@host/triangulation")
    if not url.database:
        raise ValueError("the database URL must name a database, as in postgresql://user@host/triangulation")
    return url.set(drivername=DRIVER)


def engine_arguments() -> dict[str, Any]:
    """Arguments of ``create_engine``.

    They work with a pooler (PgBouncer) in between as well. A pooler drops the settings of a connection or gives the
    connection to others, so settings are made in each transaction (``begin_transaction``). No statement is prepared
    under a name, because the session of the next transaction would not know the name. A connection is held only during
    its transaction: a role or a pooler may have few connections, and an idle one would keep others waiting.

    READ COMMITTED is named because the writers here rely on it: after a lock is granted, the next statement sees what
    its previous holder committed.
    """
    return {
        "poolclass": NullPool,
        "isolation_level": "READ COMMITTED",
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "triangulation_pipeline",
            # Without it, a database with the encoding SQL_ASCII would return bytes instead of text.
            "client_encoding": "utf8",
            "prepare_threshold": None,
        },
    }


def begin_transaction(connection: Connection) -> None:
    """Sets the schema and the timeouts for this transaction; to be called first in each."""
    values = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _settings().items())
    connection.exec_driver_sql(f"SELECT {values}")


def check_settings(connection: Connection) -> None:
    """Raises StorageError if the transaction does not have the settings of ``begin_transaction``.

    In that case something between here and the server does not keep a transaction in one session, and tables would be
    made in another schema, without an error.
    """
    asked = _settings()
    statement = text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)")
    found = {row.name: row.setting for row in connection.execute(statement, {"names": list(asked)})}
    lost = [
        f"{name} is {found.get(name)!r}, not {value!r}" for name, value in asked.items() if found.get(name) != value
    ]
    if lost:
        raise StorageError(
            f"the database's connection does not keep the settings of a transaction ({'; '.join(lost)}); a pooler in "
            "between must be in transaction or session mode"
        )


def _settings() -> dict[str, str]:
    """The settings as ``pg_settings`` shows them, times in milliseconds."""
    return {
        "search_path": SCHEMA,
        "statement_timeout": f"{1000 * STATEMENT_TIMEOUT_S:.0f}",
        "lock_timeout": f"{1000 * LOCK_TIMEOUT_S:.0f}",
    }


def check_readable(connection: Connection) -> None:
    """Raises StorageError if there are tables whose version the role may not read: the database would look empty, and
    the tables would be made again."""
    found = connection.scalar(
        text(
            "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace(:schema) "
            "AND relname = 'alembic_version' AND NOT (has_schema_privilege(relnamespace, 'USAGE') "
            "AND has_table_privilege(oid, 'SELECT'))"
        ),
        {"schema": SCHEMA},
    )
    if found:
        _check_owner(connection)


def begin_migration(connection: Connection, *, is_new: bool) -> None:
    """Takes the lock of migrations until the transaction ends, then creates the schema if it is missing.

    Raises StorageError if the role may neither do that nor create and change tables in the schema, and if a new
    database has an encoding that cannot represent every name.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    found = connection.execute(
        text(
            "SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE') FROM pg_namespace "
            "WHERE nspname = :schema"
        ),
        {"schema": SCHEMA},
    ).scalar_one_or_none()
    role, database, may, encoding = connection.execute(
        text(
            "SELECT quote_ident(current_user), quote_ident(current_database()), "
            "has_database_privilege(current_database(), 'CREATE'), current_setting('server_encoding')"
        )
    ).one()
    # A database with SQL_ASCII keeps the bytes that it is given, which are UTF-8 (see ``engine_arguments``).
    if is_new and encoding not in {"UTF8", "SQL_ASCII"}:
        raise StorageError(
            f"database {database} has the encoding {encoding}, which not every name can be written in; an "
            f"administrator creates it with: CREATE DATABASE {database} ENCODING 'UTF8' TEMPLATE template0"
        )
    if found is None:
        # Asked first: CREATE SCHEMA IF NOT EXISTS needs the right even if there is nothing to create.
        if not may:
            raise StorageError(
                f"role '{role}' may not create the schema {SCHEMA!r} in database {database}; an administrator makes "
                f"it: CREATE SCHEMA {SCHEMA} AUTHORIZATION {role}"
            )
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        return
    _check_owner(connection)
    if not found:
        raise StorageError(
            f"role '{role}' may not create tables in the schema {SCHEMA!r}, which is there already; an administrator "
            f"grants it: GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {role}"
        )


def _check_owner(connection: Connection) -> None:
    """Raises StorageError if a table or view of the schema belongs to a role whose rights this one does not have."""
    owner, role = connection.execute(
        text(
            "SELECT min(quote_ident(pg_get_userbyid(relowner))), quote_ident(current_user) FROM pg_class "
            "WHERE relnamespace = to_regnamespace(:schema) AND relkind IN ('r', 'v') "
            "AND NOT pg_has_role(relowner, 'USAGE')"
        ),
        {"schema": SCHEMA},
    ).one()
    if owner is not None:
        raise StorageError(
            f"the tables in the schema {SCHEMA!r} belong to the role {owner}, as after a restore with --no-owner; an "
            f"administrator gives them to {role}, in psql: ALTER SCHEMA {SCHEMA} OWNER TO {role}; "
            f"SELECT format('ALTER TABLE %s OWNER TO {role}', oid::regclass) FROM pg_class "
            f"WHERE relnamespace = '{SCHEMA}'::regnamespace AND relkind IN ('r', 'v') \\gexec"
        )


def waits_for_hypertables(connection: Connection) -> bool:
    """Whether the extension is there and a table that could be a hypertable is still a plain one."""
    plain, extension_schema = _plain_tables(connection)
    return bool(plain) and extension_schema is not None


def make_hypertables(connection: Connection, *, is_new: bool) -> None:
    """Turns plain tables into hypertables if the extension is there. If it is not, new tables are logged as plain ones.

    It uses only what every edition of TimescaleDB has: no compression, no retention. The lock of migrations must be
    held.
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
    connection.execute(text("SET LOCAL statement_timeout = 0"))  # as plain tables may hold rows
    for name in plain:
        # Queries are answered by the keys, so there is no further index on the time alone.
        connection.execute(
            text(
                f'SELECT "{extension_schema}".create_hypertable(:table, :column, create_default_indexes => false, '
                "migrate_data => true)"
            ),
            {"table": f"{SCHEMA}.{name}", "column": HYPERTABLES[name]},
        )


def queue_for_chunks(connection: Connection, referred_to: str) -> None:
    """Locks a table; to be called first in a transaction that writes to it and then to a hypertable with a foreign key
    to it. On databases without TimescaleDB it does nothing.

    The first row of a chunk takes this same lock. Two transactions that have already written to the table would wait
    for each other's lock forever.
    """
    if connection.dialect.name == "postgresql" and connection.scalar(
        text("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'")
    ):
        connection.execute(text(f"LOCK TABLE {referred_to} IN SHARE ROW EXCLUSIVE MODE"))


def cause(url: URL, error: psycopg.Error) -> str:
    """Why a statement or a connection failed, in words on one line, without the password."""
    text_of = str(error)
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return f"another process held a lock on it for longer than {LOCK_TIMEOUT_S} s"
    if isinstance(error, psycopg.errors.QueryCanceled) and "statement timeout" in text_of:
        return f"a statement took longer than {STATEMENT_TIMEOUT_S} s"
    # A failed connection has no error code, only the words of the server or the library.
    for pattern, words in (
        (_NO_LOGIN, f"wrong user or password for user {shown(url.username)}"),
        (_NO_DATABASE, f"there is no database {shown(url.database)} on this server; create it first"),
        (r"Connection refused", "connection refused; is the server running there?"),
        (r"failed to resolve host|could not translate host name", "the host name is unknown"),
        (r"timeout expired", f"no answer within {CONNECT_TIMEOUT_S} s"),
        (_TAKEN, "all connections are taken that the role, the database or a pooler may have; a run needs one, or two"),
        (r"statement pooling mode", "the pooler is in statement mode; it needs transaction or session mode"),
    ):
        if re.search(pattern, text_of):
            return words
    said = error.diag.message_primary or text_of
    return quoted(said.replace(url.password, "***") if url.password else said)


def may_pass(error: BaseException | None) -> bool:
    """Whether a failed connection may succeed later: if its message is none of those that are final."""
    final = (
        rf"{_NO_LOGIN}|{_NO_DATABASE}|does not exist|permission denied|pg_hba\.conf|"
        r"server does not support SSL|certificate verify failed"
    )
    return isinstance(error, psycopg.OperationalError) and re.search(final, str(error)) is None


def is_taken(error: BaseException | None) -> bool:
    """Whether a connection failed because all allowed connections are in use: some will be free soon."""
    return isinstance(error, psycopg.OperationalError) and re.search(_TAKEN, str(error)) is not None


def place(url: URL) -> str:
    """The database and its server, for messages."""
    host = str(url.host or url.query.get("host") or "the local socket")
    host = f"[{host}]" if ":" in host else quoted(host)
    return f"{quoted(url.database)} on {host}" + (f":{url.port}" if url.port else "")


def _plain_tables(connection: Connection) -> tuple[list[str], str | None]:
    """Those of HYPERTABLES that are plain tables, and the schema of the extension, None if it is absent."""
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
