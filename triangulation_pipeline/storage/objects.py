"""The object store: immutable bytes by key, verified when they are read. Here in a folder; ``s3.py`` has buckets."""

import errno
import hashlib
import os
import re
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.validation import shown

# No part begins with a dot, as '..' and the names of temporary files do.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")


# The rules of the strictest servers. Two dots side by side and a numeric address are refused.
_BUCKET = re.compile(r"(?!.*\.\.)(?![0-9.]+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class S3Location:
    """A bucket, and the prefix of all objects of a store in it ('' for none)."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_s3_url(url: str) -> S3Location:
    """The bucket and the prefix of ``s3://bucket/prefix``.

    Raises ValueError. Its message does not quote the URL, which may contain a secret.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "s3":
        raise ValueError("must be as in s3://bucket/prefix")
    if "@" in rest:
        raise ValueError(
            "must not hold credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and write s3://bucket/prefix"
        )
    if "?" in rest or "#" in rest:
        raise ValueError(
            "takes no parameters (? and #); write s3://bucket/prefix, and the server in AWS_ENDPOINT_URL_S3"
        )
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            "must name a bucket, as in s3://bucket/prefix: 3 to 63 lower-case letters, digits, '-' and '.', "
            "the first and the last a letter or a digit"
        )
    prefix = prefix.removesuffix("/")
    if prefix and not is_key(prefix):
        raise ValueError("must have a prefix of names joined by '/', of letters, digits and _ . = - only")
    return S3Location(bucket, prefix)


@dataclass(frozen=True)
class StoredObject:
    """What a row keeps of an object: its location and the SHA-256 of its bytes."""

    location: str
    sha256: str


class ObjectStore(Protocol):
    """Objects by key. A key is names joined by '/', as in ``checkpoints/{job_id}/best_model.pth``.

    All methods raise ValueError for a key of another form, and StorageError if the store cannot do what was asked.
    """

    def put(self, key: str, data: bytes) -> StoredObject:
        """Stores a whole object, and returns when it is durable. An object with the same key is replaced."""
        ...

    def get(self, key: str, sha256: str) -> bytes:
        """The bytes of an object. Raises StorageError if it is missing or has another digest."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object. It is no error if there is none."""
        ...

    def location(self, key: str) -> str:
        """The location of a key, as a row keeps it: a path or a URL."""
        ...

    def key(self, location: str) -> str:
        """The key of a location. Raises ValueError if the location is outside this store."""
        ...


def read_object(objects: ObjectStore, location: str, sha256: str) -> bytes:
    """The bytes of an object, by what a row keeps of it. Raises StorageError if they are missing or damaged, and
    ValueError for a location outside the store."""
    return objects.get(objects.key(location), sha256)


class FolderStore:
    """An ``ObjectStore`` in a folder of this machine. A location is an absolute path.

    The folder itself may be a symbolic link. Links inside it are not followed, as they could lead anywhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def put(self, key: str, data: bytes) -> StoredObject:
        """Atomic and durable: the object is written to a temporary file, flushed to disk, and renamed."""
        path = self._path(key)
        aside = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            self._refuse_links(path)
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
            # The name of a new file or folder is durable when the folder that contains it is.
            for folder in path.parents:
                _fsync_folder(folder)
                if folder == self.root:
                    break
        except OSError as error:
            raise StorageError(f"object {key!r} cannot be stored under {self.root}: {error.strerror}") from None
        return StoredObject(str(path), hashlib.sha256(data).hexdigest())

    def get(self, key: str, sha256: str) -> bytes:
        """See ``ObjectStore``."""
        path = self._path(key)
        try:
            self._refuse_links(path)
            # Without blocking, as it may be a pipe instead of a file.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is no file")
                data = file.read()
        except FileNotFoundError:
            raise StorageError(f"object {key!r}, of digest {sha256}, is missing under {self.root}") from None
        except OSError as error:
            raise StorageError(f"object {key!r} cannot be read under {self.root}: {error.strerror}") from None
        return checked_data(key, data, sha256)

    def delete(self, key: str) -> None:
        """See ``ObjectStore``."""
        try:
            path = self._path(key)
            self._refuse_links(path.parent)
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"object {key!r} cannot be deleted under {self.root}: {error.strerror}") from None

    def location(self, key: str) -> str:
        """See ``ObjectStore``."""
        return str(self._path(key))

    def key(self, location: str) -> str:
        """See ``ObjectStore``."""
        path = Path(location)
        if not path.is_relative_to(self.root):
            raise ValueError(f"{shown(location)} is no place in the object store {self.root}")
        return checked_key(path.relative_to(self.root).as_posix())

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _refuse_links(self, path: Path) -> None:
        """Raises OSError if the path, or a folder between the root and it, is a symbolic link."""
        while path != self.root:
            if path.is_symlink():
                raise OSError(errno.ELOOP, f"{path} is a symbolic link, and none is followed")
            path = path.parent


def make_private(folder: Path) -> None:
    """Makes a folder, and missing folders above it, for this user only. An existing folder keeps its permissions.

    Raises OSError if it cannot be made.
    """
    for path in reversed(folder.parents):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def is_key(text: str) -> bool:
    """Whether a text has the form of an object's key."""
    return _KEY.fullmatch(text) is not None


def checked_key(key: str) -> str:
    """The key itself. Raises ValueError if it does not have the form of a key."""
    if not is_key(key):
        raise ValueError(
            f"an object's key must be names of letters, digits and _ . = - joined by '/', "
            f"none beginning with '.', '=' or '-', got {shown(key)}"
        )
    return key


def checked_data(key: str, data: bytes, sha256: str) -> bytes:
    """The data itself. Raises StorageError if it has another digest."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise StorageError(f"object {key!r} is damaged: its digest is {found}, expected is {sha256}")
    return data


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
