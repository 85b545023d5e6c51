"""What this room raises when the world, not the caller, is at fault."""

from triangulation_pipeline.validation import brief


class StorageError(Exception):
    """The database or the object store cannot do what was asked; the message is one sentence for a person."""


class IllegalTransition(StorageError):
    """A training job was asked to change to a state that its current state does not lead to."""


class ProductionChanged(StorageError):
    """Another version went into production since the one to be promoted was compared with what was there."""


def quoted(said: object) -> str:
    """What a server, a library or a file says, for a message: its first line, printable, and cut where it is long."""
    return brief(str(said).strip().partition("\n")[0])
