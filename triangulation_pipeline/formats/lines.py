"""The bytes of a file or of standard input, also packed with gzip, and their lines, piece by piece."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from triangulation_pipeline.validation import expanded

CHUNK_BYTES = 8_000_000
# A longer line is none of a measurement.
LONGEST_LINE = 1_000_000
STANDARD_INPUT = "-"

CUT_OFF = "the file is cut off in this line"
LONG_LINE = f"the line is longer than {LONGEST_LINE:,} bytes"

_GZIP_MAGIC = b"\x1f\x8b"
# How files begin that people take for text, and what they are.
_OTHERS = {
    b"PAR1": "Parquet, not text; --format parquet reads it",
    b"PK\x03\x04": "a zip archive or a workbook, not text; unpack it, or save the sheet as CSV in UTF-8",
    b"BZh91AY&SY": "packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zXZ": "packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "packed with Zstandard; unpack it, or pack it with gzip",
    _GZIP_MAGIC: "packed with gzip twice; unpack it once",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}


class _CutOff(ValueError):
    """Gzip data without an end."""


@contextmanager
def opened(path: str) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file or of standard input, unpacked if they are gzip. Raises ValueError with one sentence."""
    try:
        stream = cast(io.BufferedReader, sys.stdin.buffer) if path == STANDARD_INPUT else expanded(path).open("rb")
    except FileNotFoundError:
        raise ValueError("it does not exist") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        try:
            packed = stream.peek(2)[:2] == _GZIP_MAGIC
        except OSError as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from None
        yield gzip.GzipFile(fileobj=stream) if packed else stream
    finally:
        if path != STANDARD_INPUT:
            stream.close()


def read(stream: io.BufferedIOBase, live: bool = False) -> bytes:
    """The next bytes: a whole chunk, or if ``live`` what there is. Raises ValueError with one sentence."""
    parts: list[bytes] = []
    size = 0
    try:
        while size < CHUNK_BYTES and (part := stream.read1(CHUNK_BYTES - size)):
            parts.append(part)
            size += len(part)
            if live:
                break
    except EOFError:
        # What came before it is good, and is given first.
        if not parts:
            raise _CutOff("its gzip data is cut off") from None
    except (OSError, zlib.error) as error:
        kind = "its gzip data is damaged" if isinstance(error, gzip.BadGzipFile | zlib.error) else "it cannot be read"
        raise ValueError(kind) from None
    return b"".join(parts)


@dataclass(frozen=True)
class Lines:
    """Whole lines as UTF-8, each ended by one newline."""

    data: bytes
    number: int  # of the first
    is_open: bool = False  # whether the last of them has no end in the file
    is_cut: bool = False  # whether the last of them is certainly not whole; it may be empty

    @cached_property
    def _last(self) -> int:
        """The number of the last line."""
        return self.number + self.data.count(b"\n") - 1

    def why_broken(self, number: int, length: int, otherwise: str) -> str:
        """The reason why a line of some bytes is no row."""
        if length > LONGEST_LINE:
            return LONG_LINE
        return CUT_OFF if number == self._last and (self.is_open or self.is_cut) else otherwise


def lines(stream: io.BufferedIOBase, live: bool) -> Iterator[Lines]:
    """The lines of a text, a chunk at a time. Of a line that is longer than ``LONGEST_LINE`` there may be less. Raises
    ValueError with one sentence if it is no text."""
    rest, number, begun, is_cut = b"", 1, False, False
    while True:
        try:
            data = read(stream, live)
        except _CutOff:
            if not begun:
                raise
            is_cut = True
            break
        if not data:
            break
        if not begun:
            data, begun = _checked_beginning(data), True
        data = rest + data
        # A carriage return at the end may be the first half of a line end.
        held = b"\r" if data.endswith(b"\r") else b""
        data = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = data.rfind(b"\n") + 1
        # So much of a line is enough to see that it is too long.
        whole, rest = data[:end], data[end : end + LONGEST_LINE + 1] + held
        if whole:
            yield Lines(_as_utf8(whole), number)
            number += whole.count(b"\n")
    if not begun:
        raise ValueError("it is empty")
    if is_cut or rest.strip(b"\r"):
        yield Lines(_as_utf8(rest.strip(b"\r") + b"\n"), number, not rest.endswith(b"\r"), is_cut)


def _checked_beginning(data: bytes) -> bytes:
    for beginning, kind in _OTHERS.items():
        if data.startswith(beginning):
            raise ValueError(f"it is {kind}")
    if b"\0" in data.partition(b"\n")[0]:
        raise ValueError("it is not UTF-8 text: its first line has zero bytes")
    return data.removeprefix(b"\xef\xbb\xbf")


def _as_utf8(data: bytes) -> bytes:
    """The text, with a mark in place of what is no UTF-8."""
    if data.isascii():
        return data
    return data.decode("utf-8", "replace").encode()
