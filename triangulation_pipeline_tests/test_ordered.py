import threading
import time
from collections.abc import Iterator

import pytest

from triangulation_pipeline.ordered import in_order


def slow_first(item: int) -> int:
    time.sleep(0.02 if item % 5 == 0 else 0.0)
    return item * item


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    assert list(in_order(slow_first, range(23), workers)) == [n * n for n in range(23)]
    assert list(in_order(slow_first, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_few_items_are_taken_before_their_results_are_asked_for(workers: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    for seen, _ in enumerate(in_order(slow_first, items(), workers), 1):
        assert len(taken) <= (seen if workers == 1 else seen + workers + 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_in_its_turn_and_ends_the_work(workers: int) -> None:
    calls: list[int] = []

    def fails_at_7(item: int) -> int:
        calls.append(item)
        if item == 7:
            raise ValueError("seven")
        return item

    found = []
    with pytest.raises(ValueError, match="seven"):
        found.extend(in_order(fails_at_7, range(1000), workers))
    assert found == list(range(7))
    assert max(calls) <= 7 + workers + 2

    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("cut short")

    results = in_order(slow_first, items(), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(OSError, match="cut short"):
        next(results)


def test_who_stops_asking_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    results = in_order(slow_first, range(1000), 3)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
