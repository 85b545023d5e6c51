"""Opening the object store that the settings name."""

from pathlib import Path

from triangulation_pipeline.storage.errors import StorageError, quoted
from triangulation_pipeline.storage.objects import FolderStore, ObjectStore, S3Location, make_private
from triangulation_pipeline.storage.s3 import open_s3


def open_store(place: Path | S3Location) -> ObjectStore:
    """The object store in a folder or in a bucket, which is made if it is missing.

    Raises StorageError if the store cannot be opened.
    """
    if isinstance(place, S3Location):
        return open_s3(place)
    try:
        make_private(place)
    except OSError as error:
        raise StorageError(f"object store {quoted(place)} cannot be opened: {error.strerror}") from None
    return FolderStore(place)
