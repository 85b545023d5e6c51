import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, delete, event, func, select, update

from triangulation_pipeline.samples import SampleBatch, Split, samples_digest
from triangulation_pipeline.storage.bulk import ROWS_A_FETCH
from triangulation_pipeline.storage.datasets import (
    DatasetRecord,
    find_dataset,
    list_datasets,
    list_untrained_datasets,
    read_samples,
    verify_dataset,
    write_dataset,
)
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.jobs import JobRecord
from triangulation_pipeline.storage.tables import synthetic_datasets, synthetic_training_samples
from triangulation_pipeline_tests.storage.conftest import make_batch

MakeDataset = Callable[..., DatasetRecord]


def assert_same(first: SampleBatch, second: SampleBatch) -> None:
    for field in fields(SampleBatch):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), strict=True)


def described(**changes) -> dict:
    """Arguments of ``write_dataset``."""
    dataset_id = str(uuid.uuid4())
    return {
        "dataset_id": dataset_id,
        "name": f"dataset {dataset_id}",
        "config": {},
        "network_name": "test",
        "network_digest": "d" * 64,
        "batches": [make_batch(0, 10)],
        "quality_metrics": dict,
    } | changes


def rows(engine: Engine) -> tuple[int, int]:
    with engine.connect() as connection:
        tables = (synthetic_datasets, synthetic_training_samples)
        datasets, samples = (connection.scalar(select(func.count()).select_from(table)) for table in tables)
    return datasets or 0, samples or 0


def test_samples_come_back_as_they_were(engine: Engine, make_dataset: MakeDataset) -> None:
    batches = [make_batch(0, 30), make_batch(30, 1), make_batch(40, 25)]
    whole = SampleBatch.concatenate(batches)
    record = make_dataset(batches)
    back = read_samples(engine, record.id)
    assert_same(back, whole)
    assert np.isnan(back.crlb_m).any()
    assert back.snr_db.flags.writeable
    for split in Split:
        assert_same(read_samples(engine, record.id, split), whole.take(whole.split == split))
    assert record.sha256 == samples_digest([whole])
    assert (record.train_count, record.val_count, record.test_count) == tuple(np.bincount(whole.split, minlength=3))
    assert record.num_samples == 56
    assert (record.config, record.quality_metrics) == ({"seed": 1}, {"mean_snr_db": 1.5})


def test_more_samples_than_one_fetch(engine: Engine, make_dataset: MakeDataset) -> None:
    batches = [make_batch(0, ROWS_A_FETCH - 1, 3), make_batch(ROWS_A_FETCH - 1, 3, 3)]
    record = make_dataset(batches)
    assert_same(read_samples(engine, record.id), SampleBatch.concatenate(batches))
    assert verify_dataset(engine, record.id) == record


def test_datasets_do_not_mix(engine: Engine, make_dataset: MakeDataset) -> None:
    first, second = make_dataset([make_batch(0, 5)]), make_dataset([make_batch(0, 7, 3)])
    assert_same(read_samples(engine, first.id), make_batch(0, 5))
    assert_same(read_samples(engine, second.id), make_batch(0, 7, 3))
    assert [record.id for record in list_datasets(engine)] == [second.id, first.id]


def test_a_split_without_samples_is_empty(engine: Engine, make_dataset: MakeDataset) -> None:
    batch = make_batch(0, 20)
    record = make_dataset([batch.take(batch.split == Split.train)])
    empty = read_samples(engine, record.id, Split.test)
    assert len(empty) == 0
    assert empty.num_sites == 5


def test_columns_a_person_reads(engine: Engine, make_dataset: MakeDataset) -> None:
    record = make_dataset([make_batch(3, 2)])
    batch = make_batch(3, 2)
    columns = synthetic_training_samples.columns
    with engine.connect() as connection:
        first, second = connection.execute(select(*columns).order_by(columns.sample_index)).mappings()
    assert first["id"] == str(uuid.UUID(bytes=batch.sample_id[0].tobytes()))
    assert first["timestamp"].isoformat() == "2000-01-01T00:00:03+00:00"
    assert first["split"] == Split(batch.split[0]).name
    assert first["num_receivers"] == batch.num_receivers[0]
    assert first["dataset_id"] == record.id
    assert first["hdop"] is None
    assert second["hdop"] == batch.hdop[1]
    np.testing.assert_array_equal(first["toa_ns"], batch.toa_ns[0], strict=True)
    np.testing.assert_array_equal(second["signal_present"], batch.signal_present[1], strict=True)


@pytest.mark.parametrize("where", ["batches", "quality_metrics"])
def test_all_or_nothing(engine: Engine, where: str) -> None:
    def breaks_off() -> Iterator[SampleBatch]:
        yield make_batch(0, 10)
        raise RuntimeError("the simulator stopped")

    def cannot() -> dict:
        raise RuntimeError("no metrics")

    broken = described(**({"batches": breaks_off()} if where == "batches" else {"quality_metrics": cannot}))
    with pytest.raises(RuntimeError):
        write_dataset(engine, **broken)
    assert rows(engine) == (0, 0)
    assert find_dataset(engine, broken["dataset_id"]) is None
    record, reused = write_dataset(engine, **broken | {"batches": [make_batch(0, 10)], "quality_metrics": dict})
    assert (record.num_samples, reused) == (10, False)


def test_a_complete_dataset_is_reused_and_nothing_generated(engine: Engine, make_dataset: MakeDataset) -> None:
    def never() -> Iterator[SampleBatch]:
        pytest.fail("generated again")
        yield make_batch(0, 1)

    record = make_dataset()
    again, reused = write_dataset(engine, **described(dataset_id=record.id, batches=never()))
    assert reused
    assert again == record == find_dataset(engine, record.id)


def test_two_writers_of_one_dataset_make_one(engine: Engine) -> None:
    both_looked = threading.Barrier(2)
    generated = []

    def batches() -> Iterator[SampleBatch]:
        generated.append(1)
        yield make_batch(0, 10)
        yield make_batch(10, 10)

    arguments = described()

    def write(_: int) -> tuple[DatasetRecord, bool]:
        both_looked.wait()
        return write_dataset(engine, **arguments | {"batches": batches()})

    with ThreadPoolExecutor(2) as pool:
        (first, first_reused), (second, second_reused) = pool.map(write, range(2))
    assert first == second
    assert {first_reused, second_reused} == {True, False}
    assert len(generated) == 1
    assert rows(engine) == (1, 20)


def test_the_loser_of_a_race_waits_and_reuses(engine: Engine) -> None:
    """The other writer is in the middle of it when this one has looked and found nothing."""
    arguments = described()
    started, looked = threading.Event(), threading.Event()

    def slowly() -> Iterator[SampleBatch]:
        started.set()
        yield make_batch(0, 10)
        assert looked.wait(10)
        yield make_batch(10, 10)

    def goes_on_to_write(_connection: Connection, options: dict) -> None:
        if options.get("takes_write_lock"):
            looked.set()

    with ThreadPoolExecutor(2) as pool:
        winner = pool.submit(write_dataset, engine, **arguments | {"batches": slowly()})
        assert started.wait(10)
        event.listen(engine, "set_connection_execution_options", goes_on_to_write)
        loser = pool.submit(write_dataset, engine, **arguments)
        assert winner.result()[1] is False
        assert loser.result() == (winner.result()[0], True)


def test_a_taken_name_is_refused(engine: Engine, make_dataset: MakeDataset) -> None:
    record = make_dataset()
    with pytest.raises(StorageError, match=f"another dataset is named '{record.name}' already"):
        write_dataset(engine, **described(name=record.name))
    assert rows(engine) == (1, 20)


def with_value(column: str, value: float) -> SampleBatch:
    batch = make_batch(0, 4)
    changed = getattr(batch, column).copy()
    changed[2] = value
    return replace(batch, **{column: changed})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset_id": "first"}, "dataset_id must be a UUID of 36 characters, got something else"),
        ({"config": {"seed": float("nan")}}, r"config\.seed must be a finite number"),
        ({"quality_metrics": lambda: {"x": float("inf")}}, r"quality_metrics\.x must be a finite number"),
        ({"batches": []}, "at least one sample"),
        ({"batches": [make_batch(0, 0)]}, "at least one sample"),
        ({"batches": [make_batch(0, 5), make_batch(4, 5)]}, "sample_index must rise from 0 on, 4 comes after"),
        ({"batches": [make_batch(0, 5), make_batch(5, 5, 4)]}, "must have 5 receivers, one has 4"),
        ({"batches": [with_value("tx_lat", np.nan)]}, "tx_lat must be finite, is nan in the sample of index 2"),
        ({"batches": [with_value("toa_ns", np.inf)]}, "toa_ns must be finite, is inf in the sample of index 2"),
        ({"batches": [with_value("gdop", np.inf)]}, "gdop must be finite, is inf in the sample of index 2"),
    ],
)
def test_bad_input_is_refused_whole(engine: Engine, changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_dataset(engine, **described(**changes))
    assert rows(engine) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        update(synthetic_training_samples).values(tx_lat=synthetic_training_samples.c.tx_lat + 1e-9),
        update(synthetic_training_samples).values(snr_db=np.zeros(5, "<f4")),
        update(synthetic_training_samples).values(hdop=None),
        update(synthetic_training_samples).values(id=str(uuid.UUID(int=7))),
        delete(synthetic_training_samples),
    ],
)
def test_a_changed_row_is_found_out(engine: Engine, make_dataset: MakeDataset, change) -> None:
    record = make_dataset()
    assert verify_dataset(engine, record.id) == record
    with writing(engine) as connection:
        assert connection.execute(change.where(synthetic_training_samples.c.sample_index == 4)).rowcount == 1
    with pytest.raises(StorageError, match=f"{record.id} .* was changed after it was written"):
        verify_dataset(engine, record.id)


def test_a_damaged_row_is_named(engine: Engine, make_dataset: MakeDataset) -> None:
    record = make_dataset()
    with writing(engine) as connection:
        connection.execute(
            update(synthetic_training_samples)
            .where(synthetic_training_samples.c.sample_index == 4)
            .values(toa_ns=np.zeros(3))
        )
    with pytest.raises(StorageError, match=f"dataset {record.id} holds damaged samples"):
        read_samples(engine, record.id)


def test_unknown_datasets(engine: Engine) -> None:
    unknown = str(uuid.uuid4())
    assert find_dataset(engine, unknown) is None
    for function in (read_samples, verify_dataset):
        with pytest.raises(StorageError, match=f"there is no dataset {unknown}"):
            function(engine, unknown)


def test_samples_go_with_their_dataset(engine: Engine, make_dataset: MakeDataset) -> None:
    record = make_dataset()
    make_dataset([make_batch(0, 3)])
    with writing(engine) as connection:
        connection.execute(delete(synthetic_datasets).where(synthetic_datasets.c.id == record.id))
    assert rows(engine) == (1, 3)


def test_datasets_without_a_job_are_untrained(
    engine: Engine, make_dataset: MakeDataset, make_job: Callable[[], JobRecord]
) -> None:
    first = make_dataset()
    make_job()  # on a dataset of its own
    second = make_dataset()
    assert list_untrained_datasets(engine) == [first, second]
