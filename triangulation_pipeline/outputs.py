"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from triangulation_pipeline.documents import file_name
from triangulation_pipeline.validation import expanded


def checked_output(path: str | Path) -> Path:
    """The absolute path of a file that can be written. Raises ValueError with one sentence if it cannot."""
    path = expanded(path).absolute()
    if path.is_dir():
        raise ValueError(f"{file_name(path)} cannot be written: it is a folder")
    if path.exists() and not path.is_file():
        raise ValueError(f"{file_name(path)} cannot be written: it is not a regular file")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{file_name(path)} cannot be written: it is write-protected")
    if not path.parent.is_dir():
        raise ValueError(f"{file_name(path)} cannot be written: its folder does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{file_name(path)} cannot be written: its folder does not allow it")
    return path


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when the block ends without an error.

    Raises ValueError with one sentence if it cannot be written.
    """
    part = path.with_name(f".{path.name[:100]}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise ValueError(f"{file_name(path)} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
