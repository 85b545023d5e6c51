"""How fast samples go into a database and come out, by SQLite, PostgreSQL and TimescaleDB; COPY against the same bytes
ready-made, and against the same bytes thrown away."""

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, delete

from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate_chunks
from triangulation_pipeline.samples import DIGEST_COLUMNS, Samples
from triangulation_pipeline.storage import pgcopy
from triangulation_pipeline.storage.bulk import insert_samples, select_samples
from triangulation_pipeline.storage.datasets import read_samples, write_dataset
from triangulation_pipeline.storage.engine import open_database, writing
from triangulation_pipeline.storage.tables import synthetic_training_samples
from triangulation_pipeline_tests.postgres import (
    NO_BINARIES,
    NO_TIMESCALEDB,
    find_binaries,
    find_timescaledb,
    temporary_server,
)

SAMPLES = 50_000
TURNS = 5
ALTITUDE_M = PRESETS[Preset.default].transmitter_altitude_m


def measure() -> dict[str, str]:
    """Name and value of each number, ready to print."""
    spec = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], SAMPLES, seed=0)
    batches = [chunk.batch for chunk in simulate_chunks(spec)]
    with tempfile.TemporaryDirectory() as folder:
        numbers = _write_and_read("SQLite", open_database(f"sqlite:///{Path(folder) / 'bench.db'}"), batches)
    for name, found, missing in (
        ("PostgreSQL", find_binaries(), NO_BINARIES),
        ("TimescaleDB", find_timescaledb(), NO_TIMESCALEDB),
    ):
        if found is None:
            numbers[f"{name}: {missing}"] = "skipped"
            continue
        timescaledb = name == "TimescaleDB"
        with temporary_server(timescaledb=timescaledb) as server:
            url = server.create_database(timescaledb=timescaledb)
            engine = open_database(url.render_as_string(hide_password=False))
            numbers |= _write_and_read(name, engine, batches) | _against_raw_copy(name, engine, batches)
            engine.dispose()
    return numbers


def _write_and_read(name: str, engine: Engine, batches: list[Samples]) -> dict[str, str]:
    sites = batches[0].num_sites
    started = time.perf_counter()
    record = _write(engine, batches)
    middle = time.perf_counter()
    read_samples(engine, record)
    ended = time.perf_counter()
    return {
        f"{name}, writing {SAMPLES:,} x {sites} with digest, s": f"{middle - started:.2f}",
        f"{name}, reading {SAMPLES:,} x {sites} as a batch, s (under 1)": f"{ended - middle:.2f}",
    }


def _write(engine: Engine, batches: list[Samples]) -> str:
    record, _ = write_dataset(
        engine,
        DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], SAMPLES, seed=uuid.uuid4().int >> 66),
        name=str(uuid.uuid4()),
        batches=batches,
        quality_metrics=dict,
    )
    return record.id


def _select(connection: Connection, dataset_id: str) -> Iterator[Samples]:
    return select_samples(connection, dataset_id, ALTITUDE_M, DIGEST_COLUMNS)


def _against_raw_copy(name: str, engine: Engine, batches: list[Samples]) -> dict[str, str]:
    """In turns, into the same empty dataset and out of it: ours, and a bare COPY of the same bytes."""
    dataset_id = _write(engine, [batches[0].take(slice(0, 1))])
    going_in = [_recorded(engine, partial(insert_samples, dataset_id=dataset_id, batch=batch)) for batch in batches]
    coming_out = _recorded(engine, lambda connection: list(_select(connection, dataset_id)))

    def write(connection: Connection) -> None:
        for batch in batches:
            insert_samples(connection, dataset_id, batch)

    def bare_write(connection: Connection) -> None:
        for recorded in going_in:
            with _driver(connection).cursor() as cursor, cursor.copy(recorded.statement) as copy:
                for part in recorded.parts:
                    copy.write(part)

    def read(connection: Connection) -> None:
        if sum(map(len, _select(connection, dataset_id))) != SAMPLES:
            raise ArithmeticError("not all samples came back")

    def bare_read(connection: Connection) -> None:
        with _driver(connection).cursor() as cursor, cursor.copy(coming_out.statement) as copy:
            for _ in copy:
                pass

    def seconds(work: Callable[[Connection], None], *, into_empty: bool) -> float:
        if into_empty:
            with writing(engine) as connection:
                connection.execute(delete(synthetic_training_samples))
        started = time.perf_counter()
        with writing(engine) as connection:
            work(connection)
        return time.perf_counter() - started

    numbers: dict[str, str] = {}
    for verb, ours, bare, into_empty in (("write", write, bare_write, True), ("read", read, bare_read, False)):
        # The first turn is to warm up.
        durations = [
            (seconds(ours, into_empty=into_empty), seconds(bare, into_empty=into_empty)) for _ in range(TURNS + 1)
        ][1:]
        ours_s, bare_s = np.median(durations, axis=0)
        numbers |= {
            f"  {name}, {verb}: rows/s": f"{SAMPLES / ours_s:,.0f}",
            f"  {name}, {verb}: bare COPY of the same bytes, rows/s": f"{SAMPLES / bare_s:,.0f}",
            f"  {name}, {verb}: time / bare COPY's (at most 1.20)": f"{median(a / b for a, b in durations):.2f}",
        }
    return numbers


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _recorded(engine: Engine, work: Callable[[Connection], object]) -> "_Recorder":
    """The statement of one COPY, and the bytes that it sent, none of which reached the server."""
    recorder = _Recorder()
    with engine.connect() as connection:
        original, pgcopy._cursor = pgcopy._cursor, lambda _: recorder  # type: ignore[assignment, return-value]
        try:
            work(connection)
        finally:
            pgcopy._cursor = original
    return recorder


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

    def __iter__(self) -> Iterator[bytes]:
        """What the server sends of no rows."""
        return iter([pgcopy._HEADER + pgcopy._TRAILER])
