"""Keeps jobs in step with their runs: announces jobs of runs that wait, and ends jobs whose worker is dead."""

import json
from collections.abc import Mapping

import dagster as dg
from sqlalchemy import Engine

from triangulation_pipeline.defs.config import settings_of
from triangulation_pipeline.defs.jobs import trains
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import OUTCOME_TAG, outcome_tags
from triangulation_pipeline.jobs.continuation import announce_job
from triangulation_pipeline.jobs.liveness import LOOK_EVERY_S, Seen, look, why_dead
from triangulation_pipeline.jobs.states import RUN_TERMINATED, JobRecord, cancel_job, fail_job, find_job
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.tables import JobStatus

_WAITING = {
    dg.DagsterRunStatus.NOT_STARTED: JobStatus.pending,
    dg.DagsterRunStatus.QUEUED: JobStatus.queued,
    dg.DagsterRunStatus.STARTING: JobStatus.queued,
}


@dg.sensor(
    minimum_interval_seconds=LOOK_EVERY_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keep it on. It launches nothing. It keeps training jobs in step with their runs: a job whose run "
    "waits is listed as queued, and a job whose worker died becomes failed, so that it can be resumed.",
)
def job_reconciler(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SkipReason:
    """One look at all unfinished jobs."""
    remembered = json.loads(context.cursor or "{}")
    seen: Seen = {job_id: (heartbeats, looks) for job_id, (heartbeats, looks) in remembered.items()}
    try:
        seen, done = reconcile(context.instance, storage.engine, seen)
    except (StorageError, ValueError) as error:
        return dg.SkipReason(str(error))
    context.update_cursor(json.dumps(seen))
    return dg.SkipReason("; ".join(done) or "every job agrees with its run")


def reconcile(
    instance: dg.DagsterInstance, engine: Engine, seen: Mapping[str, tuple[int, int]]
) -> tuple[Seen, list[str]]:
    """Announces jobs of runs that wait, and ends jobs whose worker is dead.

    ``seen`` is what the look before gave. Gives what the next look has to know, and what was done, one sentence per
    job.
    """
    done: list[str] = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=list(_WAITING))):
        done += _announce(engine, record.dagster_run)
    now_seen, found = look(engine, seen)
    for job, silent_s in found:
        try:
            done += _settle(instance, engine, job, silent_s)
        except IllegalTransition:
            continue  # it ended by itself meanwhile
    return now_seen, done


def _announce(engine: Engine, run: dg.DagsterRun) -> list[str]:
    """A job for a run that will train. A re-execution gets none: it finds the job of the run before it."""
    if not trains(run) or run.parent_run_id is not None:
        return []
    status, known = _WAITING[run.status], find_job(engine, run.run_id)
    if known is not None and (known.status, status) != (JobStatus.pending, JobStatus.queued):
        return []
    try:
        settings = settings_of(run.run_config).trained_model
    except ValueError:
        return []  # the run itself will fail with this error in its first second
    job = announce_job(engine, job_id=run.run_id, status=status, config=settings)
    return [f"job {job.id} is {job.status}"]


def _settle(instance: dg.DagsterInstance, engine: Engine, job: JobRecord, silent_s: float | None) -> list[str]:
    """Ends a job whose worker is dead, and its run if Dagster takes it for alive."""
    run = None if job.run_id is None else instance.get_run_by_id(job.run_id)
    if (why := why_dead(job, run, silent_s)) is None:
        return []
    if run is not None and run.status is dg.DagsterRunStatus.CANCELED:
        cancel_job(engine, job, RUN_TERMINATED)
        return [f"job {job.id} was cancelled with its run"]
    fail_job(engine, job, why)
    # The worker could not tag its run with this outcome; a run that already has an outcome keeps it.
    if run is not None and not run.is_success and run.tags.get(OUTCOME_TAG, "resumed") == "resumed":
        instance.add_run_tags(run.run_id, outcome_tags("failed", why))
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, f"job {job.id}: {why}")
    return [f"job {job.id} failed: {why}"]
