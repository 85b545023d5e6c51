"""The worker's side of a running job: signs of life, and what somebody asks of it."""

import logging
import threading
from types import TracebackType
from typing import Self

from sqlalchemy import Engine

from triangulation_pipeline.storage.errors import IllegalTransition, quoted
from triangulation_pipeline.storage.jobs import JobRecord, beat
from triangulation_pipeline.storage.tables import Stop

EVERY_S = 1.0

log = logging.getLogger(__name__)


class Pulse:
    """Beats for a running job while it is entered, in a thread of its own: between batches the training reads an
    attribute, and waits for no database."""

    def __init__(self, engine: Engine, job: JobRecord) -> None:
        self.asked: Stop | None = None
        """What somebody asked for."""
        self.lost: str | None = None
        """Why the job is not this worker's any more, in one sentence."""
        self._engine, self._job = engine, job
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    @property
    def should_stop(self) -> bool:
        """Whether the training has to stop at the next batch."""
        return self.asked is not None or self.lost is not None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        # One that waits for a database that is away must not hold the run up.
        self._thread.join(EVERY_S)

    def _beat(self) -> None:
        away = False
        while not self._ended.wait(EVERY_S):
            try:
                self.asked = beat(self._engine, self._job)
                away = False
            except IllegalTransition as error:
                self.lost = str(error)
                return
            except Exception as error:  # whatever it is: the epoch's own transaction decides what becomes of the run
                if not away:
                    log.warning("job %s: no sign of life can be given: %s", self._job.id, quoted(error))
                away = True
