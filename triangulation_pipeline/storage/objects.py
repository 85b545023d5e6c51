"""The object store: immutable bytes by key, verified when read. For now a folder."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from triangulation_pipeline.storage.errors import StorageError

# No part begins with a dot: neither '..' nor the name of a file that is still being written.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")


@dataclass(frozen=True)
class StoredObject:
    """What a row keeps of an object: where it is and the SHA-256 of its bytes."""

    location: str
    sha256: str
    size_bytes: int


class ObjectStore(Protocol):
    """Objects by key: names joined by '/', as in ``checkpoints/{job_id}/best_model.pth``.

    All methods raise ValueError for a key of another form and StorageError where the store cannot do it.
    """

    def put(self, key: str, data: bytes) -> StoredObject:
        """Stores an object whole, in place of one of the same key, and returns once it is durable."""
        ...

    def get(self, key: str, sha256: str) -> bytes:
        """The object's bytes. Raises StorageError where it is missing or its digest is another one."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object; that it is gone already is no error."""
        ...

    def list_keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with ``prefix``, sorted."""
        ...

    def location(self, key: str) -> str:
        """What a row keeps: a path or a URL."""
        ...

    def key(self, location: str) -> str:
        """The key of a location. Raises ValueError for a location outside this store."""
        ...


class FolderStore:
    """An ``ObjectStore`` in a folder of this machine; a location is an absolute path."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def put(self, key: str, data: bytes) -> StoredObject:
        """Atomic and durable: written aside, flushed to disk, renamed."""
        path = self._path(key)
        aside = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(path)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
            # A new name, or a new folder's, is durable once the folder that holds it is.
            for folder in path.parents:
                _fsync_folder(folder)
                if folder == self.root:
                    break
        except OSError as error:
            raise StorageError(f"object {key!r} cannot be stored under {self.root}: {error.strerror}") from None
        return StoredObject(str(path), hashlib.sha256(data).hexdigest(), len(data))

    def get(self, key: str, sha256: str) -> bytes:
        """See ``ObjectStore``."""
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            raise StorageError(f"object {key!r}, of digest {sha256}, is missing under {self.root}") from None
        except OSError as error:
            raise StorageError(f"object {key!r} cannot be read under {self.root}: {error.strerror}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise StorageError(f"object {key!r} is damaged: its digest is {found}, expected is {sha256}")
        return data

    def delete(self, key: str) -> None:
        """See ``ObjectStore``."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"object {key!r} cannot be deleted under {self.root}: {error.strerror}") from None

    def list_keys(self, prefix: str = "") -> list[str]:
        """See ``ObjectStore``."""
        return sorted(key for key in self._keys() if key.startswith(prefix))

    def location(self, key: str) -> str:
        """See ``ObjectStore``."""
        return str(self._path(key))

    def key(self, location: str) -> str:
        """See ``ObjectStore``."""
        path = Path(location)
        if not path.is_relative_to(self.root):
            raise ValueError(f"{location!r} is no place in the object store {self.root}")
        return _checked_key(path.relative_to(self.root).as_posix())

    def _path(self, key: str) -> Path:
        return self.root / _checked_key(key)

    def _keys(self) -> Iterator[str]:
        for path in self.root.rglob("*"):
            key = path.relative_to(self.root).as_posix()
            if _KEY.fullmatch(key) and path.is_file():
                yield key


def open_store(object_store: Path) -> ObjectStore:
    """The store in a folder, which is created. Raises StorageError where it cannot be."""
    try:
        object_store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"object store {object_store} cannot be opened: {error.strerror}") from None
    return FolderStore(object_store)


def _checked_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"an object's key must be names of letters, digits and _ . = - joined by '/', "
            f"none beginning with '.', '=' or '-', got {key!r}"
        )
    return key


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
