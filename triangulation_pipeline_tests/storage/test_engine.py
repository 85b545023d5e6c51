import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.exc import OperationalError

from triangulation_pipeline.jobs.states import get_job
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.samples import DIGEST_COLUMNS
from triangulation_pipeline.storage import migrations
from triangulation_pipeline.storage.datasets import get_dataset
from triangulation_pipeline.storage.engine import (
    MOST_TRIES,
    in_one_transaction,
    open_database,
    parse_url,
    reading,
    writing,
)
from triangulation_pipeline.storage.errors import StorageError, quoted
from triangulation_pipeline.storage.registry import find_referred_model
from triangulation_pipeline.storage.tables import metadata, synthetic_datasets
from triangulation_pipeline_tests.storage.model_rows import get_model

MIGRATIONS = ScriptDirectory(str(Path(migrations.__file__).parent))


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("sqlite:////folder/my.db", "sqlite:////folder/my.db"),
        ("sqlite:///my.db", "sqlite:///my.db"),
        ("sqlite+pysqlite:////folder/my.db", "sqlite+pysqlite:////folder/my.db"),
        ("sqlite:////fol@der/#my.db", "sqlite:////fol@der/#my.db"),
        ("postgresql://me:s%40cret@host:5433/db", "postgresql+psycopg://me:s%40cret@host:5433/db"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
        ("postgresql://me@[::1]:5432/db", "postgresql+psycopg://me@[::1]:5432/db"),
        ("postgresql://me@/db?host=/run/postgresql", "postgresql+psycopg://me@/db?host=%2Frun%2Fpostgresql"),
        (
            "postgresql://host/db?sslmode=require&sslrootcert=a&sslcert=b&sslkey=c",
            "postgresql+psycopg://host/db?sslcert=b&sslkey=c&sslmode=require&sslrootcert=a",
        ),
    ],
)
def test_urls_of_files_and_of_servers_are_taken(given: str, taken: str) -> None:
    assert parse_url(given).render_as_string(hide_password=False) == taken


PARAMETERS = "takes only the parameters host, sslcert, sslkey, sslmode, sslrootcert"
NAMES_A_FILE = "must name a file, as in sqlite:////folder/triangulation.db"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("sqlite://me:s3cret@host/db", "of a file has no host"),
        ("sqlite://host/db", "of a file has no host"),
        ("sqlite://me@/db", "of a file has no host"),
        ("sqlite://", NAMES_A_FILE),
        ("sqlite:///", NAMES_A_FILE),
        ("sqlite:///:memory:", NAMES_A_FILE),
        ("sqlite:///file:s3cret", NAMES_A_FILE),
        (
            "sqlite+aiosqlite:////my.db",
            "must begin with sqlite:/// or postgresql://, got the scheme 'sqlite+aiosqlite'",
        ),
        ("mysql://me:s3cret@host/db", "must begin with sqlite:/// or postgresql://, got the scheme 'mysql'"),
        ("postgres://me:s3cret@host/db", "got the scheme 'postgres'"),
        ("postgresql+psycopg2://me:s3cret@host/db", "(psycopg 3, written out postgresql+psycopg://), got the scheme"),
        ("postgresql://me:s3cret@host", "must name a database"),
        ("postgresql://me:s3cret@host/", "must name a database"),
        ("postgresql://host/db?options=s3cret", f"{PARAMETERS}; got 'options'"),
        ("postgresql://host/db?password=s3cret&user=s3cret", f"{PARAMETERS}; got 'password', 'user'"),
        ("postgresql://me:s3cret@one,two/db", "must name one host"),
        ("postgresql://me:s3cret@host/db?host=one,two", "must name one host"),
        ("postgresql://me:s3cret@host/db?host=one&host=two", "must name one host"),
        ("postgresql://me:s3cret@host/db?s3cret", "has a '?' in the name"),
        ("sqlite:////folder/my.db?s3cret=s3cret", "has a '?' in the name"),
        ("postgresql://me:s3cret@host:s3cret/db", "has a host or a port that cannot be read"),
        ("postgresql://me:s3cret@host:70000/db", "has a host or a port that cannot be read"),
        ("postgresql://me:s3cret/@host/db", "must have the special characters of user and password as codes"),
        ("s3cret", "cannot be read; write it as in sqlite:////folder/triangulation.db or postgresql://user:password@"),
    ],
)
def test_other_urls_are_refused_in_one_sentence_without_secrets(given: str, says: str) -> None:
    for act in (parse_url, open_database):
        with pytest.raises(ValueError, match=r"^the database URL [^\n]+$") as caught:
            act(given)
        assert says in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_migrations_make_what_the_tables_say(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_an_earlier_schema_is_migrated_with_its_rows(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database as revision 0001 left it, with a dataset, a job and a model in production in it."""
    described = json.dumps({"network": NORTH_WEST_ITALY.model_dump(mode="json") | {"name": "other"}})
    with monkeypatch.context() as patch:
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _head: upgrade(config, "0001"))
        engine = open_database(empty_database_url)
    dataset_id, job_id, model_id, worse_id = (str(uuid.uuid4()) for _ in range(4))
    moment = "2026-11-01T12:00:00.000000Z"
    with writing(engine) as connection:
        for statement in (
            f"INSERT INTO synthetic_datasets VALUES ('{dataset_id}', 'd', 1, 1, 0, 0, '{described}', '{{}}', 'n', 'x', "
            f"'y', '{moment}')",
            f"INSERT INTO synthetic_datasets VALUES ('{model_id}', 'e', 1, 1, 0, 0, '{{}}', '{{}}', 'n', 'x', 'y', "
            f"'{moment}')",
            "INSERT INTO training_jobs (id, job_name, description, status, config, synthetic_dataset_id, total_epochs, "
            f"current_epoch, progress_percent, created_at) VALUES ('{job_id}', 'j', '', 'completed', '{{}}', "
            f"'{dataset_id}', 1, 1, 100, '{moment}')",
            "INSERT INTO models (id, model_name, version, model_architecture, pytorch_model_location, sha256, epoch, "
            "trained_by_job_id, synthetic_dataset_id, network_name, network_digest, hyperparameters, metrics, "
            f"is_active, is_production, promoted, promotion_reason, created_at) VALUES ('{model_id}', 'm', 1, 'a', "
            f"'/b', 'c', 1, '{job_id}', '{dataset_id}', 'n', 'x', '{{}}', '{{}}', true, true, true, '', '{moment}'), "
            f"('{worse_id}', 'm', 2, 'a', '/b', 'd', 1, '{job_id}', '{dataset_id}', 'n', 'x', '{{}}', '{{}}', false, "
            f"false, false, '', '{moment}')",
        ):
            connection.execute(text(statement.replace(":", "\\:")))
    engine.dispose()

    engine = open_database(empty_database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    job = get_job(engine, job_id)
    assert (job.run_id, job.stop_requested, job.heartbeats) == (job_id, None, 0)
    model = get_model(engine, "m")
    assert (model.id, model.parent_model_id, model.production_since) == (model_id, None, model.created_at)
    assert (model.promoted, model.passed, model.weights_digest) == (True, True, None)
    # A network is its sites, and each digest says what it covers.
    dataset = get_dataset(engine, dataset_id)
    assert dataset.network_digest == model.network_digest == NORTH_WEST_ITALY.digest
    assert dataset.digest_columns == list(DIGEST_COLUMNS)
    assert get_dataset(engine, model_id).network_digest == "x", "of a dataset that does not describe its network"
    worse = get_model(engine, "m", 2)
    assert (worse.id, worse.production_since, worse.promoted, worse.passed) == (worse_id, None, False, False)
    engine.dispose()


@pytest.mark.parametrize("revision", [revision.revision for revision in MIGRATIONS.walk_revisions()])
def test_a_database_of_any_revision_is_migrated(empty_database_url: str, revision: str, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, _, to=command.upgrade: to(config, revision))
        open_database(empty_database_url).dispose()
    engine = open_database(empty_database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == MIGRATIONS.get_current_head()
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_opening_again_keeps_everything(database_url: str, engine: Engine, make_dataset) -> None:
    record = make_dataset()
    again = open_database(database_url)
    with again.connect() as connection:
        assert connection.scalar(select(synthetic_datasets.c.id)) == record.id
    again.dispose()


def test_a_raise_rolls_back(engine: Engine) -> None:
    def break_off() -> None:
        with writing(engine) as connection:
            connection.execute(text("CREATE TABLE passing (id INTEGER)"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert "passing" not in inspect(engine).get_table_names()


def test_what_was_written_is_there_once_the_transaction_has_ended(engine: Engine) -> None:
    count = text("SELECT count(*) FROM alembic_version")
    with writing(engine) as connection:
        connection.execute(text("INSERT INTO alembic_version VALUES ('mine')"))
        with reading(engine) as other:
            assert other.scalar(count) == 1
        assert connection.scalar(count) == 2
    with reading(engine) as other:
        assert other.scalar(count) == 2


def test_a_transaction_whose_end_is_lost_is_repeated_only_where_that_does_no_harm(
    engine: Engine, lose_next_commit: Callable[[], None]
) -> None:
    tries: list[int] = []
    lose_next_commit()
    with pytest.raises(StorageError, match=r"written: it was lost; whether it was written before is not known$"):
        in_one_transaction(engine, lambda _connection: tries.append(1))
    assert len(tries) == 1
    lose_next_commit()
    in_one_transaction(engine, lambda _connection: tries.append(1), repeatable=True)
    assert len(tries) == 3


def test_a_transaction_that_the_server_undid_is_tried_again_but_not_for_ever(engine: Engine) -> None:
    """The connection breaks before it is committed."""
    tries: list[int] = []

    def undone(_connection: Connection) -> None:
        tries.append(1)
        if len(tries) != MOST_TRIES:
            raise OperationalError("INSERT", {}, RuntimeError("it was lost"), connection_invalidated=True)

    in_one_transaction(engine, undone)
    assert len(tries) == MOST_TRIES == 10
    with pytest.raises(StorageError, match=r"cannot be written: it was lost$"):
        in_one_transaction(engine, undone)
    assert len(tries) == 2 * MOST_TRIES

    def failed(_connection: Connection) -> None:
        tries.append(1)
        raise OperationalError("INSERT", {}, RuntimeError("disk I/O error"))

    with pytest.raises(StorageError, match=r"cannot be written: disk I/O error$"):
        in_one_transaction(engine, failed)
    assert len(tries) == 2 * MOST_TRIES + 1


def test_processes_may_migrate_at_once(database: str, empty_database_url: str, tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from triangulation_pipeline.storage.engine import open_database\n"
        "pathlib.Path(sys.argv[2]).touch()\n"
        "while not pathlib.Path(sys.argv[3]).exists(): time.sleep(0.001)\n"
        "open_database(sys.argv[1])\n"
    )
    go, ready = tmp_path / "go", [tmp_path / f"ready{i}" for i in range(3)]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, empty_database_url, str(path), str(go)], stderr=subprocess.PIPE)
        for path in ready
    ]
    while not all(path.exists() for path in ready):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    go.touch()
    said = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    # That there are no hypertables is said once, by the process that made the tables.
    notices = [line for line in "".join(said).splitlines() if "timescaledb is not installed" in line]
    assert len(notices) == (database == "postgresql")
    assert len("".join(said).splitlines()) == len(notices)
    engine = open_database(empty_database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).all() == [
            (MIGRATIONS.get_current_head(),)
        ]
    engine.dispose()


def test_what_others_say_is_one_printable_line_in_a_message(database_url: str, engine: Engine) -> None:
    assert quoted("\n first\x1b[2J\u202e \nsecond") == "first\\x1b[2J\\u202e"
    assert quoted("long " * 1000) == ("long " * 60) + "..."
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :odd"), {"odd": "\x1b[2J\n\u202eodd"})
    with pytest.raises(StorageError, match="does not know") as caught:
        open_database(database_url)
    assert str(caught.value).isprintable()
    with pytest.raises(StorageError) as caught:
        find_referred_model(engine, "\x1b[2J\n" + "long " * 1000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_an_error_of_the_database_is_told_without_what_lies_below(engine: Engine) -> None:
    """Dagster stores the whole chain in an event: statements, values and all."""
    with pytest.raises(StorageError) as caught, writing(engine) as connection:
        connection.execute(text("SELECT :value FROM nowhere"), {"value": "s3cret"})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "s3cret" not in str(caught.value)
    with pytest.raises(StorageError, match="cannot be read: ") as caught, reading(engine) as connection:
        connection.execute(text('SELECT 1 FROM "\x1b[2J\u202e"'))
    assert str(caught.value).isprintable()
    assert "\\x1b[2J\\u202e" in str(caught.value)


def test_a_newer_database_is_refused(database_url: str, engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"revision '9999', which this version .* does not know"):
        open_database(database_url)
