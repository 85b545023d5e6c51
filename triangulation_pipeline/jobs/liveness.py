"""The worker's side of a running job: signs of life, and what somebody asks of it."""

import logging
import threading
from types import TracebackType
from typing import Self

from sqlalchemy import Engine, update

from triangulation_pipeline.jobs.states import JobRecord, is_run_by, not_running
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.errors import IllegalTransition, quoted
from triangulation_pipeline.storage.tables import Stop, training_jobs

HEARTBEAT_S = 1.0

log = logging.getLogger(__name__)


class Heartbeat:
    """Beats for a running job while it is entered, in a thread of its own: between batches the training reads an
    attribute, and waits for no database."""

    def __init__(self, engine: Engine, job: JobRecord) -> None:
        self.asked: Stop | None = None
        """What somebody asked for."""
        self.lost: str | None = None
        """Why the job is not this worker's any more, in one sentence."""
        self._engine, self._job = engine, job
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send, name="heartbeat", daemon=True)

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
        self._thread.join(HEARTBEAT_S)

    def _send(self) -> None:
        away = False
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self.asked = send_heartbeat(self._engine, self._job)
                away = False
            except IllegalTransition as error:
                self.lost = str(error)
                return
            except Exception as error:  # whatever it is: the epoch's own transaction decides what becomes of the run
                if not away:
                    log.warning("job %s: no sign of life can be given: %s", self._job.id, quoted(error))
                away = True


def send_heartbeat(engine: Engine, job: JobRecord) -> Stop | None:
    """One sign of life of a running job's worker; gives what it has been asked for.

    Raises IllegalTransition where the job is not that run's any more: somebody took the worker for dead.
    """
    with writing(engine) as connection:
        row = connection.execute(
            update(training_jobs)
            .where(*is_run_by(job))
            .values(heartbeats=training_jobs.c.heartbeats + 1)
            .returning(training_jobs.c.stop_requested)
        ).one_or_none()
        if row is None:
            raise not_running(connection, job)
    return None if row.stop_requested is None else Stop(row.stop_requested)
