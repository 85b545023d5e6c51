"""Samples through PostgreSQL's binary COPY: one array of bytes per block of rows, without a Python loop over values.

The format (PostgreSQL's manual, COPY, "Binary Format") is big-endian. After a header, each row consists of its number
of fields, then for each field a length and that many bytes. A null has the length -1 and no bytes. An array consists of
its number of dimensions, a flag for nulls, the type of its elements, its size and its lowest index, then for each
element a length and its bytes.

For a given number of receivers every row has the same layout, so one structured dtype describes it. When rows are
written, a value of varying length (a null, the name of a split) has its full length in the dtype, and a mask cuts out
the bytes that a row does not have; so rows keep their order. When rows are read, the server turns nulls into NaN.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from sqlalchemy import Connection

from triangulation_pipeline.measurements import RECEIVER_DTYPES
from triangulation_pipeline.storage.tables import NUMBER_DTYPES, OPTIONAL_SAMPLE_COLUMNS, synthetic_training_samples

ROWS_A_BLOCK = 512  # a few hundred kilobytes, which fit into the cache of the processor

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_ELEMENT_OIDS = {"|b1": 16, "<f4": 700, "<f8": 701}  # bool, float4, float8 in pg_type
_COLUMNS_IN = {
    "dataset_id": "V16",
    "timestamp": "<i8",  # microseconds since 2000
    "id": "V16",
    **NUMBER_DTYPES,
    "num_detections": "<i4",
    "split": "S5",
    **RECEIVER_DTYPES,
}
_KEYS_OUT = {"id": "V16", "timestamp": "<i8"}
_TABLE = sql.Identifier(synthetic_training_samples.name)


def copy_in(connection: Connection, columns: Mapping[str, NDArray[Any]]) -> None:
    """Adds n rows to ``synthetic_training_samples``.

    ``columns`` has all of the table: ids as V16, ``timestamp`` as int64 microseconds since 2000-01-01, ``split`` as S5,
    all (n,), and the arrays (n, r). NaN in OPTIONAL_SAMPLE_COLUMNS is null.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        _TABLE, sql.SQL(", ").join(map(sql.Identifier, _COLUMNS_IN))
    )
    n, r = columns["signal_present"].shape
    template = _template(_COLUMNS_IN, r)
    with _cursor(connection) as cursor, cursor.copy(statement) as copy:
        copy.write(_HEADER)
        for start in range(0, n, ROWS_A_BLOCK):
            block = {name: column[start : start + ROWS_A_BLOCK] for name, column in columns.items()}
            copy.write(_encode(template, block).data)
        copy.write(_TRAILER)


def copy_out(
    connection: Connection, dataset_id: str, dtypes: Mapping[str, str], split: str | None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Blocks of a dataset's rows in order of time: ``id`` (n,) as V16, ``timestamp`` (n,) as int64 microseconds since
    2000-01-01, and the columns of ``dtypes``, some of NUMBER_DTYPES (n,) and RECEIVER_DTYPES (n, r).

    Raises ValueError if a row has another number of receivers than the first, or a null in an array.
    """
    columns = {**_KEYS_OUT, **dtypes}
    names = [
        sql.SQL("COALESCE({}, 'NaN')" if name in OPTIONAL_SAMPLE_COLUMNS else "{}").format(sql.Identifier(name))
        for name in columns
    ]
    which = sql.SQL("dataset_id = {}").format(sql.Literal(dataset_id))
    if split is not None:
        which += sql.SQL(" AND split = {}").format(sql.Literal(split))
    statement = sql.SQL("COPY (SELECT {} FROM {} WHERE {} ORDER BY timestamp) TO STDOUT (FORMAT BINARY)").format(
        sql.SQL(", ").join(names), _TABLE, which
    )
    with _cursor(connection) as cursor, cursor.copy(statement) as copy:
        try:
            yield from _decoded(columns, iter(copy))
        finally:  # The rest is read even if it is not wanted: psycopg would cancel, which can hang forever.
            for _ in copy:
                pass


def _decoded(columns: Mapping[str, str], messages: Iterator[Any]) -> Iterator[dict[str, NDArray[Any]]]:
    """Blocks of the rows that the server sends, in about one message per row: the protocol has no larger messages."""
    template = None
    held = bytes(next(messages))[len(_HEADER) :]
    while True:
        parts = list(islice(messages, ROWS_A_BLOCK))
        held = b"".join((held, *parts))
        is_last = len(parts) < ROWS_A_BLOCK
        if is_last:
            held = held.removesuffix(_TRAILER)
        if held:
            template = _template(columns, _receivers_of_first(columns, held)) if template is None else template
            n, rest = divmod(len(held), template.itemsize)
            if is_last and rest:
                raise ValueError("not all rows have equally many receivers")
            yield _decode(columns, template, np.frombuffer(held, template.dtype, n))
            held = held[len(held) - rest :]
        if is_last:
            return


def _template(columns: Mapping[str, str], r: int) -> NDArray[np.void]:
    """(1,) a row of ``columns`` as it is sent for r receivers, with all lengths and headers, and zeros as values."""
    parts: list[tuple[Any, ...]] = [("fields", ">i2")]
    for name, dtype in columns.items():
        wire = np.dtype(dtype).newbyteorder(">")
        parts.append((f"{name} length", ">i4"))
        if name in RECEIVER_DTYPES:
            parts.append((f"{name} header", ">i4", (5,)))
            parts.append((name, [("length", ">i4"), ("value", wire)], (r,)))
        else:
            parts.append((name, wire))
    row = np.zeros(1, parts)
    row["fields"] = len(columns)
    for name, dtype in columns.items():
        row[f"{name} length"] = row[name].nbytes
        if name in RECEIVER_DTYPES:
            row[f"{name} length"] += row[f"{name} header"].nbytes
            row[f"{name} header"] = (1, 0, _ELEMENT_OIDS[dtype], r, 1)
            row[name]["length"] = np.dtype(dtype).itemsize
    return row


def _encode(template: NDArray[np.void], columns: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    rows = np.repeat(template, len(columns["timestamp"]))
    is_sent = np.ones((len(rows), template.itemsize), np.bool_)
    for name, column in columns.items():
        (rows[name]["value"] if name in RECEIVER_DTYPES else rows[name])[...] = column
        if name in OPTIONAL_SAMPLE_COLUMNS:
            lengths = np.where(np.isnan(column), -1, column.itemsize)
        elif column.dtype.kind == "S":
            lengths = np.strings.str_len(column)
        else:
            continue
        rows[f"{name} length"] = lengths
        start = _offset(template, name)
        is_sent[:, start : start + column.itemsize] = np.arange(column.itemsize) < lengths[:, None]
    return rows.view(np.uint8).reshape(is_sent.shape)[is_sent]


def _decode(columns: Mapping[str, str], template: NDArray[np.void], rows: NDArray[np.void]) -> dict[str, NDArray[Any]]:
    if not _has_frame(columns, template, rows):
        raise ValueError("not all rows have equally many receivers and a value for each")
    return {
        name: (rows[name]["value"] if name in RECEIVER_DTYPES else rows[name]).astype(dtype)
        for name, dtype in columns.items()
    }


def _has_frame(columns: Iterable[str], template: NDArray[np.void], rows: NDArray[np.void]) -> bool:
    """Whether every row has the lengths and headers of the template: all its bytes that do not belong to a value."""
    values_set = template.copy()
    for name in columns:
        values = values_set[name]["value"] if name in RECEIVER_DTYPES else values_set[name]
        values[...] = np.frombuffer(b"\xff" * values.itemsize, values.dtype)
    is_frame = np.where(template.view(np.uint8) == values_set.view(np.uint8), 0xFF, 0).astype(np.uint8)
    # Eight rows are a whole number of 8-byte words, whatever the length of a row; words compare eight times as fast.
    even = len(rows) // 8 * 8
    for part, rows_a_line, kind in ((rows[:even], 8, np.dtype(np.uint64)), (rows[even:], 1, np.dtype(np.uint8))):
        expected, mask = (np.tile(line.view(np.uint8), rows_a_line).view(kind) for line in (template, is_frame))
        lines = part.view(np.uint8).view(kind).reshape(-1, len(expected))
        if ((lines ^ expected) & mask).any():
            return False
    return True


def _receivers_of_first(columns: Mapping[str, str], rows: bytes) -> int:
    """The number of receivers in the header of the first array of the first row; its place is the same in any row."""
    first = next(name for name in columns if name in RECEIVER_DTYPES)
    place = _offset(_template(columns, 0), f"{first} header")
    receivers = int.from_bytes(rows[place + 12 : place + 16], "big", signed=True)
    if not 0 < receivers < len(rows):
        raise ValueError("the first row has no receivers")
    return receivers


def _offset(template: NDArray[np.void], name: str) -> int:
    fields = template.dtype.fields
    assert fields is not None
    return fields[name][1]


@contextmanager
def _cursor(connection: Connection) -> Iterator[psycopg.Cursor]:
    """A cursor of the driver itself. A broken connection is marked as such, as SQLAlchemy does for its own cursors."""
    driver: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    try:
        with driver.cursor() as cursor:
            yield cursor
    except psycopg.OperationalError as error:
        if driver.closed:
            connection.invalidate(error)
        raise
