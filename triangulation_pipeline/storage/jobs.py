"""Training jobs: their states, and what each epoch leaves behind."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import Connection, Engine, delete, insert, select, update

from triangulation_pipeline.storage.columns import checked_json, now, uuid_text
from triangulation_pipeline.storage.engine import in_one_transaction, reading, writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.tables import (
    METRIC_COLUMNS,
    OPTIONAL_METRICS,
    JobStatus,
    synthetic_datasets,
    training_jobs,
    training_metrics,
)

# From which states each state can be reached; a job begins as pending, queued or running.
REACHED_FROM: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.queued: frozenset({JobStatus.pending, JobStatus.failed, JobStatus.cancelled, JobStatus.paused}),
    JobStatus.running: frozenset({JobStatus.queued}),
    JobStatus.completed: frozenset({JobStatus.running}),
    JobStatus.failed: frozenset({JobStatus.pending, JobStatus.queued, JobStatus.running}),
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


def start_job(
    engine: Engine,
    *,
    job_id: str,
    job_name: str,
    description: str,
    config: Mapping[str, Any],
    synthetic_dataset_id: str,
    total_epochs: int,
    parent_job_id: str | None = None,
) -> JobRecord:
    """Marks a job as running: a new one, or one that was queued or ended early and is tried again.

    A job that is tried again keeps what its epochs recorded; they are replaced as they are trained again. Raises
    IllegalTransition where it runs or is completed, StorageError where the dataset or the parent job does not exist,
    and ValueError where a job of that id has another configuration or dataset.
    """
    job_id = uuid_text("job_id", job_id)
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
        job = _find(connection, job_id)
        if job is None:
            moment = now()
            connection.execute(
                insert(training_jobs).values(
                    id=job_id,
                    job_name=job_name,
                    description=description,
                    status=JobStatus.running,
                    config=config,
                    synthetic_dataset_id=dataset_id,
                    parent_job_id=parent_id,
                    total_epochs=total_epochs,
                    current_epoch=0,
                    progress_percent=0.0,
                    created_at=moment,
                    started_at=moment,
                )
            )
        else:
            if job.config != config or job.synthetic_dataset_id != dataset_id:
                raise ValueError(f"job {job_id} exists with another configuration or dataset; start a new job")
            if job.status in REACHED_FROM[JobStatus.queued]:
                _change(connection, job_id, JobStatus.queued, error_message=None, finished_at=None)
            _change(connection, job_id, JobStatus.running, started_at=now())
        return _get(connection, job_id)

    return in_one_transaction(engine, start)


def record_epoch(
    engine: Engine,
    job_id: str,
    metrics: Mapping[str, float | None],
    *,
    best_epoch: int,
    best_val_loss: float,
    total_epochs: int,
    state_location: str,
    state_sha256: str,
) -> str | None:
    """Records an epoch of a running job, and the saved state it left, in one transaction.

    ``metrics`` holds ``epoch`` (from 1) and the METRIC_COLUMNS; only those of OPTIONAL_METRICS may be None. Rows of
    this epoch and of later ones, left by an earlier try, are replaced: a job has one row an epoch. Returns the location
    of the saved state before this one, which nothing points to any more, or None where there is none.

    Raises ValueError for missing, unknown or non-finite metrics and IllegalTransition where the job does not run.
    """
    job_id = uuid_text("job_id", job_id)
    epoch, values = _checked_metrics(metrics, total_epochs)
    if not math.isfinite(best_val_loss):
        raise ValueError(f"best_val_loss must be a finite number, got {best_val_loss}")
    with writing(engine) as connection:
        # This comes first, as it makes any other writer of the job wait. It does not touch the state yet, so what it
        # returns is the state before.
        before = connection.execute(
            update(training_jobs)
            .where(training_jobs.c.id == job_id, training_jobs.c.status == JobStatus.running)
            .values(
                current_epoch=epoch,
                total_epochs=total_epochs,
                progress_percent=100.0 * epoch / total_epochs,
                best_epoch=best_epoch,
                best_val_loss=best_val_loss,
                train_loss=values["train_loss"],
                val_loss=values["val_loss"],
                val_rmse_m=values["val_rmse_m"],
            )
            .returning(training_jobs.c.state_location)
        ).one_or_none()
        if before is None:
            status = _get(connection, job_id).status
            raise IllegalTransition(f"job {job_id} is {status}, an epoch can only be recorded while it is running")
        connection.execute(
            update(training_jobs)
            .where(training_jobs.c.id == job_id)
            .values(state_location=state_location, state_sha256=state_sha256)
        )
        connection.execute(
            delete(training_metrics).where(
                training_metrics.c.training_job_id == job_id, training_metrics.c.epoch >= epoch
            )
        )
        connection.execute(
            insert(training_metrics).values(training_job_id=job_id, epoch=epoch, timestamp=now(), **values)
        )
    return before.state_location if before.state_location != state_location else None


def complete_job(engine: Engine, job_id: str) -> JobRecord:
    """Marks a running job as completed. Raises IllegalTransition from any other state."""
    job_id = uuid_text("job_id", job_id)
    with writing(engine) as connection:
        _change(connection, job_id, JobStatus.completed, progress_percent=100.0, finished_at=now())
        return _get(connection, job_id)


def fail_job(engine: Engine, job_id: str, error_message: str) -> JobRecord:
    """Marks a pending, queued or running job as failed. Raises IllegalTransition from any other state."""
    job_id = uuid_text("job_id", job_id)
    error_message = error_message.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL would refuse the whole row
    with writing(engine) as connection:
        _change(connection, job_id, JobStatus.failed, error_message=error_message, finished_at=now())
        return _get(connection, job_id)


def get_job(engine: Engine, job_id: str) -> JobRecord:
    """The job of that id. Raises StorageError where there is none."""
    with reading(engine) as connection:
        return _get(connection, uuid_text("job_id", job_id))


def find_job(engine: Engine, job_id: str) -> JobRecord | None:
    """The job of that id, or None."""
    with reading(engine) as connection:
        return _find(connection, uuid_text("job_id", job_id))


def goes_on(job: JobRecord, config: Mapping[str, Any], synthetic_dataset_id: str) -> bool:
    """Whether the job ended early and another try with these settings is the same training."""
    ended_early = job.status in {JobStatus.failed, JobStatus.cancelled, JobStatus.paused}
    return ended_early and job.config == config and job.synthetic_dataset_id == synthetic_dataset_id


def list_jobs(engine: Engine) -> list[JobRecord]:
    """All jobs, the newest first."""
    statement = select(training_jobs).order_by(training_jobs.c.created_at.desc(), training_jobs.c.id)
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


def _checked_metrics(metrics: Mapping[str, float | None], total_epochs: int) -> tuple[int, dict[str, float | None]]:
    expected = {"epoch", *METRIC_COLUMNS}
    if odd := sorted(expected ^ set(metrics)):
        raise ValueError(
            f"metrics must have exactly epoch and the METRIC_COLUMNS, missing or unknown: {', '.join(odd)}"
        )
    epoch = metrics["epoch"]
    if epoch is None or not 1 <= epoch <= total_epochs or epoch != int(epoch):
        raise ValueError(f"metrics.epoch must be a whole number from 1 to {total_epochs}, got {epoch}")
    values: dict[str, float | None] = {}
    for name in METRIC_COLUMNS:
        value = metrics[name]
        if value is None and name in OPTIONAL_METRICS:
            values[name] = None
        elif value is None or not math.isfinite(value):
            raise ValueError(f"metrics.{name} must be a finite number, got {value}")
        else:
            values[name] = float(value)
    return int(epoch), values


def _change(connection: Connection, job_id: str, wanted: JobStatus, **values: Any) -> None:
    """One conditional UPDATE: of two that race, one wins and the other is refused."""
    changed = connection.execute(
        update(training_jobs)
        .where(training_jobs.c.id == job_id, training_jobs.c.status.in_(REACHED_FROM[wanted]))
        .values(status=wanted, **values)
    )
    if changed.rowcount == 0:
        current = _get(connection, job_id).status
        raise IllegalTransition(f"job {job_id} is {current} and cannot become {wanted}")


def _find(connection: Connection, job_id: str) -> JobRecord | None:
    statement = select(training_jobs).where(training_jobs.c.id == job_id)
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else _record(row)


def _get(connection: Connection, job_id: str) -> JobRecord:
    if (job := _find(connection, job_id)) is None:
        raise StorageError(f"there is no training job {job_id}")
    return job


def _record(row: Mapping[Any, Any]) -> JobRecord:
    return JobRecord(**{**row, "status": JobStatus(row["status"])})
