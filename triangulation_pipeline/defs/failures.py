"""Expected errors become failures of one sentence in Dagster's pages."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

import triangulation_pipeline
from triangulation_pipeline.errors import PipelineError
from triangulation_pipeline.validation import brief

# In characters. A network of many sites with many faults would make a longer one.
LONGEST_SENTENCE = 1000


@contextmanager
def plain_failures() -> Iterator[None]:
    """Turns wrong input, a diverged training, storage faults and too little memory into failures of one sentence.

    Each failure tells where in this package the error was raised, for those who look for a fault of the program. Raises
    ``dagster.Failure`` for ValueError, ArithmeticError, PipelineError and MemoryError; other errors pass.
    """
    try:
        yield
    except MemoryError as error:
        description = "the memory that this process may take does not suffice; take fewer samples or sites"
        raise dg.Failure(description, metadata=_place_of(error)) from None
    except (ValueError, ArithmeticError, PipelineError) as error:
        # Without the chain of errors before it, whose stack traces would hide the sentence and may show a password.
        raise dg.Failure(brief(str(error), LONGEST_SENTENCE), metadata=_place_of(error)) from None


def _place_of(error: BaseException) -> dict[str, str]:
    """The innermost line of this package in the error's stack: it raised the error, or called what did."""
    package = Path(triangulation_pipeline.__file__).parent
    # At the least `plain_failures` itself, through which the error came.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    place = Path(frames[-1].filename).relative_to(package)
    return {"raised_in": f"{place}:{frames[-1].lineno} ({frames[-1].name}), {type(error).__name__}"}
