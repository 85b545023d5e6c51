"""The database and the object store, as assets get them."""

from pathlib import Path

from triangulation_pipeline.defs.resources import Storage


def test_places_are_opened_when_they_are_first_used_and_closing_opens_none(home: Path) -> None:
    database, objects = home / ".dagster" / "triangulation.db", home / ".dagster" / "objects"
    storage = Storage()
    storage.close()
    assert not database.exists()
    assert not storage.is_open
    storage.open()
    assert storage.is_open
    assert database.is_file()
    assert objects.is_dir()
    pool = storage.engine.pool
    storage.close()
    assert storage.engine.pool is not pool, "its connections are closed"
