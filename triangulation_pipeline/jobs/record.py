"""What each epoch of a job leaves behind."""

import math
from dataclasses import asdict

import pandas as pd
from sqlalchemy import Connection, Engine, delete, insert, select, update

from triangulation_pipeline.jobs.states import JobRecord, existing_job, is_run_by, not_running
from triangulation_pipeline.storage.columns import now
from triangulation_pipeline.storage.engine import in_one_transaction, reading
from triangulation_pipeline.storage.postgresql import queue_for_chunks
from triangulation_pipeline.storage.tables import training_jobs, training_metrics
from triangulation_pipeline.training.metrics import METRIC_COLUMNS, EpochMetrics
from triangulation_pipeline.validation import uuid_text


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

    Raises ValueError if the epoch is not one of the job's, and IllegalTransition if the job does not belong to that run
    any more.
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
            .where(*is_run_by(job))
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
            raise not_running(connection, job)
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
        existing_job(connection, job_id)
        rows = [tuple(row) for row in connection.execute(statement)]
    return pd.DataFrame(rows, columns=names).astype({"epoch": "int64"} | dict.fromkeys(METRIC_COLUMNS, "float64"))
