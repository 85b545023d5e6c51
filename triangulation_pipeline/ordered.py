"""Work that several threads share, with its results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """What a function makes of each item, as ``map`` gives it, computed by so many threads.

    The thread that asks for results takes the items: at most two more of them than there are workers before their
    results are asked for. With one worker there is no other thread, and an item is taken when its result is asked for.
    An error of an item, or of taking it, is raised in its turn; what was begun after it is given up.

    Parameters
    ----------
    function : callable
        Of one item. It must not depend on the order of calls.
    items : iterable
        As many as there are.
    workers : int
        Threads, one or more.

    Yields
    ------
    object
        The results in the order of the items.
    """
    if workers == 1:
        yield from map(function, items)
        return
    begun: deque[Future[Result]] = deque()
    remaining = iter(items)
    error: Exception | None = None
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            try:
                begun.append(pool.submit(function, next(remaining)))
            except StopIteration:
                break
            except Exception as found:
                error = found
                break
            if len(begun) > workers + 1:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
        if error is not None:
            raise error
    finally:
        pool.shutdown(cancel_futures=True)
