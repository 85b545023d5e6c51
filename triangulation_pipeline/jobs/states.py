"""The states of a training job, the changes between them, and the queries for jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Engine, insert, select, update

from triangulation_pipeline.storage.columns import now
from triangulation_pipeline.storage.engine import in_one_transaction, reading, writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.tables import JobStatus, Stop, training_jobs
from triangulation_pipeline.validation import uuid_text

# A job of RESUMABLE ended before it was complete.
WAITING = frozenset({JobStatus.pending, JobStatus.queued})
UNFINISHED = WAITING | {JobStatus.running}
RESUMABLE = frozenset({JobStatus.failed, JobStatus.cancelled, JobStatus.paused})

# From which states each state can be reached. A new job is pending, queued or running.
REACHED_FROM: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.queued: RESUMABLE | {JobStatus.pending},
    JobStatus.running: frozenset({JobStatus.queued}),
    JobStatus.completed: frozenset({JobStatus.running}),
    JobStatus.failed: UNFINISHED,
    JobStatus.cancelled: UNFINISHED,
    JobStatus.paused: frozenset({JobStatus.running}),
}

RUN_TERMINATED = "the run was terminated"
"""Why a job is cancelled whose run somebody terminates in Dagster, or interrupts in a terminal."""


class Run(Protocol):
    """What matters to jobs of a Dagster run. ``dagster.DagsterRun`` is one."""

    @property
    def run_id(self) -> str:
        """Its id."""

    @property
    def parent_run_id(self) -> str | None:
        """The run that it re-executes, if it does."""

    @property
    def root_run_id(self) -> str | None:
        """The first run of the chain of re-executions, if it is part of one."""

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, in whatever way."""


@dataclass(frozen=True)
class JobRecord:
    """A row of ``training_jobs``. The losses and ``val_rmse_m`` are those of the latest epoch, None before the
    first."""

    id: str
    job_name: str
    description: str
    status: JobStatus
    config: dict[str, Any]
    synthetic_dataset_id: str | None
    parent_job_id: str | None
    total_epochs: int
    current_epoch: int
    progress_percent: float
    best_epoch: int | None
    best_val_loss: float | None
    train_loss: float | None
    val_loss: float | None
    val_rmse_m: float | None
    state_location: str | None
    state_sha256: str | None
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    run_id: str | None
    stop_requested: Stop | None
    heartbeats: int


def complete_job(engine: Engine, job: JobRecord) -> JobRecord:
    """Marks a running job as completed. Raises IllegalTransition in any other state, or if another run works on it."""
    return _end(engine, job, JobStatus.completed, progress_percent=100.0)


def fail_job(engine: Engine, job: JobRecord, error_message: str) -> JobRecord:
    """Marks a pending, queued or running job as failed. Raises IllegalTransition as ``complete_job`` does."""
    return _end(engine, job, JobStatus.failed, error_message=error_message)


def cancel_job(engine: Engine, job: JobRecord, reason: str | None = None) -> JobRecord:
    """Marks a pending, queued or running job as cancelled. Raises IllegalTransition as ``complete_job`` does."""
    return _end(engine, job, JobStatus.cancelled, error_message=reason)


def pause_job(engine: Engine, job: JobRecord) -> JobRecord:
    """Marks a running job as paused. Raises IllegalTransition as ``complete_job`` does."""
    return _end(engine, job, JobStatus.paused)


def request_stop(engine: Engine, job_id: str, stop: Stop) -> JobRecord:
    """Asks a running job to pause, or to be cancelled, at its next batch. A job that waits is cancelled at once.

    Raises IllegalTransition if the job has ended, or is asked to pause before it runs.
    """
    job_id = uuid_text("job_id", job_id)
    with writing(engine) as connection:
        asked = connection.execute(
            update(training_jobs)
            .where(training_jobs.c.id == job_id, training_jobs.c.status == JobStatus.running)
            .values(stop_requested=stop)
        )
        if not asked.rowcount:
            wanted = JobStatus.cancelled if stop is Stop.cancel else JobStatus.paused
            change_job(connection, existing_job(connection, job_id), wanted, finished_at=now())
        return existing_job(connection, job_id)


def get_job(engine: Engine, job_id: str) -> JobRecord:
    """The job of that id. Raises StorageError if there is none."""
    with reading(engine) as connection:
        return existing_job(connection, uuid_text("job_id", job_id))


def find_job(engine: Engine, job_id: str) -> JobRecord | None:
    """The job of that id, or None."""
    with reading(engine) as connection:
        return job_or_none(connection, uuid_text("job_id", job_id))


def find_job_of_run(engine: Engine, run_id: str) -> JobRecord | None:
    """The job that a Dagster run works on, or worked on last; None if there is none."""
    statement = select(training_jobs).where(training_jobs.c.run_id == uuid_text("run_id", run_id))
    with reading(engine) as connection:
        row = connection.execute(statement.order_by(training_jobs.c.created_at.desc())).mappings().first()
    return None if row is None else _record(row)


def list_jobs(engine: Engine, *statuses: JobStatus) -> list[JobRecord]:
    """All jobs, or those in some states, the newest first."""
    statement = select(training_jobs)
    if statuses:
        statement = statement.where(training_jobs.c.status.in_(statuses))
    statement = statement.order_by(training_jobs.c.created_at.desc(), training_jobs.c.id)
    with reading(engine) as connection:
        return [_record(row) for row in connection.execute(statement).mappings()]


def _end(engine: Engine, job: JobRecord, status: JobStatus, **values: Any) -> JobRecord:
    if values.get("error_message") is not None:
        # With a zero character PostgreSQL would refuse the whole row.
        values["error_message"] = values["error_message"].replace("\0", "\N{REPLACEMENT CHARACTER}")

    def end(connection: Connection) -> JobRecord:
        change_job(connection, job, status, finished_at=now(), stop_requested=None, **values)
        return existing_job(connection, job.id)

    return in_one_transaction(engine, end)


def insert_job(connection: Connection, job_id: str, run_id: str, status: JobStatus, values: Mapping[str, Any]) -> None:
    """A new row of ``training_jobs`` before its first epoch."""
    progress = {"current_epoch": 0, "progress_percent": 0.0}
    connection.execute(
        insert(training_jobs).values(id=job_id, run_id=run_id, status=status, created_at=now(), **progress, **values)
    )


def change_job(connection: Connection, job: JobRecord, wanted: JobStatus, **values: Any) -> None:
    """One conditional UPDATE of the job as the caller knows it: if two race, one is refused, and so is a caller that
    speaks of a run from which another run has taken over."""
    changed = connection.execute(
        update(training_jobs)
        .where(
            training_jobs.c.id == job.id,
            training_jobs.c.run_id == job.run_id,
            training_jobs.c.status.in_(REACHED_FROM[wanted]),
        )
        .values(status=wanted, **values)
    )
    if changed.rowcount == 0:
        current = existing_job(connection, job.id)
        by = "" if current.run_id == job.run_id else f" in run {current.run_id}"
        raise IllegalTransition(f"job {job.id} is {current.status}{by} and cannot become {wanted}")


def is_run_by(job: JobRecord) -> tuple[ColumnElement[bool], ...]:
    """The conditions of an UPDATE that only the worker of the job's run may make."""
    return (
        training_jobs.c.id == job.id,
        training_jobs.c.run_id == job.run_id,
        training_jobs.c.status == JobStatus.running,
    )


def not_running(connection: Connection, job: JobRecord) -> IllegalTransition:
    """The error of a worker whose job is not its own any more."""
    current = existing_job(connection, job.id)
    return IllegalTransition(
        f"job {job.id} is {current.status} in run {current.run_id}, and no longer running in run {job.run_id}"
    )


def job_or_none(connection: Connection, job_id: str) -> JobRecord | None:
    """The job of that id within a transaction, or None."""
    statement = select(training_jobs).where(training_jobs.c.id == job_id)
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else _record(row)


def existing_job(connection: Connection, job_id: str) -> JobRecord:
    """The job of that id within a transaction. Raises StorageError if there is none."""
    if (job := job_or_none(connection, job_id)) is None:
        raise StorageError(f"there is no training job {job_id}")
    return job


def _record(row: Mapping[Any, Any]) -> JobRecord:
    stop = row["stop_requested"]
    typed = {"status": JobStatus(row["status"]), "stop_requested": None if stop is None else Stop(stop)}
    return JobRecord(**{**row, **typed})
