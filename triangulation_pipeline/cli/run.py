"""``triangulation run``: the whole graph in this process."""

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import click
import dagster as dg
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import Engine

from triangulation_pipeline.cli.home import use_home
from triangulation_pipeline.cli.instance import open_instance, runs_here
from triangulation_pipeline.cli.job_argument import JOB_IS, get_job_named
from triangulation_pipeline.cli.options import config_option, json_option
from triangulation_pipeline.cli.tables import plain, say, short, show_json
from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.config import check_whole_run_config, settings_of
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_config import read_run_config
from triangulation_pipeline.defs.run_tags import first_failure, run_tags
from triangulation_pipeline.evaluation.estimators import BEST_FIRST
from triangulation_pipeline.evaluation.summary import Evaluation
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
from triangulation_pipeline.storage.evaluations import get_evaluation
from triangulation_pipeline.storage.registry import get_model_of_job
from triangulation_pipeline.storage.tables import JobStatus
from triangulation_pipeline.storage.views import evaluation_overview, read_view

BOUND_NOTE = (
    "The bound is of estimators that know nothing beforehand. Its RMSE is ruled by a few rows of the worst geometry, "
    "and can lie above that of a model, which knows the area."
)


@click.command(epilog=JOB_IS)
@config_option
@click.option("--resume", "resumed", metavar="JOB", help="Go on with a job that did not finish.")
@json_option
def run(config_file: Path | None, resumed: str | None, as_json: bool) -> None:
    """Run the whole graph in this process.

    It makes the network, the dataset and its splits, trains and evaluates a model, and registers it. Ctrl-C and SIGTERM
    stop it with exit code 130; what its epochs left is kept, and --resume goes on from there.
    """
    if config_file is not None and resumed is not None:
        raise click.UsageError("--resume goes on with the job's own settings: leave out --config")
    # Also where a script has started it with `&`, and interrupts were ignored.
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
            with _undisturbed(sys.stderr if as_json else sys.stdout) as console:
                if job is None:
                    _materialize(instance, run_config, job_id, console)
                else:
                    job_id = _resume(instance, storage, job, console)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_stopped(storage.engine, job_id)) from None
    results = _results(storage, job_id)
    if as_json:
        show_json(results)
    else:
        show_results(Console(), results)
        say("In Dagster (`make ui`) it is listed under Runs.")


@contextmanager
def _undisturbed(stream: TextIO) -> Iterator[Console]:
    """A console on what the stream goes to, while nothing else is written to standard output and error.

    Within a run Dagster points both at its compute logs, where rich would see no terminal, and has child processes copy
    those to where both pointed before: beside a progress bar, and at Ctrl-C with tracebacks of their own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors=stream.errors) as file:
        try:
            for number in kept:
                os.dup2(nowhere, number)
            yield Console(file=file)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)
            os.close(nowhere)


def _stopped(engine: Engine, job_id: str) -> str:
    """What an interrupted run leaves, and how to go on."""
    if (job := find_job(engine, job_id)) is None:
        return "stopped before it trained; the same command begins again"
    if job.status in WAITING:
        cancel_job(engine, job, f"{RUN_TERMINATED} before it trained")
    again = f"`triangulation run --resume {short(job.id)}`"
    if job.status is JobStatus.completed:
        return f"stopped after the training; {again} goes on with the evaluation"
    return f"stopped at epoch {job.current_epoch} of {job.total_epochs}; {again} goes on from there"


def _materialize(instance: dg.DagsterInstance, run_config: Mapping[str, Any], run_id: str, console: Console) -> None:
    """Runs the whole graph in this process. Raises ValueError with a failed step's sentence, and KeyboardInterrupt."""
    # Dagster's own lines go to the run's log, as ever; the terminal gets ours.
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

    Raises ValueError if the job is at work, if its run is not known here or has succeeded, and with the sentence of a
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
            raise ValueError(f"job {job.id} is running, its worker is alive; `triangulation pause {job.id}` stops it")
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
    """Raises KeyboardInterrupt where the run was interrupted, and ValueError with a failed step's sentence."""
    if result.success:
        return
    for event in result.all_events:
        # To Dagster an interrupt is one more failure.
        reason = event.job_failure_data.failure_reason if event.is_job_failure else None
        if reason is not None and reason.value == "UNEXPECTED_TERMINATION":
            raise KeyboardInterrupt
    raise ValueError(_failure(result))


def _failure(result: Any) -> str:
    found = first_failure(result.all_events)
    return f"run {result.run_id} failed" if found is None else found[1]


class _ProgressHandler(logging.Handler):
    """Prints our log lines above the bar and moves the bar with the epochs."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self.progress = progress
        self.task = progress.add_task("working", total=None)

    def emit(self, record: logging.LogRecord) -> None:
        console = self.progress.console
        # Where nobody reads it any more, as in `triangulation run | head`, the run goes on.
        with suppress(OSError, SystemExit), _undivided():
            console.print(plain(record.getMessage()), soft_wrap=not console.is_terminal)
        if hasattr(record, "current_epoch") and hasattr(record, "total_epochs"):
            self.progress.update(
                self.task, description="training", completed=record.current_epoch, total=record.total_epochs
            )
        else:
            self.progress.update(self.task, description="working", completed=0, total=None)


@contextmanager
def _undivided() -> Iterator[None]:
    """Interrupts that come meanwhile come at its end: rich shows a line twice whose writing is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for arrived in came:
            signal.raise_signal(arrived)


@contextmanager
def progress_on(console: Console) -> Iterator[None]:
    """Shows this package's log lines and a bar that moves with the epochs, while it is entered."""
    logger = logging.getLogger("triangulation_pipeline")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # What steps print belongs into the compute logs.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar as progress:
        handler = _ProgressHandler(progress)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def _results(storage: Any, run_id: str) -> dict[str, Any]:
    """What the final page shows."""
    model = get_model_of_job(storage.engine, run_id)
    newest, *_ = read_view(storage.engine, evaluation_overview, job_id=run_id)
    found = Evaluation.model_validate(get_evaluation(storage.engine, newest["evaluation_id"]).metrics)
    return {
        "model_name": model.model_name,
        "version": model.version,
        "network": model.network,
        "network_digest": model.network_digest,
        "promoted": model.promoted,
        "promotion_reason": model.promotion_reason,
        "job_id": run_id,
        "dataset_id": model.synthetic_dataset_id,
        "metrics": model.metrics,
        "test_rows": found.all.rows,
        "test_rows_good_geom": found.good_geometry.rows,
        "max_gdop": found.max_gdop,
        "checkpoint": model.pytorch_model_location,
        "sha256": model.sha256,
        "database": storage.engine.url.render_as_string(hide_password=True),
        "object_store": str(storage.settings.object_store),
    }


def show_results(console: Console, results: Mapping[str, Any]) -> None:
    """The final page."""
    values = results["metrics"]

    def cells(*names: str | None) -> list[str]:
        """Of each number that on all rows and that on those of good geometry; empty where there is none."""
        both = [None if name is None else f"{name}{subset}_m" for name in names for subset in ("", "_good_geom")]
        found = [None if name is None else values[name] for name in both]
        return ["" if value is None else f"{value:,.0f}" if value >= 10_000 else f"{value:,.1f}" for value in found]

    page = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    page.add_column("error, m")
    for head in ("median", "p95", "RMSE"):
        page.add_column(f"{head}\nall", justify="right")
        page.add_column("\ngood", justify="right")
    oracles = []
    for estimator in BEST_FIRST:
        if any(shown := cells(*(f"{estimator.prefix}_{statistic}" for statistic in ("p50", "p95", "rmse")))):
            page.add_row(estimator.label + ("" if estimator.knows is None else " *"), *shown)
            oracles += [] if estimator.knows is None else [f"* an oracle, for comparison: it knows {estimator.knows}"]
    page.add_row("Cramér-Rao bound", *cells("crlb_p50", None, "crlb_rms"))
    rows, good_rows = results["test_rows"], results["test_rows_good_geom"]
    told = [
        *oracles,
        f"all: {rows:,} test rows; good: the {good_rows:,} of them with GDOP < {results['max_gdop']:g}",
        f"95 % ellipse covers {_share(values['test_coverage_95'])} of all, "
        f"{_share(values['test_coverage_95_good_geom'])} of the good ones",
        BOUND_NOTE,
    ]
    if missing := values["huber_gauss_newton_rows_without_fix"]:
        of_good = values["huber_gauss_newton_rows_without_fix_good_geom"]
        told.insert(len(oracles) + 1, f"without a Gauss-Newton fix: {missing:,} of all, {of_good:,} of the good ones")
    console.print()
    console.print(plain(f"{results['model_name']} version {results['version']}"), soft_wrap=True)
    console.print()
    console.print(page)
    console.print()
    for line in (*told, results["promotion_reason"]):
        console.print(plain(line), soft_wrap=not console.is_terminal)
    for label in ("network", "checkpoint", "database", "object_store", "job_id"):
        console.print(plain(f"{label.replace('_', ' '):13} {results[label]}"), soft_wrap=True)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"
