"""What this room raises when the world, not the caller, is at fault."""

from triangulation_pipeline.validation import printable

MOST_CHARACTERS = 300
"""Of what a server, a library or a file says."""


class StorageError(Exception):
    """The database or the object store cannot do what was asked; the message is one sentence for a person."""


class IllegalTransition(StorageError):
    """A training job was asked to change to a state that its current state does not lead to."""


def quoted(said: object) -> str:
    """What somebody else said, for a message: its first line, printable, and cut where it is long."""
    first = printable(str(said).strip().partition("\n")[0].strip())
    return first if len(first) <= MOST_CHARACTERS else f"{first[:MOST_CHARACTERS]}..."
