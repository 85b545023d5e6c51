"""``triangulation jobs | metrics | datasets | models | evaluations``: the views of ``storage/views.py``."""

from collections.abc import Callable, Mapping
from typing import Any

import click

from triangulation_pipeline.cli.home import JOB_IS, get_job_named, json_option, open_engine, runs_here, sentences
from triangulation_pipeline.cli.tables import Row, ago, short, show_rows

Columns = Mapping[str, Callable[[Row], Any]]


@click.command()
@json_option
def jobs(as_json: bool) -> None:
    """List the training jobs, the newest first."""
    columns: Columns = {
        "job": lambda row: short(row["job_id"]),
        "name": lambda row: row["job_name"],
        "status": lambda row: row["status"],
        "epoch": epochs_done,
        "RMSE m": lambda row: tenths(row["val_rmse_m"]),
        "made": lambda row: ago(row["created_at"]),
    }
    _list("job_overview", as_json, columns, note=lambda row: row["error_message"])


@click.command(epilog=JOB_IS)
@click.argument("job")
@json_option
def metrics(job: str, as_json: bool) -> None:
    """List the epochs of a training job.

    Errors are on the validation rows; "good" are those of good geometry.
    """
    columns: Columns = {
        "epoch": lambda row: row["epoch"],
        "loss": lambda row: f"{row['train_loss']:.4f}",
        "val loss": lambda row: f"{row['val_loss']:.4f}",
        "RMSE m": lambda row: tenths(row["val_rmse_m"]),
        "good m": lambda row: tenths(row["val_rmse_good_geom_m"]),
        "p95 m": lambda row: tenths(row["val_distance_p95_m"]),
        "NEES": lambda row: tenths(row["val_nees"]),
        "95 %": lambda row: percent(row["val_coverage_95"]),
        "rate": lambda row: f"{row['learning_rate']:.3g}",
        "s": lambda row: tenths(row["epoch_seconds"]),
    }
    _list("epoch_overview", as_json, columns, job=job)


@click.command()
@json_option
def datasets(as_json: bool) -> None:
    """List the datasets, the newest first."""
    columns: Columns = {
        "dataset": lambda row: short(row["dataset_id"]),
        "name": lambda row: row["name"],
        "samples": lambda row: f"{row['num_samples']:,}",
        "jobs": lambda row: row["num_jobs"],
        "made": lambda row: ago(row["created_at"]),
    }
    _list("dataset_overview", as_json, columns)


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the registered models by name.

    The newest version comes first. Errors are on the test rows of good geometry. What the first column shows,
    name:version, may stand in a run config as parent_model_id.
    """
    columns: Columns = {
        "model": lambda row: f"{row['model_name']}:{row['version']}",
        "network": lambda row: row["network"],
        "production": lambda row: row["is_production"],
        "p50 m": lambda row: tenths(row["test_p50_good_geom_m"]),
        "p95 m": lambda row: tenths(row["test_p95_good_geom_m"]),
        "made": lambda row: ago(row["created_at"]),
    }
    _list("model_overview", as_json, columns, note=lambda row: row["promotion_reason"])


@click.command()
@json_option
def evaluations(as_json: bool) -> None:
    """List the evaluations, the newest first.

    Errors are on the test rows of good geometry.
    """
    columns: Columns = {
        "job": lambda row: short(row["job_id"]),
        "network": lambda row: row["network"],
        "passed": lambda row: row["passed"],
        "p50 m": lambda row: tenths(row["test_p50_good_geom_m"]),
        "p95 m": lambda row: tenths(row["test_p95_good_geom_m"]),
        "95 %": lambda row: percent(row["test_coverage_95_good_geom"]),
        "made": lambda row: ago(row["evaluated_at"]),
    }
    _list("evaluation_overview", as_json, columns, note=lambda row: row["verdict"])


def epochs_done(row: Row) -> str:
    """Of a row of ``job_overview``."""
    return f"{row['current_epoch']}/{row['total_epochs']}"


def tenths(value: float | None) -> str | None:
    """A number to one place behind the point, as errors in metres are read."""
    return None if value is None else f"{value:,.1f}"


def percent(share: float | None) -> str | None:
    """A share in percent, to one place behind the point."""
    return None if share is None else f"{100 * share:.1f}"


def _list(
    view_name: str,
    as_json: bool,
    columns: Columns,
    job: str | None = None,
    note: Callable[[Row], str | None] = lambda row: None,
) -> None:
    with sentences():
        engine = open_engine()
        from triangulation_pipeline.storage.views import VIEWS, read_view

        (view,) = (view for view in VIEWS if view.name == view_name)
        equal = {} if job is None else {"job_id": get_job_named(engine, job, runs_here).id}
        rows = read_view(engine, view, **equal)
    show_rows(rows, as_json, columns, note)
