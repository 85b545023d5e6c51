"""How fast samples go into a database and come out, SQLite and PostgreSQL; COPY against the same bytes ready-made."""

import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, delete

from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import DatasetSpec, simulate
from triangulation_pipeline.samples import SampleBatch
from triangulation_pipeline.storage import pgcopy
from triangulation_pipeline.storage.bulk import insert_samples
from triangulation_pipeline.storage.datasets import read_samples, write_dataset
from triangulation_pipeline.storage.engine import open_database, writing
from triangulation_pipeline.storage.tables import synthetic_training_samples
from triangulation_pipeline_tests.postgres import NO_BINARIES, find_binaries, temporary_server

SAMPLES = 50_000
TURNS = 5


def measure() -> dict[str, str]:
    """Name and value of each number, ready to print."""
    spec = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], SAMPLES, seed=0)
    batches = [chunk.batch for chunk in simulate(spec)]
    with tempfile.TemporaryDirectory() as folder:
        numbers = _write_and_read("SQLite", open_database(f"sqlite:///{Path(folder) / 'bench.db'}"), batches)
    if find_binaries() is None:
        return numbers | {f"PostgreSQL: {NO_BINARIES}": "skipped"}
    with temporary_server() as server:
        engine = open_database(server.create_database().render_as_string(hide_password=False))
        numbers |= _write_and_read("PostgreSQL", engine, batches) | _against_raw_copy(engine, batches)
        engine.dispose()
    return numbers


def _write_and_read(name: str, engine: Engine, batches: list[SampleBatch]) -> dict[str, str]:
    sites = batches[0].num_sites
    started = time.perf_counter()
    record = _write(engine, batches)
    middle = time.perf_counter()
    read_samples(engine, record)
    ended = time.perf_counter()
    return {
        f"{name}, writing {SAMPLES:,} x {sites} with digest, s": f"{middle - started:.2f}",
        f"{name}, reading {SAMPLES:,} x {sites} as a batch, s": f"{ended - middle:.2f}",
    }


def _write(engine: Engine, batches: list[SampleBatch]) -> str:
    record, _ = write_dataset(
        engine,
        dataset_id=str(uuid.uuid4()),
        name=str(uuid.uuid4()),
        config={},
        network_name="benchmark",
        network_digest="0" * 64,
        batches=batches,
        quality_metrics=dict,
    )
    return record.id


def _against_raw_copy(engine: Engine, batches: list[SampleBatch]) -> dict[str, str]:
    """In turns, into the same empty dataset: our writer, and a bare COPY of the bytes that it sent."""
    dataset_id = _write(engine, [batches[0].take(slice(0, 1))])
    sent = [_recorded(engine, dataset_id, batch) for batch in batches]

    def ours(connection: Connection) -> None:
        for batch in batches:
            insert_samples(connection, dataset_id, batch)

    def raw(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        for statement, parts in sent:
            with driver.cursor() as cursor, cursor.copy(statement) as copy:
                for part in parts:
                    copy.write(part)

    def seconds(work: Callable[[Connection], None]) -> float:
        with writing(engine) as connection:
            connection.execute(delete(synthetic_training_samples))
        started = time.perf_counter()
        with writing(engine) as connection:
            work(connection)
        return time.perf_counter() - started

    durations = [(seconds(ours), seconds(raw)) for _ in range(TURNS + 1)][1:]
    ours_s, raw_s = np.median(durations, axis=0)
    return {
        "  insert_samples alone, rows/s": f"{SAMPLES / ours_s:,.0f}",
        "  bare COPY of the same bytes, rows/s": f"{SAMPLES / raw_s:,.0f}",
        "  insert_samples' time / bare COPY's (at most 1.20)": f"{median(a / b for a, b in durations):.2f}",
    }


def _recorded(engine: Engine, dataset_id: str, batch: SampleBatch) -> tuple[Any, list[bytes]]:
    """The statement and the bytes of one ``insert_samples``, which is undone."""
    recorder = _Recorder()
    with engine.connect() as connection:
        original, pgcopy._cursor = pgcopy._cursor, lambda _: recorder  # type: ignore[assignment, return-value]
        try:
            insert_samples(connection, dataset_id, batch)
        finally:
            pgcopy._cursor = original
    return recorder.statement, recorder.parts


class _Recorder:
    """Takes the place of a cursor and of its COPY."""

    def __init__(self) -> None:
        self.statement: Any = None
        self.parts: list[bytes] = []

    def __enter__(self) -> "_Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def copy(self, statement: Any) -> "_Recorder":
        self.statement = statement
        return self

    def write(self, part: Any) -> None:
        self.parts.append(bytes(part))
