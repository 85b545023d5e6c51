"""Samples in and out of the database, by whole columns: without a Python object or a statement per sample."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert, select

from triangulation_pipeline.measurements import RECEIVER_DTYPES
from triangulation_pipeline.samples import Samples, Split
from triangulation_pipeline.storage.errors import StorageError, quoted
from triangulation_pipeline.storage.pgcopy import copy_in, copy_out
from triangulation_pipeline.storage.tables import NUMBER_DTYPES, OPTIONAL_SAMPLE_COLUMNS, synthetic_training_samples

POSTGRESQL_EPOCH_NS = 946_684_800 * 10**9  # the beginning of 2000
ROWS_A_FETCH = 8192

_SPLIT_NAMES = np.array([split.name for split in Split])
_DASHES = (8, 13, 18, 23)
_HEX_PLACES = np.setdiff1d(np.arange(36), _DASHES)


def insert_samples(connection: Connection, dataset_id: str, batch: Samples) -> None:
    """Adds a batch of at least one sample to a dataset."""
    if connection.dialect.name == "sqlite":
        _insert_into_sqlite(connection, dataset_id, batch)
        return
    computed = {
        "dataset_id": np.full(len(batch), np.void(UUID(dataset_id).bytes)),
        "timestamp": (batch.time_ns - POSTGRESQL_EPOCH_NS) // 1000,
        "id": _row_voids(batch.sample_id),
        "num_detections": batch.num_detections,
        "split": _SPLIT_NAMES.astype("S5")[batch.split],
    }
    copy_in(connection, computed | {name: getattr(batch, name) for name in NUMBER_DTYPES | RECEIVER_DTYPES})


def select_samples(
    connection: Connection, dataset_id: str, altitude_m: float, columns: Collection[str], split: Split | None = None
) -> Iterator[Samples]:
    """Batches of the samples of a dataset (or of one split), in order of time; no batch if there are no rows.

    All transmitters get the same altitude. ``columns`` are those that the dataset was written with; a column that did
    not exist then holds zeros. Raises StorageError if the stored values of a batch cannot be samples.
    """
    dtypes = NUMBER_DTYPES | RECEIVER_DTYPES
    stored = {name: dtype for name, dtype in dtypes.items() if name in columns}
    blocks = _select_from_sqlite if connection.dialect.name == "sqlite" else _select_by_copy
    try:
        for block in blocks(connection, dataset_id, stored, None if split is None else split.name):
            ids = block.pop("id").view(np.uint8).reshape(-1, 16)
            receivers = block["signal_present"].shape[1]
            for name in dtypes.keys() - stored.keys():
                block[name] = np.zeros((len(ids), receivers) if name in RECEIVER_DTYPES else len(ids), dtypes[name])
            yield Samples(sample_id=ids, tx_altitude_m=np.full(len(ids), altitude_m), **block)
    except (ValueError, TypeError) as error:
        raise StorageError(f"dataset {dataset_id} holds damaged samples: {quoted(error)}") from None


def _insert_into_sqlite(connection: Connection, dataset_id: str, batch: Samples) -> None:
    """Passes the values to the driver in SQLite's representation: the types of the tables would convert them one by
    one.
    """
    values: dict[str, Any] = {
        "dataset_id": [dataset_id] * len(batch),
        "timestamp": np.datetime_as_string(batch.time_ns.view("datetime64[ns]"), unit="us", timezone="UTC").tolist(),
        "id": _uuid_texts(batch.sample_id),
        "num_detections": batch.num_detections.tolist(),
        "split": _SPLIT_NAMES[batch.split].tolist(),
    }
    values |= {name: getattr(batch, name).tolist() for name in NUMBER_DTYPES}
    for name in OPTIONAL_SAMPLE_COLUMNS:
        column = getattr(batch, name).astype(object)
        column[np.isnan(getattr(batch, name))] = None
        values[name] = column.tolist()
    values |= {name: _row_voids(getattr(batch, name)).tolist() for name in RECEIVER_DTYPES}
    statement = str(insert(synthetic_training_samples).compile(dialect=connection.dialect))
    in_order = (values[column.name] for column in synthetic_training_samples.columns)
    connection.exec_driver_sql(statement, list(zip(*in_order, strict=True)))


def _select_by_copy(
    connection: Connection, dataset_id: str, dtypes: Mapping[str, str], split: str | None
) -> Iterator[dict[str, Any]]:
    for block in copy_out(connection, dataset_id, dtypes, split):
        yield block | {"time_ns": block.pop("timestamp") * 1000 + POSTGRESQL_EPOCH_NS}


def _select_from_sqlite(
    connection: Connection, dataset_id: str, dtypes: Mapping[str, str], split: str | None
) -> Iterator[dict[str, Any]]:
    columns = synthetic_training_samples.columns
    names = ["id", "timestamp", *dtypes]
    statement = select(*(columns[name] for name in names)).where(columns.dataset_id == dataset_id)
    if split is not None:
        statement = statement.where(columns.split == split)
    cursor = connection.execute(statement.order_by(columns.timestamp)).cursor
    assert cursor is not None
    while rows := cursor.fetchmany(ROWS_A_FETCH):
        stored = dict(zip(names, zip(*rows, strict=True), strict=True))
        yield {
            "id": np.frombuffer(bytes.fromhex("".join(stored["id"]).replace("-", "")), "V16"),
            # Without the Z, which NumPy does not read: its times are UTC.
            "time_ns": np.array(stored["timestamp"], "U26").astype("datetime64[ns]").view(np.int64),
            **{
                name: np.frombuffer(b"".join(stored[name]), dtype).reshape(len(rows), -1)
                if name in RECEIVER_DTYPES
                else np.array(stored[name], dtype)
                for name, dtype in dtypes.items()
            },
        }


def _uuid_texts(sample_id: NDArray[np.uint8]) -> list[str]:
    texts = np.full((len(sample_id), 36), ord("-"), np.uint8)
    digits = sample_id.tobytes().hex().encode()
    texts[:, _HEX_PLACES] = np.frombuffer(digits, np.uint8).reshape(-1, 32)
    joined = texts.tobytes().decode()
    return [joined[start : start + 36] for start in range(0, len(joined), 36)]


def _row_voids(column: NDArray[Any]) -> NDArray[np.void]:
    """(n,) each row of (n, r) as one element with the bytes of the row."""
    rows = np.ascontiguousarray(column)
    return rows.view(f"V{rows.itemsize * rows.shape[1]}")[:, 0]
