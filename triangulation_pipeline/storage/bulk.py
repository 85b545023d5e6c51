"""Samples in and out of the database, whole columns at a time: no Python object and no statement a sample."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert, select

from triangulation_pipeline.samples import RECEIVER_DTYPES, SAMPLE_DTYPES, SampleBatch, Split
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.tables import OPTIONAL_SAMPLE_COLUMNS, synthetic_training_samples

FIRST_TIMESTAMP = np.datetime64("2000-01-01T00:00:00", "us")
ROWS_A_FETCH = 8192

_SPLIT_NAMES = np.array([split.name for split in Split])
_DASHES = (8, 13, 18, 23)
_HEX_PLACES = np.setdiff1d(np.arange(36), _DASHES)


def insert_samples(connection: Connection, dataset_id: str, batch: SampleBatch) -> None:
    """Adds a batch, which must hold at least one sample, to a dataset.

    Goes to the driver directly, in SQLite's representation of each column type (the tables' types would convert value
    by value).
    """
    values: dict[str, Any] = {
        "dataset_id": [dataset_id] * len(batch),
        "timestamp": _timestamps(batch.sample_index),
        "id": _uuid_texts(batch.sample_id),
        "num_receivers": batch.num_receivers.tolist(),
        "split": _SPLIT_NAMES[batch.split].tolist(),
    }
    values |= {name: getattr(batch, name).tolist() for name in SAMPLE_DTYPES}
    for name in OPTIONAL_SAMPLE_COLUMNS:
        column = getattr(batch, name).astype(object)
        column[np.isnan(getattr(batch, name))] = None
        values[name] = column.tolist()
    values |= {name: _row_bytes(getattr(batch, name)) for name in RECEIVER_DTYPES}
    statement = str(insert(synthetic_training_samples).compile(dialect=connection.dialect))
    in_order = (values[column.name] for column in synthetic_training_samples.columns)
    connection.exec_driver_sql(statement, list(zip(*in_order, strict=True)))


def select_samples(connection: Connection, dataset_id: str, split: Split | None = None) -> Iterator[SampleBatch]:
    """Batches of the dataset's samples (or of one split's) in index order, read-only arrays; none for no rows.

    Raises StorageError where the stored values of a batch cannot be samples.
    """
    columns = synthetic_training_samples.columns
    names = ["id", *SAMPLE_DTYPES, *RECEIVER_DTYPES]
    statement = select(*(columns[name] for name in names)).where(columns.dataset_id == dataset_id)
    if split is not None:
        statement = statement.where(columns.split == split.name)
    cursor = connection.execute(statement.order_by(columns.timestamp)).cursor
    assert cursor is not None
    while rows := cursor.fetchmany(ROWS_A_FETCH):
        stored = dict(zip(names, zip(*rows, strict=True), strict=True))
        n = len(rows)
        try:
            batch = SampleBatch(
                sample_id=np.frombuffer(bytes.fromhex("".join(stored["id"]).replace("-", "")), np.uint8).reshape(n, 16),
                **{name: np.array(stored[name], dtype) for name, dtype in SAMPLE_DTYPES.items()},
                **{
                    name: np.frombuffer(b"".join(stored[name]), dtype).reshape(n, -1)
                    for name, dtype in RECEIVER_DTYPES.items()
                },
            )
        except (ValueError, TypeError) as error:
            raise StorageError(f"dataset {dataset_id} holds damaged samples: {error}") from None
        yield batch


def _timestamps(sample_index: NDArray[np.int64]) -> list[str]:
    """One second a sample, as the UtcDateTime column writes it."""
    moments = FIRST_TIMESTAMP + sample_index.astype("timedelta64[s]")
    return np.datetime_as_string(moments, unit="us", timezone="UTC").tolist()


def _uuid_texts(sample_id: NDArray[np.uint8]) -> list[str]:
    texts = np.full((len(sample_id), 36), ord("-"), np.uint8)
    digits = sample_id.tobytes().hex().encode()
    texts[:, _HEX_PLACES] = np.frombuffer(digits, np.uint8).reshape(-1, 32)
    joined = texts.tobytes().decode()
    return [joined[start : start + 36] for start in range(0, len(joined), 36)]


def _row_bytes(column: NDArray[Any]) -> list[bytes]:
    """Each row of (n, r) as bytes, by viewing a row as one void element."""
    rows = np.ascontiguousarray(column)
    return rows.view(f"V{rows.itemsize * rows.shape[1]}")[:, 0].tolist()
