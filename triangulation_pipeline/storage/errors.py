"""What the storage raises when the database or the object store is at fault, and not the caller."""

from triangulation_pipeline.errors import PipelineError
from triangulation_pipeline.validation import brief


class StorageError(PipelineError):
    """The database or the object store cannot do what was asked."""


class IllegalTransition(StorageError):
    """A training job was asked to change to a state that its current state does not lead to."""


class ProductionChanged(StorageError):
    """Another version went into production after the new one was compared with the version that was there."""


def quoted(said: object) -> str:
    """What a server, a library or a file said, for a message: its first line, printable, and cut if it is long."""
    return brief(str(said).strip().partition("\n")[0])
