"""Every database and object store of the room: a second one is one more parameter of ``database_url``, of ``store``.

Tests of one kind alone are in ``test_sqlite.py``, ``test_folder.py`` and ``test_s3.py``.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import OperationalError

from triangulation_pipeline.jobs.continuation import start_job
from triangulation_pipeline.jobs.states import JobRecord
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import FIRST_TIME_NS
from triangulation_pipeline.samples import Samples, sample_ids
from triangulation_pipeline.storage.datasets import DatasetRecord, write_dataset
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.objects import FolderStore, ObjectStore, is_key
from triangulation_pipeline.storage.s3 import S3Store, make_client
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.conftest import cannot_run, new_bucket_name, use_s3
from triangulation_pipeline_tests.postgres import (
    NO_BINARIES,
    NO_TIMESCALEDB,
    OwnServer,
    Server,
    find_binaries,
    find_timescaledb,
    server_at,
    temporary_server,
)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[OwnServer]:
    """A server of this session, without TimescaleDB."""
    if find_binaries() is None:
        cannot_run(NO_BINARIES)
    with temporary_server() as server:
        yield server


@pytest.fixture(scope="session")
def timescale_server() -> Iterator[Server]:
    """A server with TimescaleDB: the one at TRIANGULATION_TEST_TIMESCALE_URL, else one of this session, of the licence
    that its packages were built for."""
    if url := os.environ.get("TRIANGULATION_TEST_TIMESCALE_URL"):
        server = server_at(url)
        server.ensure_role()
        yield server
        return
    if find_timescaledb() is None:
        cannot_run(NO_TIMESCALEDB)
    with temporary_server(timescaledb=True) as server:
        yield server


@pytest.fixture
def new_database() -> Iterator[Callable[..., URL]]:
    """Makes databases for the pipeline's role on a server (arguments of ``create_database``), dropped at the end."""
    made: list[tuple[Server, URL]] = []

    def make(server: Server, *args: str, **kwargs: Any) -> URL:
        made.append((server, server.create_database(*args, **kwargs)))
        return made[-1][1]

    yield make
    for server, url in made:
        server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql", pytest.param("timescale", marks=pytest.mark.production)])
def database(request: pytest.FixtureRequest) -> str:
    """Which database a test runs on."""
    return request.param


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> str:
    """The URL of a database that was never opened."""
    if database == "sqlite":
        return f"sqlite:///{tmp_path / 'folder' / 'test.db'}"
    server, new_database = map(request.getfixturevalue, (f"{database}_server", "new_database"))
    return new_database(server, timescaledb=database == "timescale").render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: OwnServer) -> str:
    """The name of a database without rows, to copy: a third of the time that migrating takes."""
    url = postgresql_server.create_database()
    open_database(url.render_as_string(hide_password=False)).dispose()
    return str(url.database)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file without rows, to copy: a tenth of the time that migrating takes."""
    path = tmp_path_factory.mktemp("template") / "test.db"
    open_database(f"sqlite:///{path}").dispose()
    return path


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> str:
    """The URL of a database without rows."""
    if database == "sqlite":
        (tmp_path / "folder").mkdir()
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "folder" / "test.db")
        return f"sqlite:///{tmp_path / 'folder' / 'test.db'}"
    if database != "postgresql":
        return request.getfixturevalue("empty_database_url")
    server, template, new_database = map(
        request.getfixturevalue, ("postgresql_server", "postgresql_template", "new_database")
    )
    return new_database(server, template).render_as_string(hide_password=False)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def lose_next_commit(engine: Engine) -> Callable[[], None]:
    """The connection breaks while the next transaction is committed: nobody knows whether it was."""
    losing: list[bool] = []

    def breaks(_connection: Connection) -> None:
        if losing:
            losing.clear()
            raise OperationalError("COMMIT", {}, RuntimeError("it was lost"), connection_invalidated=True)

    event.listen(engine, "commit", breaks)
    return lambda: losing.append(True)


@pytest.fixture(scope="session")
def client(s3_endpoint: str) -> Any:
    """The client that the AWS variables give."""
    with pytest.MonkeyPatch.context() as patch:
        use_s3(patch, s3_endpoint)
        return make_client()


@pytest.fixture
def bucket(client: Any) -> S3Store:
    """An empty object store in a bucket of its own."""
    store = S3Store(client, new_bucket_name(), "some/prefix", deadline_s=5)
    store.open()
    return store


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty object store."""
    if request.param == "bucket":
        found: ObjectStore = request.getfixturevalue("bucket")
        return found
    return FolderStore(tmp_path / "objects")


def make_batch(first: int, n: int, r: int = 5) -> Samples:
    """n seeded samples from index ``first`` on, every third without DOP and CRLB."""
    rng = np.random.Generator(np.random.Philox(key=first))
    index = np.arange(first, first + n)

    def f4(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype("<f4")

    def sometimes_missing() -> np.ndarray:
        return np.where(index % 3 == 0, np.nan, f4(n)).astype("<f4")

    return Samples(
        sample_id=sample_ids(uuid.UUID(int=1), index.tolist()),
        sample_index=index,
        tx_lat=rng.normal(45, 1, n),
        tx_lon=rng.normal(8, 1, n),
        tx_power_dbm=f4(n),
        time_ns=FIRST_TIME_NS + index * 10**9,
        tx_altitude_m=np.full(n, 2.0),
        frequency_hz=rng.integers(144_000_000, 146_000_000, n),
        hdop=sometimes_missing(),
        gdop=sometimes_missing(),
        crlb_m=sometimes_missing(),
        signal_present=rng.random((n, r)) < 0.7,
        toa_present=rng.random((n, r)) < 0.5,
        snr_db=f4(n, r),
        power_dbm=f4(n, r),
        frequency_offset_hz=f4(n, r),
        toa_ns=rng.normal(0, 1e6, (n, r)),
        toa_sigma_ns=f4(n, r),
    )


def a_spec(seed: int | None = None, network: ReceiverNetwork = NORTH_WEST_ITALY, **scenario: Any) -> DatasetSpec:
    """What a dataset of a new id, or of this seed, is written as; ``make_batch`` makes samples for it."""
    number = uuid.uuid4().int >> 66 if seed is None else seed
    return DatasetSpec(network, Scenario(**scenario), 20, number)


def running_job(engine: Engine, job_id: str, total_epochs: int = 4) -> JobRecord:
    """A job that its first run, of the same id, trains on a small dataset of its own."""
    dataset, _ = write_dataset(
        engine,
        a_spec(),
        name=f"of {job_id}",
        batches=[make_batch(0, 20)],
        quality_metrics=dict,
    )
    return start_job(
        engine,
        job_id=job_id,
        run_id=job_id,
        config=TrainingConfig(job_name="night", epochs=total_epochs),
        synthetic_dataset_id=dataset.id,
    )


@pytest.fixture
def make_dataset(engine: Engine) -> Callable[..., DatasetRecord]:
    """Writes a small dataset of a new id."""

    def make(batches: list[Samples] | None = None) -> DatasetRecord:
        spec = a_spec()
        record, reused = write_dataset(
            engine,
            spec,
            name=f"dataset {spec.dataset_id}",
            batches=[make_batch(0, 20)] if batches is None else batches,
            quality_metrics=lambda: {"mean_snr_db": 1.5},
        )
        assert not reused
        return record

    return make


@pytest.fixture
def make_job(engine: Engine, make_dataset: Callable[..., DatasetRecord]) -> Callable[[], JobRecord]:
    """Starts a job of a new id on a dataset of its own."""

    def make() -> JobRecord:
        job_id = str(uuid.uuid4())
        return start_job(
            engine,
            job_id=job_id,
            run_id=job_id,
            config=TrainingConfig(job_name="test", description="a job of the tests", epochs=4),
            synthetic_dataset_id=make_dataset().id,
        )

    return make


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which what is tried again waits."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_s)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def keys_of(store: ObjectStore, prefix: str = "") -> list[str]:
    """The keys of the objects in a store that begin with a prefix, sorted."""
    if isinstance(store, FolderStore):
        files = (path for path in store.root.rglob("*") if path.is_file() and not path.is_symlink())
        names = [path.relative_to(store.root).as_posix() for path in files]
    else:
        assert isinstance(store, S3Store)
        pages = store._client.get_paginator("list_objects_v2").paginate(Bucket=store._bucket, Prefix=store._prefix)
        objects = (item["Key"] for page in pages for item in page.get("Contents", []))
        names = [name.removeprefix(store._prefix) for name in objects]
    return sorted(name for name in names if is_key(name) and name.startswith(prefix))
