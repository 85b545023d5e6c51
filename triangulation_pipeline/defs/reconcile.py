"""Jobs whose runs are not what their rows say: announced where they wait, ended where their worker died."""

import json
from collections.abc import Mapping

import dagster as dg
from sqlalchemy import Engine

from triangulation_pipeline.defs.config import settings_of
from triangulation_pipeline.defs.jobs import trains
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import OUTCOME_TAG, outcome_tags
from triangulation_pipeline.jobs.continuation import announce_job
from triangulation_pipeline.jobs.states import UNFINISHED, JobRecord, cancel_job, fail_job, find_job, list_jobs
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.tables import JobStatus

INTERVAL_S = 30
# A worker beats every second; one that is silent for so many looks is dead, whatever any clock says.
SILENT_LOOKS = 4

# What is remembered of a job from look to look: its heartbeats, and how many looks they have not risen for.
Seen = dict[str, tuple[int, int]]

_WAITING = {
    dg.DagsterRunStatus.NOT_STARTED: JobStatus.pending,
    dg.DagsterRunStatus.QUEUED: JobStatus.queued,
    dg.DagsterRunStatus.STARTING: JobStatus.queued,
}


@dg.sensor(
    minimum_interval_seconds=INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Has to stay on. Launches nothing; it keeps training jobs in step with their runs: a job whose run "
    "waits is listed as queued, a job whose worker died without a word becomes failed and can be resumed.",
)
def job_reconciler(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SkipReason:
    """One look at all unfinished jobs."""
    seen: Seen = {job_id: (beats, looks) for job_id, (beats, looks) in json.loads(context.cursor or "{}").items()}
    try:
        seen, done = reconcile(context.instance, storage.engine, seen)
    except (StorageError, ValueError) as error:
        return dg.SkipReason(str(error))
    context.update_cursor(json.dumps(seen))
    return dg.SkipReason("; ".join(done) or "every job is what its row says")


def reconcile(
    instance: dg.DagsterInstance, engine: Engine, seen: Mapping[str, tuple[int, int]]
) -> tuple[Seen, list[str]]:
    """Announces jobs of runs that wait and ends jobs whose run has ended or whose worker is dead.

    ``seen`` is what the look before gave. Gives what the next look has to know, and what was done, a sentence each.
    """
    done: list[str] = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=list(_WAITING))):
        done += _announce(engine, record.dagster_run)
    now_seen: Seen = {}
    # While another process holds SQLite's lock no worker can beat: a look counts when the lock can be had.
    with writing(engine):
        pass
    for job in list_jobs(engine, *UNFINISHED):
        beats, looks = seen.get(job.id, (job.heartbeats, -1))
        now_seen[job.id] = (job.heartbeats, looks + 1 if beats == job.heartbeats else 0)
        try:
            done += _settle(instance, engine, job, silent=now_seen[job.id][1] >= SILENT_LOOKS)
        except IllegalTransition:
            continue  # it ended on its own account meanwhile
    return now_seen, done


def _announce(engine: Engine, run: dg.DagsterRun) -> list[str]:
    """A row for a run that will train; a re-execution finds the row of the run before it when it begins."""
    if not trains(run) or run.parent_run_id is not None:
        return []
    status, known = _WAITING[run.status], find_job(engine, run.run_id)
    if known is not None and (known.status, status) != (JobStatus.pending, JobStatus.queued):
        return []
    try:
        settings = settings_of(run.run_config).trained_model
    except ValueError:
        return []  # the run will say so itself, in its first second
    job = announce_job(
        engine,
        job_id=run.run_id,
        status=status,
        job_name=settings.job_name,
        description=settings.description,
        config=settings.model_dump(mode="json"),
        total_epochs=settings.epochs,
    )
    return [f"job {job.id} is {job.status}"]


def _settle(instance: dg.DagsterInstance, engine: Engine, job: JobRecord, *, silent: bool) -> list[str]:
    run = None if job.run_id is None else instance.get_run_by_id(job.run_id)
    if run is not None and run.is_finished and job.started_at is None:
        told = f"its run {run.run_id} ended before it trained"
    # One that is to be resumed is queued before the run that will do so is there.
    elif run is not None and run.is_finished and (job.status is JobStatus.running or silent):
        told = f"its run {run.run_id} ended without a word of it: the worker died"
    elif silent and run is None and job.status is not JobStatus.running:
        told = f"Dagster knows its run {job.run_id} no more"
    elif silent and job.status is JobStatus.running:
        told = f"no sign of life from its worker for {SILENT_LOOKS * INTERVAL_S} s"
    else:
        return []
    if run is not None and run.status is dg.DagsterRunStatus.CANCELED:
        cancel_job(engine, job, "the run was terminated")
        return [f"job {job.id} was cancelled with its run"]
    fail_job(engine, job, told)
    # It could not say so itself, where it did not.
    if run is not None and not run.is_success and run.tags.get(OUTCOME_TAG, "resumed") == "resumed":
        instance.add_run_tags(run.run_id, outcome_tags("failed", told))
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, f"job {job.id}: {told}")
    return [f"job {job.id} failed: {told}"]
