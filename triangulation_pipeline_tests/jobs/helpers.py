"""Jobs in any state, as somebody could have left them."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, update

from triangulation_pipeline.jobs.continuation import announce_job, start_job
from triangulation_pipeline.jobs.record import write_epoch
from triangulation_pipeline.jobs.states import (
    JobRecord,
    get_job,
)
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.objects import StoredObject
from triangulation_pipeline.storage.tables import JobStatus, Stop, training_jobs
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.metrics import METRIC_COLUMNS, EpochMetrics

MakeJob = Callable[[], JobRecord]

ENDED_EARLY = {JobStatus.failed, JobStatus.cancelled, JobStatus.paused}


@dataclass(frozen=True)
class StandInRun:
    """A Dagster run, as jobs know one."""

    run_id: str
    is_finished: bool = False
    parent_run_id: str | None = None
    root_run_id: str | None = None


def metrics(epoch: int, /, **changes: Any) -> EpochMetrics:
    """Those of an epoch, each with a number of its own, but for the changes."""
    return EpochMetrics(**{"epoch": epoch} | {name: epoch + i / 16 for i, name in enumerate(METRIC_COLUMNS)} | changes)


def record(engine: Engine, job: JobRecord, epoch: int, /, **changes: Any) -> str | None:
    """Writes an epoch; changes are of its metrics, or of the other arguments."""
    rest = {
        "best_epoch": 1,
        "best_val_loss": 0.5,
        "state": StoredObject(f"/store/{epoch}", f"{epoch}" * 64),
    }
    others = {name: changes.pop(name) for name in rest.keys() & changes.keys()}
    return write_epoch(engine, job, metrics(epoch, **changes), **rest | others)


def again(engine: Engine, job: JobRecord, **changes) -> JobRecord:
    """Starts the same job once more."""
    same = {"job_id": job.id, "config": config_of(job), "synthetic_dataset_id": job.synthetic_dataset_id}
    return start_job(engine, **{**same, "run_id": str(uuid.uuid4()), **changes})


def config_of(job: JobRecord) -> TrainingConfig:
    """The settings that a job was begun with."""
    return TrainingConfig.model_validate(job.config)


def set_row(engine: Engine, job: JobRecord, **values: Any) -> JobRecord:
    """Writes into the job's row by hand."""
    with writing(engine) as connection:
        connection.execute(update(training_jobs).where(training_jobs.c.id == job.id).values(**values))
    return get_job(engine, job.id)


EARLIER = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = EARLIER + timedelta(days=3)
PAST_RUN, NEW_RUN = str(uuid.uuid4()), str(uuid.uuid4())


def with_a_past(engine: Engine, job: JobRecord, status: JobStatus) -> JobRecord:
    """The job in that state, each of its fields set, as by three epochs of an earlier try."""
    return set_row(
        engine,
        job,
        status=status,
        run_id=PAST_RUN,
        current_epoch=3,
        progress_percent=75.0,
        best_epoch=2,
        best_val_loss=0.5,
        train_loss=3.0,
        val_loss=3.25,
        val_rmse_m=3.5,
        state_location="/store/3",
        state_sha256="3" * 64,
        error_message="broke before",
        created_at=EARLIER,
        started_at=EARLIER,
        finished_at=EARLIER,
        stop_requested=Stop.pause,
        heartbeats=7,
    )


def announce(engine: Engine, job_id: str, status: JobStatus = JobStatus.queued) -> JobRecord:
    return announce_job(engine, job_id=job_id, status=status, config=TrainingConfig(job_name="test", epochs=2))


NOTHING_YET = dict.fromkeys(
    (
        "synthetic_dataset_id",
        "parent_job_id",
        "best_epoch",
        "best_val_loss",
        "train_loss",
        "val_loss",
        "val_rmse_m",
        "state_location",
        "state_sha256",
        "error_message",
        "started_at",
        "finished_at",
        "stop_requested",
    )
)
