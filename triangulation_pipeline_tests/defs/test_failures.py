"""How an expected error becomes the one sentence that a step ends with."""

import dagster as dg
import pytest

from triangulation_pipeline.defs.config import check_run_config
from triangulation_pipeline.defs.failures import plain_failures
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.training.trainer import TrainingDiverged


def refused(error: BaseException) -> dg.Failure:
    with pytest.raises(dg.Failure) as caught, plain_failures():
        raise error
    return caught.value


@pytest.mark.parametrize("kind", [ValueError, TrainingDiverged, StorageError, IllegalTransition, ZeroDivisionError])
def test_a_refusal_is_its_sentence(kind: type[Exception]) -> None:
    failure = refused(kind("it is\nso"))
    assert failure.description == "it is so"
    assert (failure.__cause__, failure.__suppress_context__) == (None, True)


def test_too_little_memory_is_told_as_such() -> None:
    failure = refused(MemoryError("Unable to allocate 4.23 MiB"))
    assert failure.description == (
        "the memory that this process may take does not suffice; take fewer samples or sites"
    )
    assert failure.__suppress_context__


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), KeyboardInterrupt(), OSError("disk")])
def test_what_is_no_refusal_is_left_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, plain_failures():
        raise error
    assert caught.value is error


def test_a_refusal_tells_where_it_was_raised() -> None:
    with pytest.raises(dg.Failure) as caught, plain_failures():
        check_run_config({"ops": {"trained_model": {"config": {"epochs": 0}}}})
    (place,) = (str(value.value) for name, value in caught.value.metadata.items() if name == "raised_in")
    assert place.startswith("defs/config.py:")
    assert place.endswith("(settings_of), ValueError")


def test_a_long_refusal_is_cut() -> None:
    assert refused(ValueError("x" * 5000)).description == "x" * 1000 + "..."
    assert refused(ValueError("x" * 1000)).description == "x" * 1000
