"""Rows that hold objects, and lists with an entry for each receiver, as network servers and OpenSky write them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from triangulation_pipeline.formats.columns import ColumnMapping, without_column
from triangulation_pipeline.formats.sources import Piece, json_values, readable
from triangulation_pipeline.validation import printable, shown

Values = Callable[[str], list[Any]]
"""The objects or lists of a column of a piece, by its name."""

NO_LIST = "the receptions are no JSON list with an entry for each receiver"
# What none of so many has, they do not have.
_ENTRIES = 20


def unnested(pieces: Iterable[Piece], mapping: ColumnMapping) -> Iterator[Piece]:
    """Rows of a file with the parts of objects that a mapping file names, and one for each entry of its lists.

    Parameters
    ----------
    pieces : iterable of Piece
        The rows as they stand in the file. Objects and lists are JSON text, or those of Parquet and of data frames.
    mapping : ColumnMapping
        Its columns may be parts of others: what follows a point. Its ``receptions`` names the lists.

    Yields
    ------
    Piece
        The columns as they were, and a text column for each part that the mapping names, null where it is lacking. A
        row without a list is among the broken ones.

    Raises
    ------
    ValueError
        With one sentence, if the file does not have the lists, or if no entry of them has what the mapping names.
    """
    lists = mapping.receptions
    within: list[str] = []
    objects: list[str] = []
    for source in mapping.sources.values():
        if source.column is not None:
            (within if lists is not None and source.is_within(lists) else objects).append(source.column)
    first = True
    for piece in pieces:
        if piece.columns and (objects or lists is not None):
            # A column is parsed once, however many of its parts are named.
            values = cache(partial(_values, piece))
            parts = {name: _texts(part) for name in objects if (part := _part(piece, name, values)) is not None}
            piece = replace(piece, columns=piece.columns | parts)
            if lists is not None:
                piece = _unnested(piece, lists, within, first, values)
                first = False
            # They must not wait in memory while the next piece is read.
            del values
        yield piece


def _unnested(piece: Piece, lists: str, names: Iterable[str], is_first: bool, values_of: Values) -> Piece:
    cells = values_of(lists) if lists in piece.columns else _part(piece, lists, values_of)
    if cells is None:
        raise without_column(piece.columns, lists, "receptions")
    is_list = np.array([isinstance(found, list) and len(found) > 0 for found in cells], bool)
    good = [found for found, usable in zip(cells, is_list, strict=True) if usable]
    entries = [entry for found in good for entry in found]
    row = np.repeat(np.flatnonzero(is_list), [len(found) for found in good])
    columns = {name: values.take(pa.array(row)) for name, values in piece.columns.items() if name != lists}
    for name in names:
        columns[name] = _texts(_members(entries, name.removeprefix(f"{lists}.")))
        if is_first and len(entries) >= _ENTRIES and columns[name].null_count == len(entries):
            raise ValueError(f"no entry of {shown(lists)} has {shown(name)}; the first is {str(entries[0])[:200]}")
    written = piece.columns[lists if lists in piece.columns else lists.partition(".")[0]]
    broken = [
        (int(piece.line[i]), printable(str(written[int(i)].as_py() or "")[:200]), NO_LIST)
        for i in np.flatnonzero(~is_list)
    ]
    return Piece(columns, piece.line[row], piece.broken + broken)


def _part(piece: Piece, name: str, values_of: Values) -> list[Any] | None:
    """What follows the first point of a name, in each row; None if the piece has the whole name, or not the first."""
    column, point, rest = name.partition(".")
    if not point or name in piece.columns or column not in piece.columns:
        return None
    return _members(values_of(column), rest)


def _values(piece: Piece, column: str) -> list[Any]:
    """The objects or lists of a column; None where there is none."""
    cells = piece.columns[column]
    if pa.types.is_nested(cells.type):
        return list(cells.to_pylist())
    return json_values([(text or "").encode() for text in readable(column, cells).cast(pa.string()).to_pylist()])


def _members(values: list[Any], path: str) -> list[Any]:
    for key in path.split("."):
        values = [_member(value, key) for value in values]
    return values


def _member(value: Any, key: str) -> Any:
    """The entry of a list, or the value of a key; None if there is none."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    return None


def _texts(values: list[Any]) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values], pa.string())
