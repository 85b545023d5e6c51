"""The databases of the storage room's tests: jobs are rows in them."""

from triangulation_pipeline_tests.storage.conftest import (
    database,
    database_url,
    empty_database_url,
    engine,
    lose_next_commit,
    make_dataset,
    make_job,
    new_database,
    postgresql_server,
    postgresql_template,
    sqlite_template,
    timescale_server,
)

__all__ = [
    "database",
    "database_url",
    "empty_database_url",
    "engine",
    "lose_next_commit",
    "make_dataset",
    "make_job",
    "new_database",
    "postgresql_server",
    "postgresql_template",
    "sqlite_template",
    "timescale_server",
]
