import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import time_machine
from sqlalchemy import Connection, Engine, delete, event, func, select, update

from triangulation_pipeline.jobs.states import JobRecord, fail_job
from triangulation_pipeline.measurements import RECEIVER_DTYPES
from triangulation_pipeline.network import random_network
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import DIGEST_COLUMNS, Samples, Split, samples_digest
from triangulation_pipeline.storage.bulk import ROWS_A_FETCH
from triangulation_pipeline.storage.datasets import (
    DatasetRecord,
    find_dataset,
    get_dataset,
    list_datasets,
    list_untrained_datasets,
    read_samples,
    verify_dataset,
    write_dataset,
)
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.tables import NUMBER_DTYPES, synthetic_datasets, synthetic_training_samples
from triangulation_pipeline_tests.storage.conftest import a_spec, make_batch

MakeDataset = Callable[..., DatasetRecord]
EARLIER = datetime(2026, 11, 1, 12, tzinfo=UTC)


def assert_same(first: Samples, second: Samples) -> None:
    for field in fields(Samples):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), strict=True)


def described(**changes) -> dict:
    """Arguments of ``write_dataset``."""
    spec = a_spec()
    return {
        "spec": spec,
        "name": f"dataset {spec.dataset_id}",
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
    whole = Samples.concatenate(batches)
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
    assert record.quality_metrics == {"mean_snr_db": 1.5}


def test_a_dataset_over_random_layouts_comes_back_with_its_networks(engine: Engine) -> None:
    spec = DatasetSpec(None, Scenario(), 600, uuid.uuid4().int >> 66, Layouts.random)
    whole = simulate(spec)
    record, _ = write_dataset(engine, spec, f"random {spec.seed}", [whole], dict)
    assert verify_dataset(engine, record.id) == record
    back = read_samples(engine, record.id, Split.test)
    assert_same(back, whole.take(whole.split == Split.test))
    assert record.spec == spec
    assert (record.network_name, record.network_digest) == (spec.network_name, spec.network_digest)
    for layout, rows in record.spec.by_layout(back):
        seen = back.take(rows).of_sites(len(layout.network.sites))
        assert (
            layout.network.service_area(layout.scenario.area_margin_m + 1)
            .contains(seen.tx_en_m(layout.network.frame))
            .all()
        )


def test_a_dataset_of_the_first_generator_stays_readable(engine: Engine, make_dataset: MakeDataset) -> None:
    """Its description says nothing of layouts."""
    record = make_dataset()
    old = {name: value for name, value in record.config.items() if name != "layouts"} | {"generator_version": 1}
    with engine.begin() as connection:
        connection.execute(update(synthetic_datasets).where(synthetic_datasets.c.id == record.id).values(config=old))
    found = verify_dataset(engine, record.id)
    assert found.spec == record.spec
    assert found.spec.layouts is Layouts.own
    assert len(read_samples(engine, record.id)) == record.num_samples


def extreme(dtype: str) -> list[float]:
    """Numbers at the ends of what a type holds."""
    if np.dtype(dtype).kind == "i":
        whole = np.iinfo(dtype)
        return [whole.min, whole.max, 0, -1]
    parts = np.finfo(dtype)
    return [parts.min, parts.max, parts.tiny, -parts.smallest_subnormal, 0.1, -0.0, 0.0]


def test_the_ends_of_each_type_come_back_to_the_bit(engine: Engine, make_dataset: MakeDataset) -> None:
    """But for the sign of a zero that is a number of its own, which SQLite does not keep: it is none in the digest."""
    batch = make_batch(0, 8)
    changed = {}
    for name, dtype in (NUMBER_DTYPES | RECEIVER_DTYPES).items():
        if name == "sample_index" or dtype == "|b1":
            continue
        column = getattr(batch, name).copy()
        values = np.array(extreme(dtype), dtype)
        column[: len(values)] = values if column.ndim == 1 else values[:, None]
        changed[name] = column
    odd = np.array([0x7FC0_0001], "<u4").view("<f4")  # a NaN as no computation of ours makes it
    changed["hdop"][7] = changed["crlb_m"][7] = odd[0]
    batch = replace(batch, **changed)
    record = make_dataset([batch])
    assert verify_dataset(engine, record.id) == record
    back = read_samples(engine, record.id)
    assert_same(back, batch)
    for name in RECEIVER_DTYPES:
        assert getattr(back, name).tobytes() == getattr(batch, name).tobytes()
    unsigned = {name: getattr(batch, name) + 0.0 for name in ("tx_lat", "tx_lon", "tx_power_dbm", "gdop")}
    for name, column in unsigned.items():
        assert getattr(back, name).tobytes() == column.tobytes()


def test_a_dataset_has_what_was_said_and_counted_and_nothing_else(engine: Engine) -> None:
    whole, asked, metrics = make_batch(0, 50), [], {"mean_snr_db": 1.5}

    def batches() -> Iterator[Samples]:
        for part in (slice(0, 0), slice(0, 25), slice(0, 0), slice(25, 50)):
            asked.append("batch")
            yield whole.take(part)

    def quality_metrics() -> dict[str, float]:
        asked.append("metrics")
        return metrics

    network = random_network(4, 1)
    spec = a_spec(seed=3, network=network)
    dataset_id = spec.dataset_id
    with time_machine.travel(EARLIER, tick=False):
        record, reused = write_dataset(
            engine,
            spec,
            name="mine",
            batches=batches(),
            quality_metrics=quality_metrics,
        )
    assert not reused
    assert record == DatasetRecord(
        id=dataset_id,
        name="mine",
        num_samples=50,
        train_count=int((whole.split == Split.train).sum()),
        val_count=int((whole.split == Split.val).sum()),
        test_count=int((whole.split == Split.test).sum()),
        config=json.loads(json.dumps(spec.description())),
        quality_metrics=metrics,
        network_name=network.name,
        network_digest=network.digest,
        sha256=samples_digest([whole]),
        created_at=EARLIER,
        digest_columns=list(DIGEST_COLUMNS),
    )
    assert record.spec == spec
    assert len({record.num_samples, record.train_count, record.val_count, record.test_count}) == 4
    assert asked == ["batch"] * 4 + ["metrics"]  # once, when all is there
    for find in (find_dataset, get_dataset):
        assert find(engine, dataset_id.upper()) == record
        with pytest.raises(ValueError, match="dataset_id must be a UUID of 36 characters, got '1'"):
            find(engine, "1")


def test_rows_are_read_in_the_order_of_their_index_whatever_the_order_of_the_rows(
    engine: Engine, make_dataset: MakeDataset
) -> None:
    """As after an update, which moves a row on PostgreSQL."""
    record = make_dataset()
    with writing(engine) as connection:
        for index in (3, 0, 7):
            its_own = synthetic_training_samples.c.sample_index == index
            connection.execute(update(synthetic_training_samples).where(its_own).values(num_detections=1))
    assert verify_dataset(engine, record.id) == record
    assert_same(read_samples(engine, record.id), make_batch(0, 20))


def test_more_samples_than_one_fetch(engine: Engine, make_dataset: MakeDataset) -> None:
    batches = [make_batch(0, ROWS_A_FETCH - 1, 3), make_batch(ROWS_A_FETCH - 1, 3, 3)]
    record = make_dataset(batches)
    assert_same(read_samples(engine, record.id), Samples.concatenate(batches))
    assert verify_dataset(engine, record.id) == record


def test_datasets_do_not_mix(engine: Engine, make_dataset: MakeDataset) -> None:
    first, second = make_dataset([make_batch(0, 5)]), make_dataset([make_batch(0, 7, 3)])
    assert_same(read_samples(engine, first.id), make_batch(0, 5))
    assert_same(read_samples(engine, second.id), make_batch(0, 7, 3))
    assert list_datasets(engine) == [second, first]


def made_at(engine: Engine, record: DatasetRecord, day: int) -> DatasetRecord:
    """The dataset, as made on that day."""
    created_at = EARLIER + timedelta(days=day)
    with writing(engine) as connection:
        its_own = synthetic_datasets.c.id == record.id
        connection.execute(update(synthetic_datasets).where(its_own).values(created_at=created_at))
    return replace(record, created_at=created_at)


def test_datasets_of_one_moment_are_listed_by_their_id(engine: Engine, make_dataset: MakeDataset) -> None:
    first, second, *same = (made_at(engine, make_dataset([make_batch(0, 1)]), day) for day in (3, 1, 2, 2, 2))
    same.sort(key=lambda record: record.id)
    assert list_datasets(engine) == [first, *same, second]
    assert list_untrained_datasets(engine) == [second, *same, first]


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
        third_second = columns.timestamp == datetime(2000, 1, 1, 0, 0, 3, tzinfo=UTC)
        assert connection.scalar(select(columns.sample_index).where(third_second)) == 3
    assert first["id"] == str(uuid.UUID(bytes=batch.sample_id[0].tobytes()))
    assert first["timestamp"].isoformat() == "2000-01-01T00:00:03+00:00"
    assert first["split"] == Split(batch.split[0]).name
    assert first["num_detections"] == batch.num_detections[0]
    assert first["dataset_id"] == record.id
    assert first["hdop"] is None
    assert second["hdop"] == batch.hdop[1]
    np.testing.assert_array_equal(first["toa_ns"], batch.toa_ns[0], strict=True)
    np.testing.assert_array_equal(second["signal_present"], batch.signal_present[1], strict=True)


@pytest.mark.parametrize("where", ["batches", "quality_metrics"])
def test_all_or_nothing(engine: Engine, where: str) -> None:
    def breaks_off() -> Iterator[Samples]:
        yield make_batch(0, 10)
        raise RuntimeError("the simulator stopped")

    def cannot() -> dict:
        raise RuntimeError("no metrics")

    broken = described(**({"batches": breaks_off()} if where == "batches" else {"quality_metrics": cannot}))
    with pytest.raises(RuntimeError):
        write_dataset(engine, **broken)
    assert rows(engine) == (0, 0)
    assert find_dataset(engine, broken["spec"].dataset_id) is None
    record, reused = write_dataset(engine, **broken | {"batches": [make_batch(0, 10)], "quality_metrics": dict})
    assert (record.num_samples, reused) == (10, False)


def test_a_complete_dataset_is_reused_and_nothing_generated(engine: Engine, make_dataset: MakeDataset) -> None:
    def never() -> Iterator[Samples]:
        pytest.fail("generated again")
        yield make_batch(0, 1)

    record = make_dataset()
    again, reused = write_dataset(engine, **described(spec=record.spec, batches=never()))
    assert reused
    assert again == record == find_dataset(engine, record.id)


def test_a_complete_dataset_is_reused_while_others_write(engine: Engine, make_dataset: MakeDataset) -> None:
    record = make_dataset()
    with ThreadPoolExecutor(1) as pool, writing(engine):
        found = pool.submit(write_dataset, engine, **described(spec=record.spec))
        assert found.result(10) == (record, True)


def test_two_writers_of_one_dataset_make_one(engine: Engine) -> None:
    both_looked = threading.Barrier(2)
    generated = []

    def batches() -> Iterator[Samples]:
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

    def slowly() -> Iterator[Samples]:
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


def later(batch: Samples, ns: int) -> Samples:
    return replace(batch, time_ns=batch.time_ns + ns)


def with_value(column: str, value: float) -> Samples:
    batch = make_batch(0, 4)
    changed = getattr(batch, column).copy()
    changed[2] = value
    return replace(batch, **{column: changed})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quality_metrics": lambda: {"x": float("inf")}}, r"quality_metrics\.x must be a finite number"),
        ({"batches": []}, "at least one sample"),
        ({"batches": [make_batch(0, 0)]}, "at least one sample"),
        ({"batches": [make_batch(0, 5), make_batch(4, 5)]}, "sample_index must rise from 0 on, 4 comes after"),
        ({"batches": [make_batch(0, 5), make_batch(5, 5, 4)]}, "must have 5 receivers, one has 4"),
        ({"spec": a_spec(tx_height_m=5)}, "tx_altitude_m must be the scenario's, 5, got 2"),
        ({"batches": [later(make_batch(0, 5), ns=1)]}, "time_ns must be whole microseconds, got 946684800000000001"),
        (
            {"batches": [make_batch(0, 5), later(make_batch(5, 5), ns=-(10**9))]},
            "time_ns must rise, 946684804000000000 comes after a sample at or after it",
        ),
        ({"batches": [replace(make_batch(0, 2), time_ns=np.zeros(2, np.int64))]}, "time_ns must rise, 0 comes after"),
    ],
)
def test_bad_input_is_refused_whole(engine: Engine, changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_dataset(engine, **described(**changes))
    assert rows(engine) == (0, 0)


FLOATS = [name for name, dtype in (NUMBER_DTYPES | RECEIVER_DTYPES).items() if np.dtype(dtype).kind == "f"]


def test_indices_rise_from_0_on_within_batches_and_over_them(engine: Engine) -> None:
    whole = make_batch(0, 5)
    for batches, index in (
        ([replace(whole, sample_index=np.arange(-1, 4))], -1),
        ([whole.take(np.array([0, 2, 1]))], 1),
        ([whole.take(np.array([0, 1, 1]))], 1),
        ([whole, make_batch(3, 5)], 3),
    ):
        with pytest.raises(ValueError, match=f"sample_index must rise from 0 on, {index} comes after a sample at or"):
            write_dataset(engine, **described(batches=batches))
    assert rows(engine) == (0, 0)


def test_no_column_takes_what_is_no_number(engine: Engine) -> None:
    """But NaN for what is not known of a sample."""
    assert len(FLOATS) == 11
    for number, name in enumerate(FLOATS):
        infinity = np.inf if number % 2 else -np.inf
        for value in (infinity,) if name in {"hdop", "gdop", "crlb_m"} else (infinity, np.nan):
            with pytest.raises(ValueError, match=f"{name} must be finite, is {value} in the sample of index 2"):
                write_dataset(engine, **described(batches=[with_value(name, value)]))
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


def test_a_dataset_of_before_a_column_was_added_is_read_and_verified(engine: Engine, make_dataset: MakeDataset) -> None:
    """Its rows have nothing in the new column, which a migration adds with an empty default."""
    record = make_dataset()
    older = [name for name in DIGEST_COLUMNS if name not in {"snr_db", "frequency_hz"}]
    sha256 = samples_digest([make_batch(0, 20)], older)
    with writing(engine) as connection:
        its_own = synthetic_datasets.c.id == record.id
        connection.execute(update(synthetic_datasets).where(its_own).values(digest_columns=older, sha256=sha256))
        connection.execute(update(synthetic_training_samples).values(snr_db=np.zeros(0), frequency_hz=-1))
    assert verify_dataset(engine, record.id).digest_columns == older
    written = make_batch(0, 20)
    assert_same(
        read_samples(engine, record.id),
        replace(written, snr_db=np.zeros_like(written.snr_db), frequency_hz=np.zeros_like(written.frequency_hz)),
    )


def test_a_description_that_cannot_be_read_is_named(engine: Engine, make_dataset: MakeDataset) -> None:
    record = make_dataset()
    for config, says in (({}, "it has no network"), (record.config | {"scenario": {"burst": 1}}, "burst")):
        with writing(engine) as connection:
            its_own = synthetic_datasets.c.id == record.id
            connection.execute(update(synthetic_datasets).where(its_own).values(config=config))
        found = get_dataset(engine, record.id)
        with pytest.raises(StorageError, match=f"description of dataset {record.id} .* cannot be read: .*{says}"):
            _ = found.spec


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
    for function in (get_dataset, read_samples, verify_dataset):
        with pytest.raises(StorageError, match=f"there is no dataset {unknown}"):
            function(engine, unknown)


def test_a_dataset_that_lost_all_its_samples_says_so(engine: Engine, make_dataset: MakeDataset) -> None:
    record = make_dataset()
    with writing(engine) as connection:
        connection.execute(delete(synthetic_training_samples))
    for split in (None, Split.train):
        with pytest.raises(StorageError, match=f"^dataset {record.id} holds no samples any more$"):
            read_samples(engine, record.id, split)


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
    job = make_job()  # on a dataset of its own
    second = make_dataset()
    assert list_untrained_datasets(engine) == [first, second]
    fail_job(engine, job, "broke")  # it was tried
    assert list_untrained_datasets(engine) == [first, second]
