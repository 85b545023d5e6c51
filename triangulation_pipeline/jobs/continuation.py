"""Which job a run trains: one that was announced for it, one that an earlier run left unfinished, or a new one."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from triangulation_pipeline.jobs.liveness import why_dead
from triangulation_pipeline.jobs.states import (
    REACHED_FROM,
    RESUMABLE,
    WAITING,
    JobRecord,
    Run,
    change_job,
    existing_job,
    fail_job,
    find_job,
    find_job_of_run,
    get_job,
    insert_job,
    job_or_none,
)
from triangulation_pipeline.storage.columns import now
from triangulation_pipeline.storage.engine import in_one_transaction, writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.registry import find_referred_model
from triangulation_pipeline.storage.tables import JobStatus, synthetic_datasets, training_jobs
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.validation import uuid_text


def announce_job(engine: Engine, *, job_id: str, status: JobStatus, config: TrainingConfig) -> JobRecord:
    """Makes a pending or queued job for a Dagster run that has not begun to train. A job that exists is left unchanged,
    except that a pending one becomes queued if ``status`` says so.

    Raises ValueError for another ``status``.
    """
    job_id = uuid_text("job_id", job_id)
    if status not in WAITING:
        raise ValueError(f"status must be pending or queued, got {status}")

    def announce(connection: Connection) -> JobRecord:
        job = job_or_none(connection, job_id)
        if job is None:
            insert_job(connection, job_id, job_id, status, _columns(config))
        elif (job.status, status) == (JobStatus.pending, JobStatus.queued):
            change_job(connection, job, JobStatus.queued)
        return existing_job(connection, job_id)

    return in_one_transaction(engine, announce)


def begin_job(
    engine: Engine,
    run: Run,
    config: TrainingConfig,
    synthetic_dataset_id: str,
    *,
    find_run: Callable[[str], Run | None],
    unseen_run_ids: Iterable[str | None],
) -> JobRecord:
    """The job that a run trains, marked as running: the one that was announced for the run, or the one that the run
    before it left unfinished, if that is the same training; otherwise a new one.

    It is a completed job, unchanged, if Dagster has not seen the end of the training: the worker died after it had
    completed the job. ``unseen_run_ids`` are the runs of that kind among this run and those that it re-executes.
    ``find_run`` gives Dagster's run of an id.

    Raises ValueError if the run was launched to resume a job that is another training, and what ``start_job`` raises.
    """
    earlier = earlier_job(engine, run)
    if (
        earlier is not None
        and earlier.status is JobStatus.completed
        and _is_same_training(earlier, config, synthetic_dataset_id)
        and earlier.run_id in unseen_run_ids
    ):
        return earlier
    if earlier is not None and earlier.status is JobStatus.running:
        why = why_dead(earlier, None if earlier.run_id is None else find_run(earlier.run_id))
        if why is not None:
            with suppress(IllegalTransition):  # somebody else was faster
                fail_job(engine, earlier, why)
        earlier = get_job(engine, earlier.id)
    is_continued = earlier is not None and continues(earlier, config, synthetic_dataset_id)
    if earlier is not None and earlier.status is JobStatus.queued and not is_continued:
        told = f"job {earlier.id} was begun with other settings or another dataset, and cannot be resumed with these"
        fail_job(engine, earlier, told)
        raise ValueError(f"{told}; launch a new run")
    return start_job(
        engine,
        job_id=earlier.id if earlier is not None and is_continued else run.run_id,
        run_id=run.run_id,
        config=config,
        synthetic_dataset_id=synthetic_dataset_id,
        parent_job_id=None if earlier is None or is_continued else earlier.id,
    )


def earlier_job(engine: Engine, run: Run) -> JobRecord | None:
    """The job that was announced for a run, or the job of the run that it re-executes; None if there is none."""
    if (announced := find_job_of_run(engine, run.run_id)) is not None:
        return announced
    if run.parent_run_id is None or run.root_run_id is None:
        return None
    return find_job_of_run(engine, run.parent_run_id) or find_job(engine, run.root_run_id)


def with_parent_id(engine: Engine, run: Run, config: TrainingConfig) -> TrainingConfig:
    """The config with the id of the registered model that its ``parent_model_id`` refers to. If the run continues a
    job, it is the model that the job began from: a name may refer to a newer version by now.

    Raises StorageError if there is no such model.
    """
    if config.registered_parent is None:
        return config
    earlier = earlier_job(engine, run)
    is_begun = earlier is not None and earlier.started_at is not None
    known_id = earlier.config.get("parent_model_id") if earlier is not None and is_begun else None
    model = find_referred_model(engine, config.registered_parent, known_id)
    return config.model_copy(update={"parent_model_id": model.id})


def continues(job: JobRecord, config: TrainingConfig, synthetic_dataset_id: str) -> bool:
    """Whether a run with these settings and this dataset may take the job: it waits or ended early, and if it has begun
    to train, it is the same training."""
    if job.status not in RESUMABLE | WAITING:
        return False
    return job.started_at is None or _is_same_training(job, config, synthetic_dataset_id)


def start_job(
    engine: Engine,
    *,
    job_id: str,
    run_id: str,
    config: TrainingConfig,
    synthetic_dataset_id: str,
    parent_job_id: str | None = None,
) -> JobRecord:
    """Marks a job as running in a Dagster run: a new job, one that was announced, or one that ended early and is
    continued by another run.

    A job that is continued keeps what its epochs recorded; their rows are replaced if they are trained again. Raises
    IllegalTransition if the job is running or completed, or if it ended early and this is still the same run (the job
    was cancelled before the run began to train). Raises StorageError if the dataset or the parent job does not exist,
    and ValueError if the job was begun with another configuration or dataset.
    """
    job_id, run_id = uuid_text("job_id", job_id), uuid_text("run_id", run_id)
    dataset_id = uuid_text("synthetic_dataset_id", synthetic_dataset_id)
    parent_id = None if parent_job_id is None else uuid_text("parent_job_id", parent_job_id)

    def start(connection: Connection) -> JobRecord:
        if connection.scalar(select(synthetic_datasets.c.id).where(synthetic_datasets.c.id == dataset_id)) is None:
            raise StorageError(f"there is no dataset {dataset_id} for job {job_id} to train on")
        if parent_id is not None:
            existing_job(connection, parent_id)
        values = _columns(config) | {"synthetic_dataset_id": dataset_id, "parent_job_id": parent_id}
        job = job_or_none(connection, job_id)
        if job is None:
            insert_job(connection, job_id, run_id, JobStatus.running, values | {"started_at": now()})
            return existing_job(connection, job_id)
        if job.started_at is not None:  # a job that was only announced may differ in what only the run could know
            if not _is_same_training(job, config, dataset_id):
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


def resume_job(engine: Engine, job: JobRecord, launch: Callable[[], str]) -> str:
    """Queues a job that ended early, launches the run that will continue it, and gives that run's id.

    ``launch`` launches the run and gives its id; if it fails, so does the job, and its error is raised. Raises
    IllegalTransition if the job cannot be resumed.
    """
    queued = requeue_job(engine, job)
    try:
        run_id = launch()
    except Exception as error:
        fail_job(engine, queued, f"resume failed: {error}")
        raise
    assign_run(engine, queued, run_id)
    return run_id


def requeue_job(engine: Engine, job: JobRecord) -> JobRecord:
    """Marks a job that ended early as queued, before a run is launched to continue it: if two resume the same job, one
    of them is refused. Raises IllegalTransition if the job cannot be resumed."""
    with writing(engine) as connection:
        change_job(connection, job, JobStatus.queued, finished_at=None, stop_requested=None)
        return existing_job(connection, job.id)


def assign_run(engine: Engine, job: JobRecord, run_id: str) -> JobRecord:
    """Writes down which run will continue a queued job. It is also written if the job was cancelled meanwhile, so that
    the run is refused when it begins to train. A job that has begun to train is left unchanged."""
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


def _columns(config: TrainingConfig) -> dict[str, Any]:
    """The columns of a job that its configuration decides."""
    return {
        "job_name": config.job_name,
        "description": config.description,
        "config": config.model_dump(mode="json"),
        "total_epochs": config.epochs,
    }


def _is_same_training(job: JobRecord, config: TrainingConfig, synthetic_dataset_id: str) -> bool:
    return (job.config, job.synthetic_dataset_id) == (config.model_dump(mode="json"), synthetic_dataset_id)
