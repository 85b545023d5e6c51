"""Retrying what a server was asked while it cannot be reached."""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from triangulation_pipeline.storage.errors import StorageError

DEADLINE_S = 60.0
"""How long to retry a request while the server cannot be reached or is overloaded."""

_LONGEST_PAUSE_S = 5.0
_log = logging.getLogger(__name__)

_T = TypeVar("_T")


def retry(act: Callable[[], _T], failed: str, why: Callable[[Exception], str | None], deadline_s: float) -> _T:
    """The result of ``act``, which is called again after growing pauses while it fails.

    ``why`` gives the reason if an error may pass by itself. If it will not, ``why`` gives None or raises an error of
    its own, and there is no other try. Raises StorageError, with a message that begins with ``failed``, after
    ``deadline_s`` seconds.
    """
    end = time.monotonic() + deadline_s
    pause_s = 0.1
    warned = False
    while True:
        try:
            return act()
        except Exception as error:
            if (reason := why(error)) is None:
                raise
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        wait_s = pause_s * random.uniform(0.5, 1.0)  # apart from the others that wait for the same server
        if time.monotonic() + wait_s > end:
            raise StorageError(f"{failed}: {reason}, for {deadline_s:g} seconds")
        if not warned:
            _log.warning("%s: %s; trying for %g seconds", failed, reason, deadline_s)
            warned = True
        time.sleep(wait_s)
