import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from triangulation_pipeline.storage.engine import open_database, writing
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.tables import metadata


def test_migrations_make_what_the_tables_say(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_tables_fit_postgresql() -> None:
    dialect = postgresql.dialect()
    ddl = {table.name: str(CreateTable(table).compile(dialect=dialect)) for table in metadata.sorted_tables}
    samples = ddl["synthetic_training_samples"]
    for line in ("id UUID", "toa_ns DOUBLE PRECISION[]", "snr_db REAL[]", "signal_present BOOLEAN[]"):
        assert line in samples
    assert "timestamp TIMESTAMP WITH TIME ZONE" in samples
    assert "config JSONB" in ddl["training_jobs"]
    names = {constraint.name for table in metadata.tables.values() for constraint in table.constraints}
    assert max(len(str(name)) for name in names) <= 63


def test_opening_again_keeps_everything(database_url: str, engine: Engine, make_dataset) -> None:
    record = make_dataset()
    again = open_database(database_url)
    with again.connect() as connection:
        assert connection.scalar(text("SELECT id FROM synthetic_datasets")) == record.id
    again.dispose()


def test_a_raise_rolls_back(engine: Engine) -> None:
    def break_off() -> None:
        with writing(engine) as connection:
            connection.execute(text("CREATE TABLE passing (id INTEGER)"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert "passing" not in inspect(engine).get_table_names()


def test_processes_may_migrate_at_once(database_url: str, tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from triangulation_pipeline.storage.engine import open_database\n"
        "pathlib.Path(sys.argv[2]).touch()\n"
        "while not pathlib.Path(sys.argv[3]).exists(): time.sleep(0.001)\n"
        "open_database(sys.argv[1])\n"
    )
    go, ready = tmp_path / "go", [tmp_path / f"ready{i}" for i in range(3)]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, database_url, str(path), str(go)], stderr=subprocess.PIPE)
        for path in ready
    ]
    while not all(path.exists() for path in ready):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    go.touch()
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 3
    engine = open_database(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).all() == [("0001",)]
    engine.dispose()


def test_a_newer_database_is_refused(database_url: str, engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"revision '9999', which this version .* does not know"):
        open_database(database_url)
