"""The argument JOB, by which commands name a training job or a run."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from triangulation_pipeline.client import WebserverError
from triangulation_pipeline.jobs.states import JobRecord, list_jobs
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.validation import shown

SHORTEST_PREFIX = 4
JOB_IS = f"JOB is the id of a job or of one of its runs, or the first {SHORTEST_PREFIX} or more characters of it."


def find_named(
    engine: Engine, name: str, runs_named: Callable[[str], list[Any]]
) -> tuple[JobRecord | None, Any | None]:
    """The job that ``name`` identifies: by its own id, by the id of one of its runs, or by the beginning of either.

    Second comes the run with that id, if the database does not know the id; such a run may have a job or none.
    ``runs_named`` gives Dagster's runs whose ids have that beginning.
    Raises ValueError if the name is too short or ambiguous, and StorageError if there is no such job and no such run.
    """
    prefix = name.strip().lower()
    if len(prefix) < SHORTEST_PREFIX:
        raise ValueError(
            f"JOB must be the id of a job or run, or the first {SHORTEST_PREFIX} or more characters of it, "
            f"got {shown(name)}"
        )
    jobs = {job.id: job for job in list_jobs(engine)}
    ids = {job.id for job in jobs.values() if any(known.startswith(prefix) for known in (job.id, job.run_id or ""))}
    runs = []
    if not ids:
        try:
            runs = runs_named(prefix)
        except WebserverError as error:
            raise StorageError(
                f"there is no training job {shown(name)}, and runs cannot be looked up: {error}"
            ) from None
        ids = {run.root_run_id if run.root_run_id in jobs else run.run_id for run in runs}
    if not ids:
        raise StorageError(f"there is no training job and no run {shown(name)}")
    if len(ids) > 1:
        some = ", ".join(sorted(ids)[:3])
        raise ValueError(f"{name} is the beginning of {len(ids)} ids ({some}); give more characters")
    return jobs.get(ids.pop()), runs[0] if len(runs) == 1 else None


def get_job_named(engine: Engine, name: str, runs_named: Callable[[str], list[Any]]) -> JobRecord:
    """The job, as ``find_named`` finds it. Raises StorageError also if there is only a run without a job."""
    job, run = find_named(engine, name, runs_named)
    if job is None:
        assert run is not None
        raise StorageError(f"run {run.run_id} has no training job: it has not reached its training")
    return job
