"""Every database and object store of the room: a second one is one more parameter of ``database_url``, of ``store``.

Tests of one kind alone are in ``test_sqlite.py``, ``test_folder.py`` and ``test_s3.py``.
"""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from typing import Any
import numpy as np
import pytest
from sqlalchemy import Engine

from triangulation_pipeline.samples import SampleBatch, sample_ids
from triangulation_pipeline.defs.resources import s3_client
from triangulation_pipeline.storage.datasets import DatasetRecord, write_dataset
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.jobs import JobRecord, start_job
from triangulation_pipeline.storage.objects import FolderStore, ObjectStore

from triangulation_pipeline.storage.s3 import S3Store
from triangulation_pipeline_tests.conftest import new_bucket_name, use_s3

@pytest.fixture(params=["sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    return {"sqlite": f"sqlite:///{tmp_path / 'folder' / 'test.db'}"}[request.param]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def client(s3_endpoint: str) -> Any:
    """The client that the AWS variables give."""
    with pytest.MonkeyPatch.context() as patch:
        use_s3(patch, s3_endpoint)
        return s3_client()


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


def make_batch(first: int, n: int, r: int = 5) -> SampleBatch:
    """n seeded samples from index ``first`` on, every third without DOP and CRLB."""
    rng = np.random.Generator(np.random.Philox(key=first))
    index = np.arange(first, first + n)

    def f4(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype("<f4")

    def sometimes_missing() -> np.ndarray:
        return np.where(index % 3 == 0, np.nan, f4(n)).astype("<f4")

    return SampleBatch(
        sample_id=sample_ids(uuid.UUID(int=1), index.tolist()),
        sample_index=index,
        tx_lat=rng.normal(45, 1, n),
        tx_lon=rng.normal(8, 1, n),
        tx_power_dbm=f4(n),
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


@pytest.fixture
def make_dataset(engine: Engine) -> Callable[..., DatasetRecord]:
    """Writes a small dataset of a new id."""

    def make(batches: list[SampleBatch] | None = None) -> DatasetRecord:
        dataset_id = str(uuid.uuid4())
        record, reused = write_dataset(
            engine,
            dataset_id=dataset_id,
            name=f"dataset {dataset_id}",
            config={"seed": 1},
            network_name="test",
            network_digest="d" * 64,
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
        return start_job(
            engine,
            job_id=str(uuid.uuid4()),
            job_name="test",
            description="a job of the tests",
            config={"learning_rate": 0.003, "layers": [1, 2]},
            synthetic_dataset_id=make_dataset().id,
            total_epochs=4,
        )

    return make
