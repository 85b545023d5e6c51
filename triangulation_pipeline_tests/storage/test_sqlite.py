"""What holds for SQLite alone: the file, its locks and its settings."""

import re
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError

from triangulation_pipeline.storage import engine as engine_module
from triangulation_pipeline.storage.engine import open_database, reading, writing
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.tables import metadata


@pytest.fixture
def database() -> str:
    return "sqlite"


def schema(engine: Engine) -> dict[str, set[object]]:
    """Columns, keys, indexes and checks of each table, in no order: columns that came later stand last."""
    found: dict[str, set[object]] = {}
    with engine.connect() as connection:
        statement = text("SELECT name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type <> 'view'")
        for name, table, sql in connection.execute(statement).all():
            facts = found.setdefault(table, set())
            if name != table:
                facts.add(sql)
                continue
            facts |= {row[1:] for row in connection.execute(text(f"PRAGMA table_info({table})"))}
            facts |= {row[2:] for row in connection.execute(text(f"PRAGMA foreign_key_list({table})"))}
            facts |= set(re.findall(r"CONSTRAINT \w+ CHECK \(.*?\)\)", sql))
            facts |= {"WITHOUT ROWID"} if "WITHOUT ROWID" in sql else set()
    return {name: facts for name, facts in found.items() if name != "alembic_version"}


def test_migrations_make_the_same_checks_and_cascades_too(engine: Engine, tmp_path: Path) -> None:
    made_at_once = create_engine(f"sqlite:///{tmp_path / 'at_once.db'}")
    metadata.create_all(made_at_once)
    assert schema(engine) == schema(made_at_once)
    made_at_once.dispose()


def test_connections_are_durable_and_keep_references(engine: Engine) -> None:
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 600_000}


def test_opening_does_not_wait_for_a_writer(database_url: str, engine: Engine) -> None:
    with writing(engine):
        open_database(database_url).dispose()


def test_who_writes_has_the_lock_at_once_and_who_reads_has_none(engine: Engine) -> None:
    def other_writes() -> None:
        other = sqlite3.connect(str(engine.url.database), timeout=0, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
        finally:
            other.close()

    with reading(engine) as connection:
        connection.execute(text("SELECT * FROM models"))
        other_writes()
    with writing(engine), pytest.raises(sqlite3.OperationalError, match="database is locked"):
        other_writes()
    other_writes()


def test_a_file_that_another_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one too, of which SQLite says at once that it is locked."""
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_database, f"sqlite:///{path}")
        time.sleep(0.1)
        assert not opening.done()
        other.execute("COMMIT")
        opening.result(10).dispose()
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.2)
    engine = open_database(f"sqlite:///{path}")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"new\.db cannot be written: database is locked"), writing(engine):
        pass
    engine.dispose()
    other.execute("COMMIT")
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"new\.db cannot be opened: database is locked"):
        open_database(f"sqlite:///{path}")
    assert 0.2 <= time.monotonic() - began < 30
    other.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE training_jobs SET status = 'sleeping'",
        "UPDATE training_jobs SET stop_requested = 'wait'",
        "UPDATE synthetic_training_samples SET split = 'spare'",
        "UPDATE training_jobs SET synthetic_dataset_id = 'none'",
    ],
)
def test_no_row_says_what_the_columns_do_not_know(engine: Engine, make_job: Callable[[], object], change: str) -> None:
    make_job()
    with pytest.raises(IntegrityError, match="constraint failed"), writing(engine) as connection:
        connection.execute(text(change))


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be taken for the header of one" * 20)
    content = path.read_bytes()
    with pytest.raises(StorageError, match=r"notes\.txt cannot be opened: file is not a database"):
        open_database(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be opened: (Not a directory|File exists): .*file"):
        open_database(f"sqlite:///{tmp_path / 'file' / 'sub' / 'a.db'}")
    with pytest.raises(StorageError, match="unable to open database file"):
        open_database(f"sqlite:///{tmp_path}")
    # What is no lock is not waited for.
    (tmp_path / "a.db-journal").mkdir()
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"a\.db cannot be opened: unable to open database file"):
        open_database(f"sqlite:///{tmp_path / 'a.db'}")
    assert time.monotonic() - began < 30


def test_a_write_that_fails_is_one_sentence(engine: Engine) -> None:
    def fill() -> None:
        with writing(engine) as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            connection.execute(text("CREATE TABLE big AS SELECT zeroblob(1000000)"))

    with pytest.raises(StorageError, match=r"test\.db cannot be written: .*full"):
        fill()
