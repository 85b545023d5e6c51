"""Measurement files as tables: CSV, JSON lines and Parquet, also gzip and standard input, piece by piece.

A line that is no row is not a reason to give up the others: it is handed on beside them.
"""

import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from triangulation_pipeline.documents import file_name
from triangulation_pipeline.formats.columns import ColumnMapping
from triangulation_pipeline.formats.instants import is_number
from triangulation_pipeline.formats.lines import LONGEST_LINE, STANDARD_INPUT, Lines, lines, opened, read
from triangulation_pipeline.validation import shown

CHUNK_ROWS = 50_000

BAD_QUOTES = "the quotes of the line do not match, or a text in quotes has a line break"
OTHER_FIELDS = "the line has another number of fields than the first"
NO_OBJECT = "the line is no JSON object"
# One listens to a live stream from the middle of a line on.
_LINES_WITHOUT_OBJECT = 1000
# After so many objects a new key that a single one has is damaged, unless it is the name of something.
_OBJECTS_WITH_NEW_KEYS = 100

_NEWLINE, _QUOTE = ord("\n"), ord('"')


class Format(StrEnum):
    """What a measurement file may be. A further ``.gz`` at the end of a name changes nothing."""

    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


_SUFFIXES = {
    ".csv": Format.csv,
    ".tsv": Format.csv,
    ".txt": Format.csv,
    ".jsonl": Format.jsonl,
    ".ndjson": Format.jsonl,
    ".parquet": Format.parquet,
    ".pq": Format.parquet,
}


@dataclass(frozen=True)
class Piece:
    """Some rows of a file: their columns, by the names in the file, and the line on which each stands. Of Parquet and
    data frames it is the number of the row, from 1."""

    columns: dict[str, pa.Array]
    line: NDArray[np.int64]  # (n,)
    broken: list[tuple[int, str, str]]  # line, text and reason of each line that is no row


def format_of(path: str, named: str | None) -> Format:
    """The format of a file, by the name given or by its ending. Raises ValueError if neither tells."""
    if named is not None:
        if named not in list(Format):
            raise ValueError(f"the format must be one of {', '.join(Format)}, got {shown(named)}")
        return Format(named)
    if path == STANDARD_INPUT:
        return Format.csv
    name = path.lower().removesuffix(".gz")
    found = _SUFFIXES.get(Path(name).suffix)
    if found is None:
        raise ValueError(
            f"the ending of the name must be one of {', '.join(_SUFFIXES)}, each also with .gz, or --format must name "
            "the format"
        )
    return found


def pieces(path: str, kind: Format, live: bool, mapping: ColumnMapping) -> Iterator[Piece]:
    """The rows of a file, in pieces that fit into memory; if ``live``, each as soon as it is there. Rare keys of JSON
    lines are left out, if they are no names of columns by themselves or by the mapping. Raises ValueError with one
    sentence if the file is not what it should be; the sentence does not name the file."""
    with opened(path) as stream:
        match kind:
            case Format.csv:
                yield from _csv_pieces(lines(stream, live))
            case Format.jsonl:
                yield from _json_pieces(lines(stream, live), mapping)
            case Format.parquet:
                yield from _parquet_pieces(stream)


def _csv_pieces(chunks: Iterator[Lines]) -> Iterator[Piece]:
    names: list[str] | None = None
    for chunk in chunks:
        if names is None:
            skipped = len(chunk.data) - len(chunk.data.lstrip(b"\n"))
            header, _, data = chunk.data[skipped:].partition(b"\n")
            if not header.strip():
                continue
            names, delimiter = _header(header)
            chunk = replace(chunk, data=data, number=chunk.number + skipped + 1)
        yield _csv_piece(chunk, names, delimiter)
    if names is None:
        raise ValueError("it is empty")


def _header(line: bytes) -> tuple[list[str], str]:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"its first line is longer than {LONGEST_LINE:,} bytes")
    text = line.decode()
    delimiter = max(",;\t", key=text.count)
    if delimiter not in text:
        raise ValueError(f"its first line must name the columns, separated by commas; it is {shown(text)}")
    if text.count('"') % 2:
        raise ValueError(f"the quotes of its first line do not match; it is {shown(text)}")
    try:
        names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter))]
    except csv.Error:
        raise ValueError(f"its first line does not name columns; it is {shown(text)}") from None
    _refuse_repeated(names)
    return names, delimiter


def _refuse_repeated(names: list[str]) -> None:
    if len(set(names)) < len(names) and (repeated := [name for name in names if name and names.count(name) > 1]):
        raise ValueError(f"the column {shown(repeated[0])} appears twice")


def _parsed(data: bytes, columns: int, delimiter: str) -> pa.Table:
    names = [str(i) for i in range(columns)]
    return pa_csv.read_csv(
        pa.BufferReader(data),
        pa_csv.ReadOptions(column_names=names, block_size=len(data) + 1, use_threads=False),
        pa_csv.ParseOptions(delimiter=delimiter),
        pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )


def _csv_piece(chunk: Lines, names: list[str], delimiter: str) -> Piece:
    """The rows among whole lines. Lines with other quotes or another number of fields are left out before they are
    parsed, so that one stray quote does not swallow the lines after it."""
    data, number = chunk.data, chunk.number
    buffer = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(buffer == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    separators = np.flatnonzero(buffer == ord(delimiter))
    bad_quotes = np.zeros(len(ends), bool)
    if b'"' in data:
        quotes = np.flatnonzero(buffer == _QUOTE)
        before_line = np.searchsorted(quotes, starts)
        line_of = np.searchsorted(ends, quotes)
        is_closing = (np.arange(len(quotes)) - before_line[line_of]) % 2 == 1
        # One that opens follows a separator, one that closes comes before one; a doubled one is both. Before the first
        # byte stands the last, a newline.
        neighbour = np.where(is_closing, buffer[quotes + 1], buffer[quotes - 1])
        alone = ~np.isin(neighbour, [_NEWLINE, _QUOTE, ord(delimiter)])
        per_line = np.bincount(line_of, minlength=len(ends))
        bad_quotes = (per_line % 2 == 1) | (np.bincount(line_of[alone], minlength=len(ends)) > 0)
        quoted = (np.searchsorted(quotes, separators) - before_line[np.searchsorted(ends, separators)]) % 2 == 1
        separators = separators[~quoted]
    fields = np.bincount(np.searchsorted(ends, separators), minlength=len(ends)) + 1
    blank = ends == starts
    wrong = bad_quotes | (fields != len(names)) | (ends - starts > LONGEST_LINE)
    blank[-1:] &= not chunk.is_cut
    wrong[-1:] |= chunk.is_cut
    wrong &= ~blank
    kept = ~blank & ~wrong
    broken = [
        (
            number + int(i),
            data[starts[i] : min(ends[i], starts[i] + 200)].decode(errors="replace"),
            chunk.why_broken(number + int(i), int(ends[i] - starts[i]), BAD_QUOTES if bad_quotes[i] else OTHER_FIELDS),
        )
        for i in np.flatnonzero(wrong)
    ]
    if not kept.all():
        data = buffer[np.repeat(kept, ends - starts + 1)].tobytes()
    if not data:
        return Piece({name: pa.array([], pa.string()) for name in names if name}, np.zeros(0, np.int64), broken)
    table = _parsed(data, len(names), delimiter)
    columns = {name: _flat(table.column(i)) for i, name in enumerate(names) if name}
    return Piece(columns, number + np.flatnonzero(kept), broken)


def _json_pieces(chunks: Iterator[Lines], mapping: ColumnMapping) -> Iterator[Piece]:
    # Objects may have different keys. Case makes no difference.
    spellings: dict[str, list[str]] = {}
    lines_seen, objects_seen = False, 0
    for chunk in chunks:
        found = chunk.data.removesuffix(b"\n").split(b"\n")
        if chunk.number == 1 and found[0].lstrip().startswith(b"["):
            raise ValueError(
                "it is a JSON list, not JSON lines: write each object on a line of its own, without commas"
            )
        numbered = [
            (chunk.number + i, line)
            for i, line in enumerate(found)
            if line.strip() or (chunk.is_cut and i == len(found) - 1)
        ]
        rows = json_values([line if len(line) <= LONGEST_LINE else b"" for _, line in numbered])
        if chunk.is_cut:
            rows[-1] = None
        good = [row for row in rows if isinstance(row, dict)]
        lines_seen, objects_seen = lines_seen or bool(rows), objects_seen + len(good)
        if not objects_seen and chunk.number + len(found) > _LINES_WITHOUT_OBJECT:
            raise _no_json_lines()
        for name, count in Counter(name for row in good for name in row).items():
            folded = name.strip().casefold()
            is_rare = count == 1 and objects_seen > _OBJECTS_WITH_NEW_KEYS and folded not in spellings
            # A damaged object has keys of its own. A column for each would fill the memory.
            if is_rare and not mapping.may_name(name):
                continue
            spelled = spellings.setdefault(folded, [])
            if name not in spelled:
                spelled.append(name)
        yield Piece(
            {spelled[0]: _json_column(good, spelled) for spelled in spellings.values()},
            np.array([at for (at, _), row in zip(numbered, rows, strict=True) if isinstance(row, dict)], np.int64),
            [
                (at, line[:200].decode(errors="replace"), chunk.why_broken(at, len(line), NO_OBJECT))
                for (at, line), row in zip(numbered, rows, strict=True)
                if not isinstance(row, dict)
            ],
        )
    if lines_seen and not objects_seen:
        raise _no_json_lines()


def _no_json_lines() -> ValueError:
    return ValueError("it is not JSON lines: each line must be one JSON object, and its first lines are none")


def _json_column(rows: list[dict[str, Any]], spelled: list[str]) -> pa.Array:
    name, *others = spelled
    values = [row.get(name) for row in rows]
    for other in others:
        values = [row.get(other) if value is None else value for row, value in zip(rows, values, strict=True)]
    return pa.array([_json_text(value) for value in values], pa.string())


def json_values(lines: list[bytes]) -> list[Any]:
    """The JSON value of each line, with numbers as the text that was written; None if there is none."""
    try:
        rows = _json(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines):
            return cast(list[Any], rows)
    except (ValueError, RecursionError):
        pass
    return [_json_or_none(line) for line in lines]


def _json(text: bytes) -> Any:
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


def _json_or_none(line: bytes) -> Any:
    try:
        return _json(line)
    except (ValueError, RecursionError):
        return None


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        # Half of a surrogate pair is no character.
        return value if value is None or value.isascii() else value.encode("utf-8", "replace").decode()
    return json.dumps(value)


def _parquet_pieces(stream: io.BufferedIOBase) -> Iterator[Piece]:
    with tempfile.TemporaryFile() as copy:
        # The index is at the end, so what cannot be read there first goes to the disk.
        if isinstance(stream, io.BufferedReader) and stream.seekable():
            yield from _parquet_batches(stream)
            return
        while data := read(stream):
            copy.write(data)
        copy.seek(0)
        yield from _parquet_batches(copy)


def _parquet_batches(stream: IO[bytes] | io.BufferedIOBase) -> Iterator[Piece]:
    if stream.seek(0, io.SEEK_END) == 0:
        raise ValueError("it is empty")
    stream.seek(0)
    number = 1
    batches = _guarded(
        lambda: pa_parquet.ParquetFile(stream, page_checksum_verification=True).iter_batches(
            CHUNK_ROWS, use_threads=False
        )
    )
    while (batch := _guarded(lambda: next(batches, None))) is not None:
        yield piece_of(pa.table(batch), number)
        number += len(batch)


def _guarded(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        cause = str(error).partition("\n")[0]
        raise ValueError(f"it is no Parquet file, or it is cut off or damaged ({shown(cause)})") from None


def piece_of(table: pa.Table, number: int) -> Piece:
    """The rows of a table whose first row has that number. Raises ValueError on a column of a kind that no measurement
    has."""
    line = np.arange(number, number + len(table))
    names = table.column_names
    _refuse_repeated(names)
    return Piece({name: _flat(column) for name, column in zip(names, table.columns, strict=True)}, line, [])


def readable(name: str, column: pa.Array) -> pa.Array:
    """The column as numbers, time stamps with a time zone, or text. Raises ValueError with one sentence otherwise."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return readable(name, column.dictionary_decode())
    if pa.types.is_timestamp(kind):
        if kind.tz is None:
            raise ValueError(f"the column {shown(name)} has time stamps without a time zone; make them UTC")
        return column
    if is_number(kind):
        return column
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
        raise ValueError(f"the column {shown(name)} must have numbers, texts or time stamps, it has {kind}")
    try:
        column = column.cast(pa.string())
        column.validate(full=True)
    except pa.ArrowInvalid:
        data = column.cast(pa.binary()).to_pylist()
        column = pa.array([None if b is None else b.decode("utf-8", "replace") for b in data], pa.string())
    return column


def _flat(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)


def named(path: str) -> str:
    """The file for a message."""
    return "standard input" if path == STANDARD_INPUT else f"measurement file {file_name(Path(path))}"
