"""``triangulation run``: the whole graph in this process."""

import signal
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import dagster as dg
from rich.console import Console
from sqlalchemy import Engine

from triangulation_pipeline.cli.home import use_home
from triangulation_pipeline.cli.instance import open_instance, runs_here
from triangulation_pipeline.cli.job_argument import JOB_IS, get_job_named
from triangulation_pipeline.cli.options import config_option, json_option
from triangulation_pipeline.cli.progress import only_console, progress_on
from triangulation_pipeline.cli.results import results_of, show_results
from triangulation_pipeline.cli.tables import say, short, show_json
from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.config import check_whole_run_config, settings_of
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_config import read_run_config
from triangulation_pipeline.defs.run_tags import first_failure, run_tags
from triangulation_pipeline.jobs.continuation import requeue_job
from triangulation_pipeline.jobs.liveness import WORKER_DIED, listen, why_dead
from triangulation_pipeline.jobs.states import (
    RESUMABLE,
    RUN_TERMINATED,
    WAITING,
    JobRecord,
    cancel_job,
    fail_job,
    find_job,
    find_job_of_run,
)
from triangulation_pipeline.storage.tables import JobStatus


@click.command(epilog=JOB_IS)
@config_option
@click.option("--resume", "resumed", metavar="JOB", help="Continue a job that did not finish.")
@json_option
def run(config_file: Path | None, resumed: str | None, as_json: bool) -> None:
    """Run the whole graph in this process.

    It makes the network, the dataset and its splits, trains and evaluates a model, and registers it. Ctrl-C and SIGTERM
    stop it with exit code 130; its complete epochs are kept, and --resume continues from there.
    """
    if config_file is not None and resumed is not None:
        raise click.UsageError("--resume continues with the job's own settings: leave out --config")
    # A process that a script starts with `&` ignores interrupts; this makes it stop too.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    run_config = {} if config_file is None else read_run_config(config_file)
    use_home()
    check_whole_run_config(train_locator_job(), run_config)
    storage = Storage()
    storage.open()
    with open_instance() as instance:
        job = None if resumed is None else get_job_named(storage.engine, resumed, runs_here)
        job_id = str(uuid.uuid4()) if job is None else job.id
        try:
            with only_console(sys.stderr if as_json else sys.stdout) as console:
                if job is None:
                    _materialize(instance, run_config, job_id, console)
                else:
                    job_id = _resume(instance, storage, job, console)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_stopped(storage.engine, job_id)) from None
    results = results_of(storage, job_id)
    if as_json:
        show_json(results)
    else:
        show_results(Console(), results)
        say("In Dagster (`make ui`) it is listed under Runs.")


def _stopped(engine: Engine, job_id: str) -> str:
    """What an interrupted run leaves, and how to continue it."""
    if (job := find_job(engine, job_id)) is None:
        return "stopped before it trained; the same command begins again"
    if job.status in WAITING:
        cancel_job(engine, job, f"{RUN_TERMINATED} before it trained")
    again = f"`triangulation run --resume {short(job.id)}`"
    if job.status is JobStatus.completed:
        return f"stopped after the training; {again} goes on with the evaluation"
    return f"stopped at epoch {job.current_epoch} of {job.total_epochs}; {again} goes on from there"


def _materialize(instance: dg.DagsterInstance, run_config: Mapping[str, Any], run_id: str, console: Console) -> None:
    """Runs the whole graph in this process. Raises ValueError with the sentence of a step that fails, and
    KeyboardInterrupt if it is interrupted."""
    # Dagster's own lines still go to the log of the run; the terminal shows ours.
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with progress_on(console):
        result = train_locator_job().execute_in_process(
            instance=instance,
            run_config={**quiet, **run_config},
            tags=run_tags(settings_of(run_config)),
            raise_on_error=False,
            run_id=run_id,
        )
    _check_success(result)


def _resume(instance: dg.DagsterInstance, storage: Storage, job: JobRecord, console: Console) -> str:
    """Continues in this process what the job's last run did not finish; gives the job's id.

    Raises ValueError if the job is running, if its run is not known here or has succeeded, and with the sentence of a
    step that fails; StorageError if the job cannot be resumed; and KeyboardInterrupt.
    """
    last = instance.get_run_by_id(job.run_id or job.id)
    if last is None:
        raise ValueError(f"job {job.id} was trained by run {job.run_id}, which this DAGSTER_HOME does not know")
    if last.is_success:
        raise ValueError(f"job {job.id} is {job.status}, and its run has succeeded: there is nothing left to do")
    # The daemon ends the runs that it launched, and tries them again. Of a run in a terminal only its worker knows.
    if not last.is_finished and (last.remote_job_origin is not None or job.status in WAITING):
        raise ValueError(f"job {job.id} is {job.status}, and run {last.run_id} works on it, or will do so")
    if job.status is JobStatus.running:
        why = why_dead(job, last) or why_dead(job, last, listen(storage.engine, job))
        if why is None:
            raise ValueError(
                f"job {job.id} is running and its worker is alive; `triangulation pause {job.id}` stops it"
            )
        job = fail_job(storage.engine, job, why)
    if not last.is_finished:
        instance.report_run_failed(last, WORKER_DIED)
    if job.status in RESUMABLE:
        requeue_job(storage.engine, job)
    options = dg.ReexecutionOptions.from_failure(last.run_id, instance)
    with (
        progress_on(console),
        dg.execute_job(dg.reconstructable(train_locator_job), instance, reexecution_options=options) as result,
    ):
        _check_success(result)
        again = find_job_of_run(storage.engine, result.run_id)
    return job.id if again is None else again.id


def _check_success(result: Any) -> None:
    """Raises KeyboardInterrupt if the run was interrupted, and ValueError with the sentence of a step that failed."""
    if result.success:
        return
    for event in result.all_events:
        # Dagster treats an interrupt as a failure.
        reason = event.job_failure_data.failure_reason if event.is_job_failure else None
        if reason is not None and reason.value == "UNEXPECTED_TERMINATION":
            raise KeyboardInterrupt
    raise ValueError(_failure(result))


def _failure(result: Any) -> str:
    found = first_failure(result.all_events)
    return f"run {result.run_id} failed" if found is None else found[1]
