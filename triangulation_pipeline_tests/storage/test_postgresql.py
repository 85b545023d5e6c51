"""What holds for PostgreSQL alone: the server and its refusals, rights, the pool, one migration, hypertables."""

import logging
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import quote

import psycopg
import pytest
import time_machine
from alembic import command
from psycopg import sql
from sqlalchemy import URL, Connection, Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from triangulation_pipeline.jobs.continuation import start_job
from triangulation_pipeline.jobs.liveness import send_heartbeat
from triangulation_pipeline.jobs.record import read_metrics, write_epoch
from triangulation_pipeline.jobs.states import get_job
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.samples import DIGEST_COLUMNS, Samples
from triangulation_pipeline.storage import engine as engine_module
from triangulation_pipeline.storage import postgresql
from triangulation_pipeline.storage.bulk import select_samples
from triangulation_pipeline.storage.columns import now
from triangulation_pipeline.storage.datasets import (
    DatasetRecord,
    list_datasets,
    read_samples,
    verify_dataset,
    write_dataset,
)
from triangulation_pipeline.storage.engine import in_one_transaction, open_database, parse_url, reading, writing
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import StoredObject
from triangulation_pipeline.storage.tables import metadata
from triangulation_pipeline.storage.views import VIEWS
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.metrics import METRIC_COLUMNS, EpochMetrics
from triangulation_pipeline_tests.postgres import ROLE, OwnServer, Server, find_binaries
from triangulation_pipeline_tests.storage.conftest import a_spec, make_batch

NewDatabase = Callable[..., URL]


def written(url: URL, **changes) -> str:
    return url._replace(**changes).render_as_string(hide_password=False)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.production) for name in ("postgresql", "timescale")])
def kind(request: pytest.FixtureRequest) -> str:
    """Without the extension and with it."""
    return request.param


# Those whose time is short run without the extension in every run of the tests.
quick = pytest.mark.parametrize(
    "kind", ["postgresql", pytest.param("timescale", marks=pytest.mark.production)], indirect=True
)


@pytest.fixture
def server(request: pytest.FixtureRequest, kind: str) -> Server:
    return request.getfixturevalue(f"{kind}_server")


@pytest.fixture
def own_server(server: Server) -> OwnServer:
    """A server that may be stopped."""
    if not isinstance(server, OwnServer):
        pytest.skip("the server that the environment names is not to be stopped")
    return server


@pytest.fixture
def empty_url(server: Server, kind: str, new_database: NewDatabase) -> URL:
    """A database that was never opened."""
    return new_database(server, timescaledb=kind == "timescale")


@pytest.fixture
def url(request: pytest.FixtureRequest, server: Server, kind: str, new_database: NewDatabase) -> URL:
    """A database that may have been opened."""
    if kind == "postgresql":
        return new_database(server, request.getfixturevalue("postgresql_template"))
    return request.getfixturevalue("empty_url")


@pytest.fixture
def engine(url: URL) -> Iterator[Engine]:
    """In place of the suite's own: PostgreSQL alone."""
    engine = open_database(written(url))
    yield engine
    engine.dispose()


HOLDERS = "the role, the database or a pooler"
PLACE = "postgresql://me:s3cret@host:5433/my_db"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (psycopg.errors.LockNotAvailable("s3cret"), "another process held a lock on it for longer than 300 s"),
        (psycopg.errors.QueryCanceled("due to statement timeout"), "a statement took longer than 600 s"),
        (psycopg.errors.QueryCanceled("by user's request"), "by user's request"),
        ('FATAL:  password authentication failed for user "s3cret"', "wrong user or password for user 'me'"),
        ("FATAL:  SASL authentication failed", "wrong user or password for user 'me'"),
        ("fe_sendauth: no password supplied", "wrong user or password for user 'me'"),
        ("FATAL:  no such user: s3cret", "wrong user or password for user 'me'"),
        ('FATAL:  database "s3cret" does not exist', "there is no database 'my_db' on this server; create it first"),
        ("FATAL:  no such database: s3cret", "there is no database 'my_db' on this server; create it first"),
        ("connection failed: Connection refused", "connection refused; is the server running there?"),
        ("failed to resolve host 's3cret'", "the host name is unknown"),
        ('could not translate host name "s3cret"', "the host name is unknown"),
        ("connection timeout expired", "no answer within 10 s"),
        *(
            (
                words,
                "all connections are taken that the role, the database or a pooler may have; a run needs one, or two",
            )
            for words in (
                "FATAL:  sorry, too many clients already",
                'FATAL:  too many connections for role "me"',
                "FATAL:  remaining connection slots are reserved",
                "FATAL:  no more connections allowed (max_client_conn)",
                "FATAL:  query_wait_timeout",
            )
        ),
        ("FATAL:  statement pooling mode", "the pooler is in statement mode; it needs transaction or session mode"),
        ("out of s3cret shared memory, says s3cret\nDETAIL:  s3cret", "out of *** shared memory, says ***"),
        ("could not write: \x1b[2J", "could not write: \\x1b[2J"),
    ],
)
def test_what_failed_is_told_without_the_password(error: psycopg.Error | str, says: str) -> None:
    """In words of ours, or the server's own."""
    told = psycopg.OperationalError(error) if isinstance(error, str) else error
    assert postgresql.cause(parse_url(PLACE), told) == says


def test_a_place_without_a_password_is_told_as_it_is() -> None:
    assert postgresql.cause(parse_url("postgresql://me@host/my_db"), psycopg.Error("out of memory")) == "out of memory"


@pytest.mark.parametrize(
    ("words", "may_pass"),
    [
        ("connection refused", True),
        ("the database system is starting up", True),
        ("timeout expired", True),
        ("FATAL:  sorry, too many clients already", True),
        ('FATAL:  password authentication failed for user "me"', False),
        ('FATAL:  database "my_db" does not exist', False),
        ('FATAL:  role "me" does not exist', False),
        ("FATAL:  permission denied for database", False),
        ("FATAL:  no pg_hba.conf entry for host", False),
        ("server does not support SSL, but SSL was required", False),
        ("SSL error: certificate verify failed", False),
    ],
)
def test_what_is_not_said_to_be_final_may_pass(words: str, may_pass: bool) -> None:
    assert postgresql.may_pass(psycopg.OperationalError(words)) is may_pass
    assert postgresql.is_taken(psycopg.OperationalError(words)) is ("too many" in words)
    for other in (None, psycopg.ProgrammingError("too many clients"), RuntimeError("too many clients")):
        assert not postgresql.may_pass(other)
        assert not postgresql.is_taken(other)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (PLACE, "my_db on host:5433"),
        ("postgresql://me:s3cret@host/my_db", "my_db on host"),
        ("postgresql://me:s3cret@[::1]:5433/my_db", "my_db on [::1]:5433"),
        ("postgresql://me@/my_db?host=/run/postgresql", "my_db on /run/postgresql"),
        ("postgresql:///my_db", "my_db on the local socket"),
    ],
)
def test_a_place_is_the_database_and_its_server(url: str, place: str) -> None:
    assert postgresql.place(parse_url(url)) == place


@quick
def test_sessions_are_set_up_whatever_the_database_has_for_a_default(engine: Engine, url: URL, server: Server) -> None:
    with server.administrator() as connection:
        for setting in (
            "default_transaction_isolation = 'repeatable read'",
            "lock_timeout = 1",
            "search_path = public",
        ):
            connection.execute(f"ALTER DATABASE {url.database} SET {setting}")
    names = ("search_path", "statement_timeout", "lock_timeout", "application_name", "transaction_isolation")
    with engine.connect() as connection:
        shown = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
        assert shown == ["triangulation", "10min", "5min", "triangulation_pipeline", "read committed"]
        # A pooler may give the next transaction another session, which knows nothing prepared.
        for _ in range(12):
            prepared = connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
        assert prepared == 0


@quick
def test_no_connection_is_held_between_transactions(engine: Engine, url: URL, server: Server) -> None:
    """A role or a pooler may have only few."""
    list_datasets(engine)
    with server.administrator() as connection:
        for _ in range(100):
            # TimescaleDB has workers of its own.
            ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
            held = connection.execute(ours, [url.database])
            if (found := held.fetchone()) == (0,):
                break
            time.sleep(0.05)
    assert found == (0,)


@quick
def test_what_does_not_keep_the_settings_of_a_transaction_is_refused(
    empty_url: URL, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pooler that changes sessions in mid-transaction."""
    monkeypatch.setattr(postgresql, "begin_transaction", lambda connection: None)
    with pytest.raises(StorageError, match="does not keep the settings of a transaction") as caught:
        open_database(written(empty_url))
    for lost in (
        "search_path is '\"$user\", public', not 'triangulation'",
        "statement_timeout is '0', not '600000'",
        "lock_timeout is '0', not '300000'",
    ):
        assert lost in str(caught.value)
    with server.administrator(empty_url.database) as connection:
        made = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'triangulation')"
        assert connection.execute(made).fetchone() == (0,)


@quick
def test_all_tables_lie_in_the_schema(engine: Engine) -> None:
    found = inspect(engine)
    assert set(found.get_table_names("triangulation")) == {*metadata.tables, "alembic_version"}
    assert found.get_table_names("public") == []
    types = {
        column["name"]: column["type"].compile(dialect=engine.dialect)
        for column in found.get_columns("synthetic_training_samples")
    }
    assert [types[name] for name in ("id", "toa_ns", "snr_db", "signal_present", "timestamp")] == [
        "UUID",
        "DOUBLE PRECISION[]",
        "REAL[]",
        "BOOLEAN[]",
        "TIMESTAMP WITH TIME ZONE",
    ]
    assert "JSONB" in {str(column["type"]) for column in found.get_columns("training_jobs")}


def test_checks_and_cascades_are_those_of_the_tables(url: URL, engine: Engine) -> None:
    definitions = text(
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = current_schema()::regnamespace AND conrelid::regclass::text <> 'alembic_version' "
        "UNION SELECT tablename, indexname, indexdef FROM pg_indexes "
        "WHERE schemaname = current_schema() AND tablename <> 'alembic_version'"
    )
    with engine.begin() as connection:
        migrated = set(connection.execute(definitions).all())
        for view in VIEWS:
            connection.execute(text(f"DROP VIEW {view.name}"))
        metadata.drop_all(connection)
        metadata.create_all(connection)
        assert set(connection.execute(definitions).all()) == migrated


def test_a_dashboards_right_to_read_a_view_outlives_a_migration(
    empty_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, _head: upgrade(config, "0002"))
        engine = open_database(written(empty_url))
    views = inspect(engine).get_view_names()
    assert len(views) >= 5
    with engine.begin() as connection:
        for view in views:
            connection.execute(text(f"GRANT SELECT ON {view} TO PUBLIC"))
    engine.dispose()
    engine = open_database(written(empty_url))
    with engine.connect() as connection:
        for view in views:
            assert connection.scalar(text(f"SELECT has_table_privilege('public', '{view}', 'SELECT')")), view
    engine.dispose()


def test_wrong_places_are_one_sentence_without_the_password(
    url: URL, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT_S", 2)  # the least that psycopg takes
    with socket.socket() as unused, socket.socket() as silent:
        unused.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for changes, says in [
            ({"password": "s3cret"}, f"wrong user or password for user '{ROLE}'"),
            ({"password": None}, f"wrong user or password for user '{ROLE}'"),
            ({"username": "nobody", "password": "s3cret"}, "wrong user or password for user 'nobody'"),
            ({"database": "elsewhere"}, "there is no database 'elsewhere' on this server; create it first"),
            ({"port": unused.getsockname()[1], "password": "s3cret"}, "connection refused; is the server running"),
            ({"port": silent.getsockname()[1], "password": "s3cret"}, "no answer within 2 s"),
            ({"host": "database.invalid", "password": "s3cret"}, "the host name is unknown"),
            ({"database": "postgres", "query": {"sslmode": "require"}}, "server does not support SSL"),
            ({"host": None, "port": None, "query": {"host": str(tmp_path)}}, "No such file"),
        ]:
            with pytest.raises(StorageError, match=f"cannot be opened: .*{says}") as caught:
                open_database(written(url, **changes))
            message = str(caught.value)
            assert message.startswith("database ")
            assert "\n" not in message
            assert "s3cret" not in message
            assert str(url.password) not in message


@pytest.mark.parametrize("raw", [": [\u00fc\u6771]", "p@/#?%: [\u00fc\"'\\\\&+%40 w", " ", "%41"])
def test_any_password_opens_the_database_once_it_is_coded(url: URL, server: Server, raw: str) -> None:
    with server.administrator() as connection:
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(ROLE), raw))
    try:
        coded = written(url, password="PASSWORD").replace("PASSWORD", quote(raw, safe=""))
        open_database(coded).dispose()
        if not set(raw) & set("@/#?%"):
            open_database(coded.replace(quote(raw, safe=""), raw)).dispose()
    finally:
        server.ensure_role()


@quick
def test_a_role_without_rights_is_told_which(server: Server, new_database: NewDatabase, url: URL) -> None:
    poor = new_database(server, schema=False)
    sentence = f"'{ROLE}' may not create the schema 'triangulation'.*CREATE SCHEMA triangulation AUTHORIZATION {ROLE}$"
    with pytest.raises(StorageError, match=sentence):
        open_database(written(poor))
    with server.administrator(poor.database) as connection:
        connection.execute("CREATE SCHEMA triangulation")
    with pytest.raises(StorageError, match=f"'{ROLE}' may not create tables in the schema 'triangulation'"):
        open_database(written(poor))
    with server.administrator(poor.database) as connection:
        connection.execute(f"ALTER SCHEMA triangulation OWNER TO {ROLE}")
    open_database(written(poor)).dispose()  # the schema is its own, CREATE on the database is not needed
    open_database(written(new_database(server, grant="CONNECT, CREATE", schema=False))).dispose()  # nor the schema then
    with server.administrator() as connection:
        connection.execute(f"REVOKE CONNECT ON DATABASE {url.database} FROM {ROLE}")
    with pytest.raises(StorageError, match="permission denied for database"):
        open_database(written(url))


@quick
def test_a_database_without_an_encoding_holds_every_name(server: Server, kind: str, new_database: NewDatabase) -> None:
    engine = open_database(written(new_database(server, encoding="SQL_ASCII", timescaledb=kind == "timescale")))
    record, _ = write_dataset(
        engine,
        a_spec(network=NORTH_WEST_ITALY.model_copy(update={"name": "é Köln 🛰"})),
        name="Größe 東京",
        batches=[make_batch(0, 20)],
        quality_metrics=dict,
    )
    assert list_datasets(engine) == [record]
    assert (record.name, record.network_name) == ("Größe 東京", "é Köln 🛰")
    assert record.spec.network.name == "é Köln 🛰"
    assert verify_dataset(engine, record.id) == record


@quick
def test_an_encoding_that_lacks_letters_is_refused_before_anything_is_made(
    server: Server, new_database: NewDatabase
) -> None:
    url = new_database(server, encoding="LATIN1", schema=False)
    with pytest.raises(StorageError, match=r"has the encoding LATIN1.*CREATE DATABASE test_\w+ ENCODING 'UTF8'"):
        open_database(written(url))
    with server.administrator(url.database) as connection:
        assert connection.execute("SELECT to_regnamespace('triangulation')").fetchone() == (None,)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_role_of_few_connections_works(url: URL, server: Server, limit: int, caplog) -> None:
    """Three processes at once, each with a thread that gives signs of life."""
    with server.administrator() as connection:
        connection.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT {limit}")
    try:
        with ThreadPoolExecutor(3) as pool:
            engines = list(pool.map(open_database, [written(url)] * 3))
            list(pool.map(life, engines, range(1, 4)))
        assert len(list_datasets(engines[0])) == 3
    finally:
        with server.administrator() as connection:
            connection.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")


def life(engine: Engine, number: int) -> None:
    """A dataset and a job on it, beside heartbeats without a rest."""
    record = write(engine, [make_batch(0, 20)], number)
    train(engine, record, range(1, 2))
    ended = threading.Event()

    def beats() -> None:
        while not ended.is_set():
            send_heartbeat(engine, get_job(engine, record.id))

    with ThreadPoolExecutor(1) as pool:
        beating = pool.submit(beats)
        train(engine, record, range(2, 6))
        ended.set()
        beating.result()
    assert read_metrics(engine, record.id)["epoch"].tolist() == [1, 2, 3, 4, 5]


def test_connections_that_others_hold_are_waited_for(url: URL, server: Server, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "DEADLINE_S", 1)
    engine = open_database(written(url))
    with server.administrator() as connection:
        connection.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT 1")
    try:
        with reading(engine):
            for act in (lambda: open_database(written(url)), lambda: list_datasets(engine)):
                with pytest.raises(StorageError, match=r"all connections are taken .*needs one, or two, for 1 seconds"):
                    act()
        with ThreadPoolExecutor(1) as pool:
            with reading(engine):
                opening = pool.submit(open_database, written(url))
                time.sleep(0.3)
            assert list_datasets(opening.result(10)) == []
    finally:
        with server.administrator() as connection:
            connection.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")


def test_a_restore_without_owners_is_told_the_whole_way(url: URL, server: Server, kind: str, new_database) -> None:
    """The sentence's own commands are enough."""
    engine = open_database(written(url))
    record = write(engine, [make_batch(0, 20)])
    binaries = find_binaries()
    assert binaries is not None
    restored = new_database(server, schema=False) if kind == "postgresql" else url
    if kind == "postgresql":
        dump = [binaries.folder / "pg_dump", "-Fc", "-d", administrators(server, url)]
        restore = [binaries.folder / "pg_restore", "--no-owner", "-d", administrators(server, restored)]
        subprocess.run(restore, input=subprocess.check_output(dump), check=True)
    else:  # its own dump needs more, which is no matter of ours
        with server.administrator(url.database) as connection:
            connection.execute(f"REASSIGN OWNED BY {ROLE} TO administrator")
    for right in ("USAGE", "CREATE"):
        with pytest.raises(
            StorageError, match="belong to the role administrator, as after a restore with --no-"
        ) as told:
            open_database(written(restored))
        assert len(str(told.value)) < 500
        with server.administrator(restored.database) as connection:  # what the hint was before
            connection.execute(f"GRANT {right} ON SCHEMA triangulation TO {ROLE}")
    with pytest.raises(StorageError, match="belong to the role administrator"):
        open_database(written(restored))
    commands = str(told.value).partition("in psql: ")[2]
    subprocess.run(
        [binaries.folder / "psql", "-v", "ON_ERROR_STOP=1", "-d", administrators(server, restored)],
        input=commands.encode() + b"\n",
        check=True,
        capture_output=True,
    )
    engine = open_database(written(restored))
    assert verify_dataset(engine, record.id) == record
    write(engine, [make_batch(0, 20)], 2)
    with writing(engine) as connection:
        connection.execute(text("ALTER TABLE synthetic_training_samples ADD COLUMN next_version integer"))


def administrators(server: Server, url: URL) -> str:
    return written(server.admin, drivername="postgresql", database=url.database)


def test_the_role_of_the_tests_has_no_other_rights(server: Server) -> None:
    with server.administrator() as connection:
        rights = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
        assert connection.execute(f"SELECT {rights} FROM pg_roles WHERE rolname = '{ROLE}'").fetchone() == (False,) * 5


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["orderly", "crash"])
def test_a_server_that_comes_back_in_time_is_waited_for(
    engine: Engine, make_dataset, own_server: OwnServer, how: signal.Signals, monkeypatch, caplog
) -> None:
    record = make_dataset()
    held = [engine.connect() for _ in range(3)]
    for connection in held:
        connection.close()  # three idle connections, all of which will be dead
    own_server.stop(how)
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "DEADLINE_S", 0.5)
        with pytest.raises(StorageError) as caught:
            list_datasets(engine)
    assert str(caught.value).endswith(
        "cannot be read: connection refused; is the server running there?, for 0.5 seconds"
    )
    caplog.clear()
    began = time.monotonic()
    timer = threading.Timer(1.5, own_server.start)
    timer.start()
    assert make_dataset().num_samples == 20
    assert time.monotonic() - began > 1.5
    timer.join()
    for _ in held:
        assert verify_dataset(engine, record.id) == record
    (warning,) = (record.getMessage() for record in caplog.records if record.name.startswith("triangulation"))
    assert warning.endswith("trying for 60 seconds")
    assert str(engine.url.password) not in caplog.text


@quick
def test_refusals_are_not_waited_for(url: URL, engine: Engine, server: Server) -> None:
    engine.dispose()
    with server.administrator() as connection:
        connection.execute(f"REVOKE CONNECT ON DATABASE {url.database} FROM {ROLE}")
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot be read: .*permission denied for database"):
        list_datasets(engine)
    assert time.monotonic() - began < 5


def lose(connection: Connection, server: Server) -> None:
    """Ends the connection's session."""
    with server.administrator() as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.scalar(text("SELECT pg_backend_pid()"))])


INSERT = text(
    "INSERT INTO synthetic_datasets SELECT gen_random_uuid(), 'a', 0, 0, 0, 0, '{}', '{}', 'n', 'd', 's', now()"
)


@quick
def test_a_transaction_lost_before_its_end_is_tried_again(engine: Engine, server: Server) -> None:
    tries = []

    def write(connection: Connection) -> int:
        connection.execute(INSERT)
        tries.append(1)
        if len(tries) < 3:
            lose(connection, server)
        return connection.scalar(text("SELECT count(*) FROM synthetic_datasets"))

    assert in_one_transaction(engine, write) == 1
    assert len(tries) == 3


@quick
def test_a_transaction_lost_at_its_end_is_not_tried_again(engine: Engine, server: Server) -> None:
    tries = []

    def write(connection: Connection) -> None:
        connection.execute(INSERT)
        tries.append(1)
        lose(connection, server)

    with pytest.raises(
        StorageError, match=r"cannot be written: .*; whether it was written before is not known"
    ) as caught:
        in_one_transaction(engine, write)
    assert "\n" not in str(caught.value)
    assert len(tries) == 1
    assert list_datasets(engine) == []


@pytest.mark.parametrize("where", ["between", "in COPY"])
def test_a_server_that_stops_while_a_dataset_is_written(
    engine: Engine, make_dataset, own_server: OwnServer, where: str
) -> None:
    def batches() -> Iterator[Samples]:
        yield make_batch(0, 10)
        own_server.stop()
        own_server.start()
        if where == "in COPY":
            yield make_batch(10, 10)

    with pytest.raises(StorageError, match="cannot be written: ") as caught:
        make_dataset(batches())
    assert "\n" not in str(caught.value)
    assert list_datasets(engine) == []
    assert make_dataset().num_samples == 20


def test_what_takes_too_long_is_ended(url: URL, engine: Engine, make_dataset, monkeypatch) -> None:
    make_dataset()
    monkeypatch.setattr(postgresql, "STATEMENT_TIMEOUT_S", 1)
    monkeypatch.setattr(postgresql, "LOCK_TIMEOUT_S", 0.2)
    hasty = open_database(written(url))
    with pytest.raises(StorageError, match="cannot be read: a statement took longer than 1 s"), reading(hasty) as one:
        one.execute(text("SELECT pg_sleep(5)"))
    lock = text("LOCK TABLE synthetic_datasets IN ACCESS EXCLUSIVE MODE")
    with writing(engine) as first:
        first.execute(lock)
        with (
            pytest.raises(StorageError, match=r"cannot be written: another process held a lock on it .* 0\.2 s"),
            writing(hasty) as second,
        ):
            second.execute(lock)
    hasty.dispose()


@quick
def test_what_the_server_says_is_one_printable_line(engine: Engine) -> None:
    raising = "DO $$ BEGIN RAISE EXCEPTION E'\\x1b[2J%\\nmore', repeat('long ', 9999) USING DETAIL = 's3cret'; END $$"
    with pytest.raises(StorageError) as caught, writing(engine) as connection:
        connection.exec_driver_sql(raising.replace("%", "%%"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert "s3cret" not in str(caught.value)


@quick
def test_a_value_that_does_not_fit_is_named(engine: Engine) -> None:
    insert = text(
        "INSERT INTO synthetic_datasets "
        "SELECT gen_random_uuid(), repeat('x', 256), 0, 0, 0, 0, '{}', '{}', 'n', 'd', 's', now()"
    )
    says = r"refuses a value: value too long for type character varying\(255\)"
    with pytest.raises(ValueError, match=says), writing(engine) as connection:
        connection.execute(insert)


@quick
def test_a_migration_waits_for_the_other(empty_url: URL, server: Server) -> None:
    with server.administrator(empty_url.database) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [postgresql.MIGRATION_LOCK])
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(open_database, written(empty_url))
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            for _ in range(500):
                if other.execute(waiting).fetchone() == (1,):
                    break
                threading.Event().wait(0.01)
            assert not opening.done()
            assert other.execute("SELECT to_regclass('triangulation.training_jobs')").fetchone() == (None,)
            other.execute("SELECT pg_advisory_unlock_all()")
            opening.result(10).dispose()


@quick
def test_opening_what_is_up_to_date_waits_for_no_migration(url: URL, engine: Engine, server: Server) -> None:
    with server.administrator(url.database) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT pg_advisory_lock(%s)", [postgresql.MIGRATION_LOCK])
        try:
            pool.submit(open_database, written(url)).result(10).dispose()
        finally:
            other.execute("SELECT pg_advisory_unlock_all()")


def test_opening_does_not_wait_for_a_writer(url: URL, engine: Engine, make_dataset) -> None:
    def batches() -> Iterator[Samples]:
        yield make_batch(0, 10)
        open_database(written(url)).dispose()

    make_dataset(batches())


@pytest.mark.production
def test_plain_tables_are_said_once(
    postgresql_server: OwnServer, new_database: NewDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    url = new_database(postgresql_server)
    with caplog.at_level(logging.INFO, "triangulation_pipeline"):
        for _ in range(2):
            open_database(written(url)).dispose()
    (record,) = [record for record in caplog.records if record.name.startswith("triangulation_pipeline")]
    assert "synthetic_training_samples and training_metrics are plain tables" in record.getMessage()


@quick
def test_rows_stay_in_order_and_in_one_piece(engine: Engine, make_dataset, monkeypatch) -> None:
    """Blocks that end in the middle of batches, both ways, and a reader that stops early."""
    monkeypatch.setattr("triangulation_pipeline.storage.pgcopy.ROWS_A_BLOCK", 7)
    batches = [make_batch(0, 14), make_batch(14, 1), make_batch(15, 20)]
    record = make_dataset(batches)
    assert verify_dataset(engine, record.id) == record
    with engine.connect() as connection:
        heap = connection.scalars(text("SELECT sample_index FROM synthetic_training_samples ORDER BY ctid")).all()
    assert heap == list(range(35))
    with reading(engine) as connection:
        assert len(next(select_samples(connection, record.id, 2.0, DIGEST_COLUMNS))) == 8
    assert len(read_samples(engine, record.id)) == 35


@quick
def test_damaged_arrays_are_found(engine: Engine, make_dataset) -> None:
    for damage in (
        "snr_db = '{}'",
        "snr_db[2] = NULL",
        "snr_db = snr_db || 1::real",
        "snr_db = snr_db[1:4], power_dbm = power_dbm || 1::real",  # which is as long as it was
    ):
        for index in (0, 4, 19):
            record = make_dataset()
            with writing(engine) as connection:
                its_own = f"dataset_id = '{record.id}' AND sample_index = {index}"
                connection.execute(text(f"UPDATE synthetic_training_samples SET {damage} WHERE {its_own}"))
            with pytest.raises(StorageError, match=f"^dataset {record.id} holds damaged samples: "):
                read_samples(engine, record.id)


@pytest.fixture
def timescale_url(timescale_server: Server, new_database: NewDatabase) -> URL:
    return new_database(timescale_server, timescaledb=True)


@pytest.fixture
def timescale(timescale_url: URL) -> Iterator[Engine]:
    engine = open_database(written(timescale_url))
    yield engine
    engine.dispose()


def hypertables(engine: Engine) -> list[tuple[str, int]]:
    """Name and number of chunks of each."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT hypertable_name, num_chunks FROM timescaledb_information.hypertables ORDER BY 1")
        )
        return [(name, chunks) for name, chunks in rows]


def write(engine: Engine, batches: Iterable[Samples], number: int = 1) -> DatasetRecord:
    record, _ = write_dataset(
        engine,
        a_spec(seed=number),
        name=f"number {number}",
        batches=batches,
        quality_metrics=dict,
    )
    return record


def train(engine: Engine, dataset: DatasetRecord, epochs: range) -> None:
    """Records these epochs of the dataset's one job."""
    if epochs.start == 1:
        start_job(
            engine,
            job_id=dataset.id,
            run_id=dataset.id,
            config=TrainingConfig(epochs=9),
            synthetic_dataset_id=dataset.id,
        )
    for epoch in epochs:
        write_epoch(
            engine,
            get_job(engine, dataset.id),
            EpochMetrics(epoch=epoch, **dict.fromkeys(METRIC_COLUMNS, float(epoch))),
            StoredObject(f"/state/{epoch}", "e" * 64),
            best_epoch=1,
            best_val_loss=1.0,
        )


@pytest.mark.production
def test_hypertables_from_the_start(timescale: Engine, caplog) -> None:
    assert hypertables(timescale) == [("synthetic_training_samples", 0), ("training_metrics", 0)]
    assert not [record for record in caplog.records if record.name.startswith("triangulation_pipeline")]


@pytest.mark.production
def test_a_chunk_is_a_week(timescale: Engine) -> None:
    """Of samples, one of which is a second, and of training; what spans chunks reads, changes and goes as one."""
    week = 7 * 24 * 3600
    ours, other = (
        write(timescale, [make_batch(first, 20) for first in (0, week, 2 * week)], number) for number in (1, 2)
    )
    assert hypertables(timescale)[0] == ("synthetic_training_samples", 3)
    assert verify_dataset(timescale, ours.id) == ours
    assert len(read_samples(timescale, ours.id)) == 60

    train(timescale, ours, range(1, 3))
    with time_machine.travel(now() + timedelta(days=8)):
        train(timescale, ours, range(2, 5))
    assert hypertables(timescale)[1] == ("training_metrics", 2)
    assert read_metrics(timescale, ours.id)["epoch"].tolist() == [1, 2, 3, 4]

    with timescale.begin() as connection:
        orphan = "UPDATE training_metrics SET training_job_id = gen_random_uuid()"
        with pytest.raises(IntegrityError, match="foreign key"), connection.begin_nested():
            connection.execute(text(orphan))
        connection.execute(text("DELETE FROM training_jobs"))
        connection.execute(text("DELETE FROM synthetic_datasets WHERE id = :id"), {"id": ours.id})
        counts = "SELECT (SELECT count(*) FROM training_metrics), (SELECT count(*) FROM synthetic_training_samples)"
        assert connection.execute(text(counts)).one() == (0, 60)
    assert verify_dataset(timescale, other.id) == other


@pytest.mark.production
def test_writers_of_different_datasets_may_begin_a_chunk_at_once(timescale: Engine) -> None:
    def batches() -> Iterator[Samples]:
        time.sleep(0.2)  # by now, both would hold the row of their dataset
        yield make_batch(0, 20)

    with ThreadPoolExecutor(3) as pool:
        records = list(pool.map(lambda number: write(timescale, batches(), number), range(3)))
    assert [verify_dataset(timescale, record.id) for record in records] == records
    assert hypertables(timescale)[0] == ("synthetic_training_samples", 1)


def test_of_two_that_wait_for_each_other_one_is_tried_again(engine: Engine) -> None:
    both = threading.Barrier(2)

    def write(order: list[str]) -> None:
        def locked(connection: Connection) -> None:
            tries.append(order)
            connection.execute(text(f"LOCK TABLE {order[0]}"))
            if len(tries) <= 2:
                both.wait(10)
            connection.execute(text(f"LOCK TABLE {order[1]}"))

        in_one_transaction(engine, locked)

    tries: list[list[str]] = []
    names = ["models", "training_jobs"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [names, names[::-1]]))
    assert len(tries) == 3


@pytest.mark.production
def test_hypertables_later_with_their_rows(timescale_server: Server, new_database: NewDatabase) -> None:
    url = new_database(timescale_server)
    engine = open_database(written(url))
    record = write(engine, [make_batch(0, 20)])
    train(engine, record, range(1, 4))
    metrics = read_metrics(engine, record.id)
    engine.dispose()
    with timescale_server.administrator(url.database) as connection:
        connection.execute("CREATE SCHEMA elsewhere; CREATE EXTENSION timescaledb SCHEMA elsewhere")
        connection.execute("GRANT USAGE ON SCHEMA elsewhere TO PUBLIC")
    with ThreadPoolExecutor(3) as pool:
        engines = list(pool.map(open_database, [written(url)] * 3))
    assert hypertables(engines[0]) == [("synthetic_training_samples", 1), ("training_metrics", 1)]
    assert verify_dataset(engines[0], record.id) == record
    assert read_metrics(engines[0], record.id).equals(metrics)
    with engines[0].begin() as connection:
        for table in postgresql.HYPERTABLES:
            assert connection.scalar(text(f"SELECT count(*) FROM ONLY {table}")) == 0  # all rows lie in chunks
        connection.execute(text("DELETE FROM training_jobs"))
        connection.execute(text("DELETE FROM synthetic_datasets"))
        for table in postgresql.HYPERTABLES:
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0
    for engine in engines:
        engine.dispose()
