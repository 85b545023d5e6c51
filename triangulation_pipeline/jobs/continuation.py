"""Which job a run trains: one that was announced for it, one that an earlier run left unfinished, or a new one."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from triangulation_pipeline.jobs.states import (
    REACHED_FROM,
    RESUMABLE,
    WAITING,
    JobRecord,
    change_job,
    existing_job,
    insert_job,
    job_or_none,
)
from triangulation_pipeline.storage.columns import checked_json, now
from triangulation_pipeline.storage.engine import in_one_transaction, writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.tables import JobStatus, synthetic_datasets, training_jobs
from triangulation_pipeline.validation import uuid_text


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
        job = job_or_none(connection, job_id)
        if job is None:
            values = {"job_name": job_name, "description": description, "config": config, "total_epochs": total_epochs}
            insert_job(connection, job_id, job_id, status, values)
        elif (job.status, status) == (JobStatus.pending, JobStatus.queued):
            change_job(connection, job, JobStatus.queued)
        return existing_job(connection, job_id)

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
            existing_job(connection, parent_id)
        values = {
            "job_name": job_name,
            "description": description,
            "config": config,
            "synthetic_dataset_id": dataset_id,
            "parent_job_id": parent_id,
            "total_epochs": total_epochs,
        }
        job = job_or_none(connection, job_id)
        if job is None:
            insert_job(connection, job_id, run_id, JobStatus.running, values | {"started_at": now()})
            return existing_job(connection, job_id)
        if job.started_at is not None:  # what was only announced may differ in what only the run could know
            if job.config != config or job.synthetic_dataset_id != dataset_id:
                raise ValueError(f"job {job_id} exists with another configuration or dataset; start a new job")
            values = {}
        if job.status in RESUMABLE and job.run_id == run_id:
            raise IllegalTransition(f"job {job_id} was {job.status} before run {run_id} began to train; resume it")
        if job.status in REACHED_FROM[JobStatus.queued]:
            change_job(connection, job, JobStatus.queued)
        cleared = {"error_message": None, "finished_at": None, "stop_requested": None}
        change_job(connection, job, JobStatus.running, run_id=run_id, started_at=now(), **values, **cleared)
        return existing_job(connection, job_id)

    return in_one_transaction(engine, start)


def requeue_job(engine: Engine, job: JobRecord) -> JobRecord:
    """Marks a job that ended early as queued, before a run is launched to resume it: of two that resume, one is
    refused. Raises IllegalTransition where it cannot be resumed."""
    with writing(engine) as connection:
        change_job(connection, job, JobStatus.queued, finished_at=None, stop_requested=None)
        return existing_job(connection, job.id)


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
        return existing_job(connection, job.id)


def continues(job: JobRecord, config: Mapping[str, Any], synthetic_dataset_id: str) -> bool:
    """Whether a run with these settings does what the job was announced for, or goes on with what it began."""
    if job.status not in RESUMABLE | WAITING:
        return False
    return job.started_at is None or (job.config == config and job.synthetic_dataset_id == synthetic_dataset_id)
