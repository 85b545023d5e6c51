"""What a job leaves behind: rows of metrics, the state that its training continues from, and checkpoints."""

import hashlib
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, delete, insert, select, update

from triangulation_pipeline.jobs.states import JobRecord, existing_job, is_run_by, not_running
from triangulation_pipeline.storage.columns import now
from triangulation_pipeline.storage.engine import in_one_transaction, reading
from triangulation_pipeline.storage.objects import ObjectStore, StoredObject, read_object
from triangulation_pipeline.storage.postgresql import queue_for_chunks
from triangulation_pipeline.storage.tables import training_jobs, training_metrics
from triangulation_pipeline.training.metrics import METRIC_COLUMNS, EpochMetrics
from triangulation_pipeline.validation import uuid_text

if TYPE_CHECKING:
    import pandas as pd

    from triangulation_pipeline.model.checkpoint import Checkpoint


def record_epoch(
    engine: Engine,
    objects: ObjectStore,
    job: JobRecord,
    metrics: EpochMetrics,
    state: bytes,
    *,
    best_epoch: int,
    best_val_loss: float,
) -> None:
    """Records an epoch of a job that its run works on: stores the state of the training, writes the rows, and deletes
    the state before, in this order. So the job's row points to a complete state at every moment.

    Raises what ``write_epoch`` raises.
    """
    name = f"{metrics.epoch}-{hashlib.sha256(state).hexdigest()[:8]}"
    stored = objects.put(f"{job_folder(job)}/state/{name}.pth", state)
    before = write_epoch(engine, job, metrics, stored, best_epoch=best_epoch, best_val_loss=best_val_loss)
    if before is not None:
        objects.delete(objects.key(before))


def write_epoch(
    engine: Engine,
    job: JobRecord,
    metrics: EpochMetrics,
    state: StoredObject,
    *,
    best_epoch: int,
    best_val_loss: float,
) -> str | None:
    """Writes the metrics of an epoch and where its state is stored, in one transaction.

    Rows of this epoch and of later ones, left by an earlier try, are replaced: a job has one row per epoch. Returns the
    location of the state before this one, which nothing points to any more, or None if there is none.

    Raises ValueError if the epoch is not one of the job's, and IllegalTransition if the job does not belong to that run
    any more.
    """
    values = asdict(metrics)
    epoch = values.pop("epoch")
    if not (isinstance(epoch, int) and 1 <= epoch <= job.total_epochs):
        raise ValueError(f"metrics.epoch must be a whole number from 1 to {job.total_epochs}, got {epoch}")
    if not math.isfinite(best_val_loss):
        raise ValueError(f"best_val_loss must be a finite number, got {best_val_loss}")

    def write(connection: Connection) -> str | None:
        queue_for_chunks(connection, training_jobs.name)
        # This comes first, as it makes any other writer of the job wait. It does not touch the state yet, so what it
        # returns is the state before.
        before = connection.execute(
            update(training_jobs)
            .where(*is_run_by(job))
            .values(
                current_epoch=epoch,
                progress_percent=100.0 * epoch / job.total_epochs,
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
            .values(state_location=state.location, state_sha256=state.sha256)
        )
        connection.execute(
            delete(training_metrics).where(
                training_metrics.c.training_job_id == job.id, training_metrics.c.epoch >= epoch
            )
        )
        connection.execute(
            insert(training_metrics).values(training_job_id=job.id, epoch=epoch, timestamp=now(), **values)
        )
        return before.state_location if before.state_location != state.location else None

    return in_one_transaction(engine, write, repeatable=True)


def job_folder(job: JobRecord) -> str:
    """The beginning of the keys of a job's objects."""
    return f"checkpoints/{job.id}"


def read_state(objects: ObjectStore, job: JobRecord) -> bytes | None:
    """The state that the latest epoch of a job left; None before the first. Raises StorageError if it is missing or
    damaged."""
    if job.state_location is None or job.state_sha256 is None:
        return None
    return read_object(objects, job.state_location, job.state_sha256)


def load_checkpoint(objects: ObjectStore, location: str, sha256: str) -> "Checkpoint":
    """The checkpoint that a row points to. Raises StorageError if its bytes are missing or damaged, and ValueError if
    they are no checkpoint."""
    from triangulation_pipeline.model.checkpoint import read_checkpoint

    return read_checkpoint(read_object(objects, location, sha256))


def read_history(engine: Engine, job_id: str) -> list[EpochMetrics]:
    """The epochs of a job in order, empty before the first. Raises StorageError if there is no such job."""
    job_id = uuid_text("job_id", job_id)
    statement = (
        select(*(training_metrics.c[name] for name in ("epoch", *METRIC_COLUMNS)))
        .where(training_metrics.c.training_job_id == job_id)
        .order_by(training_metrics.c.epoch)
    )
    with reading(engine) as connection:
        existing_job(connection, job_id)
        return [EpochMetrics(**row) for row in connection.execute(statement).mappings()]


def read_metrics(engine: Engine, job_id: str) -> "pd.DataFrame":
    """``read_history`` as a table: ``epoch`` (int64) and the METRIC_COLUMNS (float64, NaN for None)."""
    import pandas as pd

    table = pd.DataFrame(map(asdict, read_history(engine, job_id)), columns=["epoch", *METRIC_COLUMNS])
    return table.astype({"epoch": "int64"} | dict.fromkeys(METRIC_COLUMNS, "float64"))
