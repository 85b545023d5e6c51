"""``triangulation watch``: a run's progress and its curve, live."""

import time

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from triangulation_pipeline.cli.curve import curve
from triangulation_pipeline.cli.home import open_engine
from triangulation_pipeline.cli.job_argument import JOB_IS, find_named
from triangulation_pipeline.cli.options import webserver_option
from triangulation_pipeline.cli.tables import plain
from triangulation_pipeline.client import Run, Webserver
from triangulation_pipeline.jobs.record import read_history
from triangulation_pipeline.jobs.states import JobRecord, find_job_of_run
from triangulation_pipeline.storage.views import model_overview, read_view

POLL_S = 1.0
CURVE_ROWS = 8
CURVE_COLUMNS = 80


@click.command(epilog=JOB_IS)
@click.argument("job")
@webserver_option
def watch(job: str, webserver: Webserver) -> None:
    """Follow a job to its end.

    It shows the epochs and the curve, and at the end whether the model was promoted and why. The exit code is 0 if the
    run succeeds, and 1 if it does not, with the reason. Ctrl-C does not stop the run.
    """
    engine = open_engine()
    found, run = find_named(engine, job, webserver.runs_named)
    if found is not None and (run is None or run.is_finished):
        run = latest_run(webserver, found)
    assert run is not None
    follow(engine, webserver, run.run_id, Console())


def latest_run(webserver: Webserver, job: JobRecord) -> Run:
    """The newest run of a job. Raises RunNotFound if Dagster does not know it."""
    return webserver.run(job.run_id or job.id)


def follow(engine: Engine, webserver: Webserver, run_id: str, console: Console) -> None:
    """Shows a run until it ends, with all epochs of its job, and then what became of the model.

    Raises ValueError with the reason if the run does not succeed.
    """
    cursor, failure, job, val_rmse_m = None, None, None, dict[int, float]()
    try:
        console.print(plain(f"run {run_id}"), soft_wrap=True)
        with Live(console=console, refresh_per_second=4) as live:
            while True:
                # The status is asked first: if the run has ended, the events that follow are complete.
                run, events = webserver.run(run_id), webserver.events(run_id, cursor)
                cursor, failure = events.cursor, failure or events.failure
                if job is None and (job := find_job_of_run(engine, run_id)) is not None:
                    # All epochs so far, also those of earlier runs: an epoch has its row before its event.
                    val_rmse_m = {metrics.epoch: metrics.val_rmse_m for metrics in read_history(engine, job.id)}
                total_epochs = None if job is None else job.total_epochs
                for epoch in events.epochs:
                    val_rmse_m[int(epoch["epoch"])] = epoch["val_rmse_m"]
                    live.console.print(plain(_line(epoch, total_epochs)), soft_wrap=True)
                live.update(_page(run.status, val_rmse_m, total_epochs, console.width))
                if run.is_finished:
                    break
                time.sleep(POLL_S)
        if not console.is_terminal:
            console.line()  # which Live leaves out there
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"run {run_id} continues; `triangulation watch {run_id}` shows it again") from None
    if run.status == "CANCELED":
        raise ValueError(f"run {run_id} was cancelled")
    if run.status != "SUCCESS":
        raise ValueError(failure or f"run {run_id} failed")
    console.print(plain(f"run {run_id} succeeded"), soft_wrap=True)
    for line in [] if job is None else verdict(engine, job.id):
        console.print(plain(line), soft_wrap=True)


def verdict(engine: Engine, job_id: str) -> list[str]:
    """What became of a job's model: its version, its errors, and whether it was promoted and why. The list is empty if
    no model is registered."""
    models = read_view(engine, model_overview, job_id=job_id)
    if not models:
        return []
    model = max(models, key=lambda row: row["created_at"])
    errors = ", ".join(
        f"{name} {model[column]:,.1f} m"
        for name, column in (
            ("median", "test_p50_good_geom_m"),
            ("p95", "test_p95_good_geom_m"),
            ("RMSE", "test_rmse_good_geom_m"),
        )
        if model[column] is not None
    )
    return [
        f"{model['model_name']}/{model['version']}" + (f": {errors} with good geometry" if errors else ""),
        model["promotion_reason"],
    ]


def _line(epoch: dict[str, float], total_epochs: int | None) -> str:
    done = f"epoch {epoch['epoch']:.0f}" + ("" if total_epochs is None else f"/{total_epochs}")
    return f"{done}: val RMSE {epoch['val_rmse_m']:,.1f} m, val loss {epoch['val_loss']:.4f}"


def _page(status: str, val_rmse_m: dict[int, float], total_epochs: int | None, width: int) -> Group:
    """The progress bar with the curve under it."""
    done = max(val_rmse_m, default=0)
    bar = Table.grid(padding=(0, 1))
    # Before the first epoch the bar only shows that the run is working.
    bar.add_row(
        plain(status),
        ProgressBar(total=total_epochs if done else None, completed=done, width=40, pulse=not done),
        f"epoch {done}/{total_epochs or '?'}" if done else "",
    )
    lines = curve(val_rmse_m, total_epochs or done, min(width, CURVE_COLUMNS), CURVE_ROWS)
    title = [Text("val RMSE, m (logarithmic), by epoch", style="dim")] if lines else []
    return Group(bar, *title, *(Text(line, no_wrap=True) for line in lines))
