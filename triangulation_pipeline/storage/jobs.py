"""Training jobs: their states, and what each epoch leaves behind."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import ColumnElement, Connection, Engine, delete, insert, select, update

from triangulation_pipeline.storage.columns import checked_json, now
from triangulation_pipeline.storage.engine import in_one_transaction, reading, writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.postgresql import queue_for_chunks
from triangulation_pipeline.storage.tables import (
    JobStatus,
    Stop,
    synthetic_datasets,
    training_jobs,
    training_metrics,
)
from triangulation_pipeline.training.metrics import METRIC_COLUMNS, EpochMetrics
from triangulation_pipeline.validation import uuid_text

# A job that waits for its run, or is at work; and one that ended before it was complete, and may be resumed.
WAITING = frozenset({JobStatus.pending, JobStatus.queued})
UNFINISHED = WAITING | {JobStatus.running}
RESUMABLE = frozenset({JobStatus.failed, JobStatus.cancelled, JobStatus.paused})

# From which states each state can be reached; a job begins as pending, queued or running.
REACHED_FROM: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.queued: RESUMABLE | {JobStatus.pending},
    JobStatus.running: frozenset({JobStatus.queued}),
    JobStatus.completed: frozenset({JobStatus.running}),
    JobStatus.failed: UNFINISHED,
    JobStatus.cancelled: UNFINISHED,
    JobStatus.paused: frozenset({JobStatus.running}),
}


@dataclass(frozen=True)
class JobRecord:
    """A row of ``training_jobs``; losses and ``val_rmse_m`` are the latest epoch's, null before the first."""

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


def announce_job(
    engine: Engine,
    *,
    job_id: str,
    status: JobStatus,
    job_name: str,
    description: str,
    config: Mapping[str, Any],
    total_epochs: int,
) -> JobRecord:
    """A pending or queued job for a Dagster run that has not begun to train; one that is known stays as it is, but that
    a pending one may become queued."""
    job_id = uuid_text("job_id", job_id)
    config = checked_json("config", config)
    if status not in WAITING:
        raise ValueError(f"status must be pending or queued, got {status}")

    def announce(connection: Connection) -> JobRecord:
        job = _find(connection, job_id)
        if job is None:
            values = {"job_name": job_name, "description": description, "config": config, "total_epochs": total_epochs}
            _insert(connection, job_id, job_id, status, values)
        elif (job.status, status) == (JobStatus.pending, JobStatus.queued):
            _change(connection, job, JobStatus.queued)
        return _get(connection, job_id)

    return in_one_transaction(engine, announce)


def start_job(
    engine: Engine,
    *,
    job_id: str,
    run_id: str,
    job_name: str,
    description: str,
    config: Mapping[str, Any],
    synthetic_dataset_id: str,
    total_epochs: int,
    parent_job_id: str | None = None,
) -> JobRecord:
    """Marks a job as running in a Dagster run: a new one, or one that was announced, or one that ended early and is
    tried again by another run.

    A job that is tried again keeps what its epochs recorded; they are replaced as they are trained again. Raises
    IllegalTransition where it runs or is completed, or ended early and this is that run still (somebody cancelled it
    before it began to train); StorageError where the dataset or the parent job does not exist; and ValueError where it
    was begun with another configuration or dataset.
    """
    job_id, run_id = uuid_text("job_id", job_id), uuid_text("run_id", run_id)
    dataset_id = uuid_text("synthetic_dataset_id", synthetic_dataset_id)
    parent_id = None if parent_job_id is None else uuid_text("parent_job_id", parent_job_id)
    config = checked_json("config", config)
    if total_epochs < 1:
        raise ValueError(f"total_epochs must be at least 1, got {total_epochs}")

    def start(connection: Connection) -> JobRecord:
        if connection.scalar(select(synthetic_datasets.c.id).where(synthetic_datasets.c.id == dataset_id)) is None:
            raise StorageError(f"there is no dataset {dataset_id} for job {job_id} to train on")
        if parent_id is not None:
            _get(connection, parent_id)
        values = {
            "job_name": job_name,
            "description": description,
            "config": config,
            "synthetic_dataset_id": dataset_id,
            "parent_job_id": parent_id,
            "total_epochs": total_epochs,
        }
        job = _find(connection, job_id)
        if job is None:
            _insert(connection, job_id, run_id, JobStatus.running, values | {"started_at": now()})
            return _get(connection, job_id)
        if job.started_at is not None:  # what was only announced may differ in what only the run could know
            if job.config != config or job.synthetic_dataset_id != dataset_id:
                raise ValueError(f"job {job_id} exists with another configuration or dataset; start a new job")
            values = {}
        if job.status in RESUMABLE and job.run_id == run_id:
            raise IllegalTransition(f"job {job_id} was {job.status} before run {run_id} began to train; resume it")
        if job.status in REACHED_FROM[JobStatus.queued]:
            _change(connection, job, JobStatus.queued)
        cleared = {"error_message": None, "finished_at": None, "stop_requested": None}
        _change(connection, job, JobStatus.running, run_id=run_id, started_at=now(), **values, **cleared)
        return _get(connection, job_id)

    return in_one_transaction(engine, start)


def record_epoch(
    engine: Engine,
    job: JobRecord,
    metrics: EpochMetrics,
    *,
    best_epoch: int,
    best_val_loss: float,
    total_epochs: int,
    state_location: str,
    state_sha256: str,
) -> str | None:
    """Records an epoch of a job that its run works on, and the saved state it left, in one transaction.

    Rows of this epoch and of later ones, left by an earlier try, are replaced: a job has one row per epoch. Returns the
    location of the saved state before this one, which nothing points to any more, or None if there is none.

    Raises ValueError if the epoch does not lie within the job's, and IllegalTransition if the job does not belong to
    that run any more.
    """
    values = asdict(metrics)
    epoch = values.pop("epoch")
    if not (isinstance(epoch, int) and 1 <= epoch <= total_epochs):
        raise ValueError(f"metrics.epoch must be a whole number from 1 to {total_epochs}, got {epoch}")
    if not math.isfinite(best_val_loss):
        raise ValueError(f"best_val_loss must be a finite number, got {best_val_loss}")

    def record(connection: Connection) -> str | None:
        queue_for_chunks(connection, training_jobs.name)
        # This comes first, as it makes any other writer of the job wait. It does not touch the state yet, so what it
        # returns is the state before.
        before = connection.execute(
            update(training_jobs)
            .where(*_is_run_by(job))
            .values(
                current_epoch=epoch,
                total_epochs=total_epochs,
                progress_percent=100.0 * epoch / total_epochs,
                best_epoch=best_epoch,
                best_val_loss=best_val_loss,
                train_loss=metrics.train_loss,
                val_loss=metrics.val_loss,
                val_rmse_m=metrics.val_rmse_m,
            )
            .returning(training_jobs.c.state_location)
        ).one_or_none()
        if before is None:
            raise _not_running(connection, job)
        connection.execute(
            update(training_jobs)
            .where(training_jobs.c.id == job.id)
            .values(state_location=state_location, state_sha256=state_sha256)
        )
        connection.execute(
            delete(training_metrics).where(
                training_metrics.c.training_job_id == job.id, training_metrics.c.epoch >= epoch
            )
        )
        connection.execute(
            insert(training_metrics).values(training_job_id=job.id, epoch=epoch, timestamp=now(), **values)
        )
        return before.state_location if before.state_location != state_location else None

    return in_one_transaction(engine, record, repeatable=True)


def complete_job(engine: Engine, job: JobRecord) -> JobRecord:
    """Marks a running job as completed. Raises IllegalTransition from any other state, or where another run has it."""
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


def requeue_job(engine: Engine, job: JobRecord) -> JobRecord:
    """Marks a job that ended early as queued, before a run is launched to resume it: of two that resume, one is
    refused. Raises IllegalTransition where it cannot be resumed."""
    with writing(engine) as connection:
        _change(connection, job, JobStatus.queued, finished_at=None, stop_requested=None)
        return _get(connection, job.id)


def assign_run(engine: Engine, job: JobRecord, run_id: str) -> JobRecord:
    """Says which run will resume a queued job. One that was cancelled meanwhile is told as well, so that the run is
    refused when it comes to train; one that has begun to train stays as it is."""
    run_id = uuid_text("run_id", run_id)
    with writing(engine) as connection:
        connection.execute(
            update(training_jobs)
            .where(
                training_jobs.c.id == job.id,
                training_jobs.c.run_id == job.run_id,
                training_jobs.c.status.in_([JobStatus.queued, JobStatus.cancelled]),
            )
            .values(run_id=run_id)
        )
        return _get(connection, job.id)


def request_stop(engine: Engine, job_id: str, stop: Stop) -> JobRecord:
    """Asks a running job to pause, or to be cancelled, at its next batch; one that waits is cancelled at once.

    Raises IllegalTransition where it has ended, or is to be paused before it runs.
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
            _change(connection, _get(connection, job_id), wanted, finished_at=now())
        return _get(connection, job_id)


def beat(engine: Engine, job: JobRecord) -> Stop | None:
    """One sign of life of a running job's worker; gives what it has been asked for.

    Raises IllegalTransition where the job is not that run's any more: somebody took the worker for dead.
    """
    with writing(engine) as connection:
        row = connection.execute(
            update(training_jobs)
            .where(*_is_run_by(job))
            .values(heartbeats=training_jobs.c.heartbeats + 1)
            .returning(training_jobs.c.stop_requested)
        ).one_or_none()
        if row is None:
            raise _not_running(connection, job)
    return None if row.stop_requested is None else Stop(row.stop_requested)


def get_job(engine: Engine, job_id: str) -> JobRecord:
    """The job of that id. Raises StorageError where there is none."""
    with reading(engine) as connection:
        return _get(connection, uuid_text("job_id", job_id))


def find_job(engine: Engine, job_id: str) -> JobRecord | None:
    """The job of that id, or None."""
    with reading(engine) as connection:
        return _find(connection, uuid_text("job_id", job_id))


def find_job_of_run(engine: Engine, run_id: str) -> JobRecord | None:
    """The job that a Dagster run works on, or worked on last; None where there is none."""
    statement = select(training_jobs).where(training_jobs.c.run_id == uuid_text("run_id", run_id))
    with reading(engine) as connection:
        row = connection.execute(statement.order_by(training_jobs.c.created_at.desc())).mappings().first()
    return None if row is None else _record(row)


def goes_on(job: JobRecord, config: Mapping[str, Any], synthetic_dataset_id: str) -> bool:
    """Whether a run with these settings does what the job was announced for, or goes on with what it began."""
    if job.status not in RESUMABLE | WAITING:
        return False
    return job.started_at is None or (job.config == config and job.synthetic_dataset_id == synthetic_dataset_id)


def list_jobs(engine: Engine, *statuses: JobStatus) -> list[JobRecord]:
    """All jobs, or those of some states, the newest first."""
    statement = select(training_jobs)
    if statuses:
        statement = statement.where(training_jobs.c.status.in_(statuses))
    statement = statement.order_by(training_jobs.c.created_at.desc(), training_jobs.c.id)
    with reading(engine) as connection:
        return [_record(row) for row in connection.execute(statement).mappings()]


def read_metrics(engine: Engine, job_id: str) -> pd.DataFrame:
    """One row an epoch, in order: ``epoch`` (int64) and the METRIC_COLUMNS (float64, NaN for null).

    Empty before the first epoch. Raises StorageError where there is no such job.
    """
    job_id = uuid_text("job_id", job_id)
    names = ["epoch", *METRIC_COLUMNS]
    statement = (
        select(*(training_metrics.c[name] for name in names))
        .where(training_metrics.c.training_job_id == job_id)
        .order_by(training_metrics.c.epoch)
    )
    with reading(engine) as connection:
        _get(connection, job_id)
        rows = [tuple(row) for row in connection.execute(statement)]
    return pd.DataFrame(rows, columns=names).astype({"epoch": "int64"} | dict.fromkeys(METRIC_COLUMNS, "float64"))


def _insert(connection: Connection, job_id: str, run_id: str, status: JobStatus, values: Mapping[str, Any]) -> None:
    progress = {"current_epoch": 0, "progress_percent": 0.0}
    connection.execute(
        insert(training_jobs).values(id=job_id, run_id=run_id, status=status, created_at=now(), **progress, **values)
    )


def _end(engine: Engine, job: JobRecord, status: JobStatus, **values: Any) -> JobRecord:
    if values.get("error_message") is not None:
        # PostgreSQL would refuse the whole row.
        values["error_message"] = values["error_message"].replace("\0", "\N{REPLACEMENT CHARACTER}")

    def end(connection: Connection) -> JobRecord:
        _change(connection, job, status, finished_at=now(), stop_requested=None, **values)
        return _get(connection, job.id)

    return in_one_transaction(engine, end)


def _change(connection: Connection, job: JobRecord, wanted: JobStatus, **values: Any) -> None:
    """One conditional UPDATE of the job as the caller knows it: of two that race one is refused, and so is whoever
    speaks of a run that another has taken over from."""
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
        current = _get(connection, job.id)
        by = "" if current.run_id == job.run_id else f" in run {current.run_id}"
        raise IllegalTransition(f"job {job.id} is {current.status}{by} and cannot become {wanted}")


def _is_run_by(job: JobRecord) -> tuple[ColumnElement[bool], ...]:
    return (
        training_jobs.c.id == job.id,
        training_jobs.c.run_id == job.run_id,
        training_jobs.c.status == JobStatus.running,
    )


def _not_running(connection: Connection, job: JobRecord) -> IllegalTransition:
    current = _get(connection, job.id)
    return IllegalTransition(
        f"job {job.id} is {current.status} in run {current.run_id}, and no longer running in run {job.run_id}"
    )


def _find(connection: Connection, job_id: str) -> JobRecord | None:
    statement = select(training_jobs).where(training_jobs.c.id == job_id)
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else _record(row)


def _get(connection: Connection, job_id: str) -> JobRecord:
    if (job := _find(connection, job_id)) is None:
        raise StorageError(f"there is no training job {job_id}")
    return job


def _record(row: Mapping[Any, Any]) -> JobRecord:
    stop = row["stop_requested"]
    typed = {"status": JobStatus(row["status"]), "stop_requested": None if stop is None else Stop(stop)}
    return JobRecord(**{**row, **typed})
