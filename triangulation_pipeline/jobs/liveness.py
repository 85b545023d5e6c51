"""Whether the worker of a job lives: the heartbeats that it sends, and the one answer that is drawn from them."""

import logging
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from sqlalchemy import Engine, update

from triangulation_pipeline.jobs.states import (
    UNFINISHED,
    JobRecord,
    Run,
    get_job,
    is_run_by,
    list_jobs,
    not_running,
)
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.errors import IllegalTransition, quoted
from triangulation_pipeline.storage.tables import JobStatus, Stop, training_jobs

HEARTBEAT_S = 1.0
# A worker is dead if it stays silent for so many looks in a row, whatever any clock says. A command cannot wait for so
# long, and listens once.
LOOK_EVERY_S = 30
SILENT_LOOKS = 4
LISTEN_S = 5.0

WORKER_DIED = "its worker died"

Seen = dict[str, tuple[int, int]]
"""What one look remembers for the next, by job id: the heartbeats, and for how many looks they have not risen."""

log = logging.getLogger(__name__)


def why_dead(job: JobRecord, run: Run | None, silent_s: float | None = None) -> str | None:
    """Why nothing more comes of a job that is pending, queued or running, in one sentence. None if its worker lives, or
    may still come.

    ``run`` is Dagster's run of ``job.run_id``, None if Dagster does not know it. ``silent_s`` says for how many seconds
    the worker has sent no heartbeat, if they are enough to take it for dead (see ``look`` and ``listen``).
    """
    is_silent, has_ended = silent_s is not None, run is not None and run.is_finished
    if has_ended and job.started_at is None:
        return f"run {job.run_id} ended before it trained"
    # A job that is resumed is queued before the run that will continue it exists.
    if has_ended and (job.status is JobStatus.running or is_silent):
        return f"run {job.run_id} ended without updating the job: {WORKER_DIED}"
    if is_silent and job.status is JobStatus.running:
        return f"its worker sent no heartbeat for {silent_s:g} s"
    if is_silent and run is None:
        return f"Dagster does not know run {job.run_id} any more"
    return None


def look(engine: Engine, seen: Mapping[str, tuple[int, int]]) -> tuple[Seen, list[tuple[JobRecord, float | None]]]:
    """All unfinished jobs, each with the seconds of silence for ``why_dead``; and what the next look has to know.

    To be called every LOOK_EVERY_S. ``seen`` is what the look before gave.
    """
    # While another process holds SQLite's lock, no worker can send a heartbeat: a look counts once the lock is free.
    with writing(engine):
        pass
    now_seen: Seen = {}
    found: list[tuple[JobRecord, float | None]] = []
    for job in list_jobs(engine, *UNFINISHED):
        heartbeats, looks = seen.get(job.id, (job.heartbeats, -1))
        looks = looks + 1 if heartbeats == job.heartbeats else 0
        now_seen[job.id] = (job.heartbeats, looks)
        found.append((job, SILENT_LOOKS * LOOK_EVERY_S if looks >= SILENT_LOOKS else None))
    return now_seen, found


def listen(engine: Engine, job: JobRecord) -> float | None:
    """Waits LISTEN_S for a heartbeat of a running job. Gives these seconds if there was none, for ``why_dead``;
    otherwise None."""
    time.sleep(LISTEN_S)
    return LISTEN_S if get_job(engine, job.id).heartbeats == job.heartbeats else None


class Heartbeat:
    """Context manager: sends a heartbeat for a running job every HEARTBEAT_S, from a thread of its own. So the training
    only reads an attribute between batches, and does not wait for the database."""

    def __init__(self, engine: Engine, job: JobRecord) -> None:
        self.asked: Stop | None = None
        """What the job was asked for."""
        self.lost: str | None = None
        """Why the job does not belong to this worker any more, in one sentence."""
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
        # A thread that waits for an unreachable database must not hold up the run.
        self._thread.join(HEARTBEAT_S)

    def _send(self) -> None:
        is_away = False
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self.asked = send_heartbeat(self._engine, self._job)
                is_away = False
            except IllegalTransition as error:
                self.lost = str(error)
                return
            except Exception as error:  # of any kind: the transaction of the epoch decides what becomes of the run
                if not is_away:
                    log.warning("job %s: its heartbeat cannot be sent: %s", self._job.id, quoted(error))
                is_away = True


def send_heartbeat(engine: Engine, job: JobRecord) -> Stop | None:
    """Counts one heartbeat of a running job's worker; gives what the job was asked for.

    Raises IllegalTransition if the job does not belong to that run any more: the worker was taken for dead.
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
