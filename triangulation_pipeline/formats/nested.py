"""Rows that hold a list with an entry for each receiver, as network servers and OpenSky write them."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from triangulation_pipeline.formats.columns import ColumnMapping, without_column
from triangulation_pipeline.formats.sources import Piece, json_values, readable
from triangulation_pipeline.validation import printable

NO_LIST = "the receptions are no JSON list with an entry for each receiver"


def unnested(pieces: Iterable[Piece], mapping: ColumnMapping) -> Iterator[Piece]:
    """Rows of a file, one for each entry of the lists that a mapping file names.

    Parameters
    ----------
    pieces : iterable of Piece
        The rows as they stand in the file. The lists are JSON text, or lists in Parquet and in data frames.
    mapping : ColumnMapping
        Its ``receptions`` names the column of the lists; without it nothing changes.

    Yields
    ------
    Piece
        The other columns as they were, and a text column for each part of an entry that the mapping names, null where
        an entry lacks it. A row without a list is among the broken ones.

    Raises
    ------
    ValueError
        With one sentence, if the file does not have the column.
    """
    column = mapping.receptions
    if column is None:
        yield from pieces
        return
    paths = [str(source.column) for source in mapping.sources.values() if source.is_within(column)]
    for piece in pieces:
        if piece.columns and column not in piece.columns:
            raise without_column(piece.columns, column, "receptions")
        yield _unnested(piece, column, paths) if piece.columns else piece


def _unnested(piece: Piece, column: str, paths: Iterable[str]) -> Piece:
    cells = piece.columns[column]
    if pa.types.is_nested(cells.type):
        written = lists = cells.to_pylist()
    else:
        written = readable(column, cells).cast(pa.string()).to_pylist()
        lists = json_values([(text or "").encode() for text in written])
    is_list = np.array([isinstance(found, list) and len(found) > 0 for found in lists], bool)
    good = [found for found, usable in zip(lists, is_list, strict=True) if usable]
    entries = [entry for found in good for entry in found]
    row = np.repeat(np.flatnonzero(is_list), [len(found) for found in good])
    columns = {name: values.take(pa.array(row)) for name, values in piece.columns.items() if name != column}
    for path in paths:
        values = entries
        for key in path.removeprefix(f"{column}.").split("."):
            values = [_member(value, key) for value in values]
        columns[path] = pa.array([None if value is None else str(value) for value in values], pa.string())
    broken = [(int(piece.line[i]), printable(str(written[i])[:200]), NO_LIST) for i in np.flatnonzero(~is_list)]
    return Piece(columns, piece.line[row], piece.broken + broken)


def _member(value: Any, key: str) -> Any:
    """The entry of a list, or the value of a key; None if there is none."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    return None
