"""Synthetic datasets. They are written completely or not at all, and read back as the same samples."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from triangulation_pipeline.measurements import RECEIVER_DTYPES
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.samples import DIGEST_COLUMNS, SAMPLE_DTYPES, Samples, Split, samples_digest
from triangulation_pipeline.storage.bulk import insert_samples, select_samples
from triangulation_pipeline.storage.columns import checked_json, now
from triangulation_pipeline.storage.engine import reading, writing
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.postgresql import queue_for_chunks
from triangulation_pipeline.storage.tables import (
    NUMBER_DTYPES,
    OPTIONAL_SAMPLE_COLUMNS,
    synthetic_datasets,
    training_jobs,
)
from triangulation_pipeline.validation import shown, uuid_text


@dataclass(frozen=True)
class DatasetRecord:
    """A row of ``synthetic_datasets``; ``sha256`` covers ``digest_columns`` of the samples in index order."""

    id: str
    name: str
    num_samples: int
    train_count: int
    val_count: int
    test_count: int
    config: dict[str, Any]
    quality_metrics: dict[str, Any]
    network_name: str
    network_digest: str
    sha256: str
    created_at: datetime
    digest_columns: list[str]

    @cached_property
    def spec(self) -> DatasetSpec:
        """What was simulated. Raises StorageError if this version cannot read the stored description."""
        try:
            return DatasetSpec.of_description(self.config)
        except ValueError as error:
            raise StorageError(
                f"the description of dataset {self.id} ({shown(self.name)}) cannot be read: {error}"
            ) from None


def find_dataset(engine: Engine, dataset_id: str) -> DatasetRecord | None:
    """The dataset with that id, or None; it is always complete. Raises ValueError if the id is not a UUID."""
    with reading(engine) as connection:
        return _find(connection, uuid_text("dataset_id", dataset_id))


def get_dataset(engine: Engine, dataset_id: str) -> DatasetRecord:
    """The dataset with that id. Raises StorageError if there is none."""
    with reading(engine) as connection:
        return _get(connection, uuid_text("dataset_id", dataset_id))


def list_datasets(engine: Engine) -> list[DatasetRecord]:
    """All datasets, the newest first."""
    statement = select(synthetic_datasets).order_by(synthetic_datasets.c.created_at.desc(), synthetic_datasets.c.id)
    with reading(engine) as connection:
        return [DatasetRecord(**row) for row in connection.execute(statement).mappings()]


def list_untrained_datasets(engine: Engine) -> list[DatasetRecord]:
    """The datasets that no training job was started on, the oldest first."""
    trained = select(training_jobs.c.id).where(training_jobs.c.synthetic_dataset_id == synthetic_datasets.c.id)
    statement = (
        select(synthetic_datasets)
        .where(~trained.exists())
        .order_by(synthetic_datasets.c.created_at, synthetic_datasets.c.id)
    )
    with reading(engine) as connection:
        return [DatasetRecord(**row) for row in connection.execute(statement).mappings()]


def write_dataset(
    engine: Engine,
    spec: DatasetSpec,
    name: str,
    batches: Iterable[Samples],
    quality_metrics: Callable[[], Mapping[str, Any]],
) -> tuple[DatasetRecord, bool]:
    """Stores a dataset in one transaction, batch by batch; returns its record and whether it was there already.

    If there is a dataset with the spec's id, it is complete: it is returned, and ``batches`` is not touched. If another
    process is writing it now, the same happens after waiting for it. ``batches`` come in index order;
    ``quality_metrics`` is called once, after the last. An exception in any of them leaves nothing behind.

    Raises ValueError for values that no column can hold (NaN outside hdop, gdop and crlb_m; any infinity; a time
    that is not a whole microsecond; an altitude that is not the scenario's), for indices and times that do not rise,
    and for a dataset without samples; StorageError if another dataset has that name.
    """
    dataset_id = spec.dataset_id
    row = {
        "id": dataset_id,
        "name": name,
        "config": checked_json("config", spec.description()),
        "network_name": spec.network_name,
        "network_digest": spec.network_digest,
        "digest_columns": list(DIGEST_COLUMNS),
        "created_at": now(),
    }
    if (record := find_dataset(engine, dataset_id)) is not None:
        return record, True
    # The row comes first: the samples refer to it, and it makes a second writer wait. Nobody sees it unfinished.
    unfinished = dict.fromkeys(("num_samples", "train_count", "val_count", "test_count"), 0)
    with writing(engine) as connection:
        queue_for_chunks(connection, synthetic_datasets.name)
        try:
            with connection.begin_nested():
                connection.execute(
                    insert(synthetic_datasets).values(**row, **unfinished, quality_metrics={}, sha256="")
                )
        except IntegrityError:
            if (record := _find(connection, dataset_id)) is not None:
                return record, True
            raise StorageError(f"another dataset is named {shown(name)} already; choose another name") from None
        counts = np.zeros(len(Split), np.int64)
        sha256 = samples_digest(_insert_all(connection, spec, batches, counts))
        if not counts.any():
            raise ValueError(f"dataset {shown(name)} must hold at least one sample")
        connection.execute(
            update(synthetic_datasets)
            .where(synthetic_datasets.c.id == dataset_id)
            .values(
                num_samples=int(counts.sum()),
                train_count=int(counts[Split.train]),
                val_count=int(counts[Split.val]),
                test_count=int(counts[Split.test]),
                quality_metrics=checked_json("quality_metrics", quality_metrics()),
                sha256=sha256,
            )
        )
        return _get(connection, dataset_id), False


def read_samples(engine: Engine, dataset_id: str, split: Split | None = None) -> Samples:
    """All samples of a dataset, or of one split, in index order; no rows if the split has none.

    The stored samples are not verified; ``verify_dataset`` does that. Raises StorageError if there is no such dataset.
    """
    dataset_id = uuid_text("dataset_id", dataset_id)
    with reading(engine) as connection:
        record = _get(connection, dataset_id)
        batches = list(_stored(connection, record, split))
        if not batches:  # the first batch of all knows how many receivers there are
            first = next(_stored(connection, record), None)
            if first is None:
                raise StorageError(f"dataset {dataset_id} holds no samples any more")
            batches = [first.take(slice(0, 0))]
    return Samples.concatenate(batches)


def verify_dataset(engine: Engine, dataset_id: str) -> DatasetRecord:
    """The record of a dataset whose stored samples are those that were written.

    Raises StorageError if there is no such dataset, or if the digest of its samples differs from the recorded one.
    """
    dataset_id = uuid_text("dataset_id", dataset_id)
    with reading(engine) as connection:
        record = _get(connection, dataset_id)
        sha256 = samples_digest(_stored(connection, record), record.digest_columns)
    if sha256 != record.sha256:
        raise StorageError(
            f"dataset {dataset_id} ({shown(record.name)}) was changed after it was written: its samples have the "
            f"digest {sha256}, its record says {record.sha256}"
        )
    return record


def _stored(connection: Connection, record: DatasetRecord, split: Split | None = None) -> Iterator[Samples]:
    altitude_m = record.spec.scenario.transmitter_altitude_m
    return select_samples(connection, record.id, altitude_m, record.digest_columns, split)


def _find(connection: Connection, dataset_id: str) -> DatasetRecord | None:
    statement = select(synthetic_datasets).where(synthetic_datasets.c.id == dataset_id)
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else DatasetRecord(**row)


def _get(connection: Connection, dataset_id: str) -> DatasetRecord:
    if (record := _find(connection, dataset_id)) is None:
        raise StorageError(f"there is no dataset {dataset_id}")
    return record


def _insert_all(
    connection: Connection, spec: DatasetSpec, batches: Iterable[Samples], counts: np.ndarray
) -> Iterator[Samples]:
    """Checks and stores each batch, counts it by split, and passes it on."""
    before: Samples | None = None
    for batch in batches:
        if not len(batch):
            continue
        _check(batch, before, spec.scenario.transmitter_altitude_m)
        batch = _as_read_back(batch)
        insert_samples(connection, spec.dataset_id, batch)
        counts += np.bincount(batch.split, minlength=len(Split))
        before = batch.take(slice(-1, None))
        yield batch


def _check(batch: Samples, before: Samples | None, altitude_m: float) -> None:
    """Raises ValueError if a batch cannot follow the sample before it, or holds what cannot be stored."""
    if before is not None and batch.num_sites != before.num_sites:
        raise ValueError(f"all batches of a dataset must have {before.num_sites} receivers, one has {batch.num_sites}")
    last_index, last_ns = (-1, None) if before is None else (int(before.sample_index[0]), before.time_ns[0])
    falls = np.diff(batch.sample_index, prepend=last_index) <= 0
    if falls.any():
        raise ValueError(
            f"sample_index must rise from 0 on, {batch.sample_index[falls][0]} comes after a sample at or above it"
        )
    falls = np.diff(batch.time_ns, prepend=batch.time_ns[0] - 1 if last_ns is None else last_ns) <= 0
    if falls.any():
        raise ValueError(f"time_ns must rise, {batch.time_ns[falls][0]} comes after a sample at or after it")
    if (odd := batch.time_ns % 1000 != 0).any():
        raise ValueError(f"time_ns must be whole microseconds, got {batch.time_ns[odd][0]}")
    if (odd := batch.tx_altitude_m != altitude_m).any():
        raise ValueError(f"tx_altitude_m must be the scenario's, {altitude_m:g}, got {batch.tx_altitude_m[odd][0]:g}")
    for name, dtype in (NUMBER_DTYPES | RECEIVER_DTYPES).items():
        column = getattr(batch, name)
        if np.dtype(dtype).kind != "f":
            continue
        bad = np.isinf(column) if name in OPTIONAL_SAMPLE_COLUMNS else ~np.isfinite(column)
        if bad.any():
            index = batch.sample_index[np.argwhere(bad)[0, 0]]
            raise ValueError(f"{name} must be finite, is {column[bad][0]} in the sample of index {index}")


def _as_read_back(batch: Samples) -> Samples:
    """The batch as every database returns it, of which the digest is taken: SQLite does not keep the sign of a zero,
    and null becomes one kind of NaN."""
    floats = {name: dtype for name, dtype in SAMPLE_DTYPES.items() if np.dtype(dtype).kind == "f"}
    columns = {name: getattr(batch, name) for name in floats}
    return replace(
        batch,
        **{
            name: np.where(np.isnan(column), np.nan, column + 0.0).astype(floats[name])
            for name, column in columns.items()
        },
    )
