import logging
from collections.abc import Callable

import pytest

from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.retry import retry
from triangulation_pipeline_tests.storage.conftest import Clock


def fails(times: int) -> tuple[Callable[[], str], list[int]]:
    """Fails so many times, then answers; and how often it was asked."""
    asked: list[int] = []

    def act() -> str:
        asked.append(1)
        if len(asked) <= times:
            raise OSError(f"failure {len(asked)}")
        return "done"

    return act, asked


def test_what_succeeds_is_done_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    act, asked = fails(0)
    assert retry(act, "cannot", str, 60) == "done"
    assert (len(asked), clock.pauses, caplog.records) == (1, [], [])


def test_what_may_pass_is_tried_until_it_has_passed_and_told_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    act, asked = fails(9)
    with caplog.at_level(logging.WARNING):
        assert retry(act, "it cannot be read", str, 60) == "done"
    assert len(asked) == 10
    assert [record.getMessage() for record in caplog.records] == ["it cannot be read: failure 1; trying for 60 seconds"]
    # Each pause is up to twice the one before, to five seconds, and apart from the others that wait.
    most = [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5]
    assert all(longest / 2 <= pause <= longest for pause, longest in zip(clock.pauses, most, strict=True))
    assert len({pause / longest for pause, longest in zip(clock.pauses, most, strict=True)}) > 5


@pytest.mark.parametrize("deadline_s", [0.5, 12, 60])
def test_what_does_not_pass_is_given_up_at_the_deadline(clock: Clock, deadline_s: float) -> None:
    act, asked = fails(1000)
    with pytest.raises(StorageError) as caught:
        retry(act, "it cannot be written", str, deadline_s)
    assert str(caught.value) == f"it cannot be written: failure {len(asked)}, for {deadline_s:g} seconds"
    waited_s = clock.now_s - 1000
    assert deadline_s - 5 <= waited_s <= deadline_s
    assert len(asked) > 1


def test_no_time_is_one_try(clock: Clock) -> None:
    act, asked = fails(1)
    with pytest.raises(StorageError, match=r"^cannot: failure 1, for 0 seconds$"):
        retry(act, "cannot", str, 0)
    assert (len(asked), clock.pauses) == (1, [])


def test_what_will_not_pass_is_raised_as_it_is(clock: Clock) -> None:
    act, asked = fails(1000)
    with pytest.raises(OSError, match=r"^failure 3$"):
        retry(act, "cannot", lambda error: None if "3" in str(error) else "busy", 60)
    assert len(asked) == 3
