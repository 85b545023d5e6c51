"""What each epoch of a job leaves behind."""

import math
from collections.abc import Mapping

import pandas as pd
from sqlalchemy import Connection, Engine, delete, insert, select, update

from triangulation_pipeline.jobs.states import JobRecord, existing_job, is_run_by, not_running
from triangulation_pipeline.storage.columns import now
from triangulation_pipeline.storage.engine import in_one_transaction, reading
from triangulation_pipeline.storage.postgresql import queue_for_chunks
from triangulation_pipeline.storage.tables import METRIC_COLUMNS, OPTIONAL_METRICS, training_jobs, training_metrics
from triangulation_pipeline.validation import uuid_text


def record_epoch(
    engine: Engine,
    job: JobRecord,
    metrics: Mapping[str, float | None],
    *,
    best_epoch: int,
    best_val_loss: float,
    total_epochs: int,
    state_location: str,
    state_sha256: str,
) -> str | None:
    """Records an epoch of a job that its run works on, and the saved state it left, in one transaction.

    ``metrics`` holds ``epoch`` (from 1) and the METRIC_COLUMNS; only those of OPTIONAL_METRICS may be None. Rows of
    this epoch and of later ones, left by an earlier try, are replaced: a job has one row an epoch. Returns the location
    of the saved state before this one, which nothing points to any more, or None where there is none.

    Raises ValueError for missing, unknown or non-finite metrics and IllegalTransition where the job is not
    that run's any more.
    """
    epoch, values = _checked_metrics(metrics, total_epochs)
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
                train_loss=values["train_loss"],
                val_loss=values["val_loss"],
                val_rmse_m=values["val_rmse_m"],
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
