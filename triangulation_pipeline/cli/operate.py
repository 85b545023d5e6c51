"""``triangulation status | pause | cancel | resume``.

Runs are Dagster's and reached by its webserver; jobs are rows of the database.
"""

import time
from contextlib import suppress
from typing import Any

import click
from sqlalchemy import Engine

from triangulation_pipeline.cli.home import open_engine
from triangulation_pipeline.cli.job_argument import JOB_IS, find_named, get_job_named
from triangulation_pipeline.cli.options import json_option, webserver_option
from triangulation_pipeline.cli.tables import Columns, epochs_done, say, short, show_json, show_rows, tenths
from triangulation_pipeline.cli.watch import latest_run
from triangulation_pipeline.client import Run, RunNotFound, Webserver, WebserverError
from triangulation_pipeline.jobs.continuation import resume_job
from triangulation_pipeline.jobs.states import (
    RESUMABLE,
    UNFINISHED,
    JobRecord,
    get_job,
    list_jobs,
    request_stop,
)
from triangulation_pipeline.storage.tables import JobStatus, Stop
from triangulation_pipeline.storage.views import job_overview, read_view

WAIT_POLL_S = 1.0

wait_option = click.option("--wait", is_flag=True, help="Wait until the job has stopped.")


@click.command(epilog=JOB_IS)
@click.argument("job", required=False)
@json_option
@webserver_option
def status(job: str | None, as_json: bool, webserver: Webserver) -> None:
    """Show the state of jobs.

    It shows JOB, or without JOB all jobs that wait or train, each with the status of its run in Dagster.
    """
    engine = open_engine()
    webserver.check()
    found = list_jobs(engine, *UNFINISHED) if job is None else [get_job_named(engine, job, webserver.runs_named)]
    rows = [_standing(engine, webserver, record) for record in found]
    if job is not None and as_json:
        show_json(rows[0])
        return
    columns: Columns = {
        "job": lambda row: short(row["job_id"]),
        "name": lambda row: row["job_name"],
        "status": lambda row: row["status"] + (f", {row['stop_requested']} asked" if row["stop_requested"] else ""),
        "run": lambda row: row["run_status"],
        "epoch": epochs_done,
        "RMSE m": lambda row: tenths(row["val_rmse_m"]),
    }
    show_rows(rows, as_json, columns, note=lambda row: row["error_message"])


@click.command(epilog=JOB_IS)
@click.argument("job")
@wait_option
@webserver_option
def pause(job: str, wait: bool, webserver: Webserver) -> None:
    """Pause a job that trains.

    It stops at its next batch and keeps its last epoch; `triangulation resume` continues from there.
    """
    engine = open_engine()
    found = get_job_named(engine, job, webserver.runs_named)
    if found.status is JobStatus.paused:
        say(f"job {found.id} is already paused")
    else:
        request_stop(engine, found.id, Stop.pause)
        say(f"job {found.id} pauses at its next batch")
    if wait:
        _wait(engine, webserver, found, JobStatus.paused)


@click.command(epilog=JOB_IS)
@click.argument("job")
@wait_option
@webserver_option
def cancel(job: str, wait: bool, webserver: Webserver) -> None:
    """Cancel a job.

    It stops at its next batch, or at once if it does not train yet. JOB may also be a run that has no job.
    """
    engine = open_engine()
    found, run = find_named(engine, job, webserver.runs_named)
    if found is None:
        assert run is not None
        webserver.terminate(run.run_id)
        say(f"run {run.run_id} is cancelled")
        if wait:
            _wait_for_run(webserver, run.run_id)
        return
    if found.status not in UNFINISHED and (again := _runs_again(webserver, found)):
        # A person executed its run again from Dagster's pages, and that run does not train yet.
        for run in again:
            webserver.terminate(run.run_id)
            say(f"run {run.run_id} is cancelled")
            if wait:
                _wait_for_run(webserver, run.run_id)
        return
    if found.status is JobStatus.cancelled:
        say(f"job {found.id} is already cancelled")
    elif request_stop(engine, found.id, Stop.cancel).status is JobStatus.cancelled:
        # It did not train yet. Its run would be refused at its training; a run that executes that one again would not,
        # and would train.
        try:
            for run in [*_latest_runs(webserver, found), *_runs_again(webserver, found)]:
                webserver.terminate(run.run_id)
                if wait:
                    _wait_for_run(webserver, run.run_id)
        except WebserverError as error:
            raise ValueError(f"job {found.id} is cancelled, but its run was not stopped: {error}") from None
        say(f"job {found.id} is cancelled")
    else:
        say(f"job {found.id} is cancelled at its next batch")
    if wait:
        _wait(engine, webserver, found, JobStatus.cancelled)


@click.command(epilog=JOB_IS)
@click.argument("job")
@json_option
@webserver_option
def resume(job: str, as_json: bool, webserver: Webserver) -> None:
    """Continue a job that stopped.

    A job that failed, was cancelled or was paused continues after its last epoch, in a new run.
    """
    engine = open_engine()
    found = get_job_named(engine, job, webserver.runs_named)
    run = webserver.run(found.run_id or found.id)
    if found.status not in RESUMABLE:
        raise ValueError(f"job {found.id} is {found.status}; only a failed, cancelled or paused job can be resumed")
    if not run.is_finished:
        raise ValueError(f"job {found.id} is {found.status}, but its run is still {run.status}; try again")
    if again := _runs_again(webserver, found):
        raise ValueError(f"job {found.id} is already resumed by run {again[0].run_id}")
    run_id = resume_job(engine, found, lambda: webserver.reexecute(run).run_id)
    if as_json:
        show_json({"job_id": found.id, "run_id": run_id})
    else:
        say(f"job {short(found.id)} continues in run {short(run_id)}")


def _latest_runs(webserver: Webserver, job: JobRecord) -> list[Run]:
    """The newest run of a job, in a list; the list is empty if that run has ended or Dagster no longer knows it."""
    try:
        run = latest_run(webserver, job)
    except RunNotFound:
        return []
    return [] if run.is_finished else [run]


def _runs_again(webserver: Webserver, job: JobRecord) -> list[Run]:
    """The runs that were launched to continue a job that has ended, and have not reached its training yet."""
    return [run for run in webserver.reexecutions(job.run_id or job.id) if not run.is_finished]


def _standing(engine: Engine, webserver: Webserver, job: JobRecord) -> dict[str, Any]:
    """The job's row of ``job_overview``, with its run's ``run_status`` in Dagster."""
    (row,) = read_view(engine, job_overview, job_id=job.id)
    try:
        return row | {"run_status": latest_run(webserver, job).status}
    except RunNotFound:
        return row | {"run_status": None}


def _wait(engine: Engine, webserver: Webserver, job: JobRecord, wanted: str) -> None:
    """Waits until a job and its run have ended. Raises ValueError if the job did not end in the state ``wanted``.

    ``job`` is the record from before it was asked to stop.
    """
    while (status := get_job(engine, job.id).status) in UNFINISHED:
        time.sleep(WAIT_POLL_S)
    with suppress(RunNotFound):
        _wait_for_run(webserver, latest_run(webserver, job).run_id)
    if status != wanted:
        raise ValueError(f"job {job.id} is {status}, and not {wanted}")
    say(f"job {job.id} has stopped")


def _wait_for_run(webserver: Webserver, run_id: str) -> None:
    while not webserver.run(run_id).is_finished:
        time.sleep(WAIT_POLL_S)
