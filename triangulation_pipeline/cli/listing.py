"""``triangulation jobs | metrics | datasets | models | evaluations``: the views of ``storage/views.py``."""

from collections.abc import Sequence

import click

from triangulation_pipeline.cli.home import get_job_named, json_option, open_engine, runs_here, sentences
from triangulation_pipeline.cli.tables import show_rows


@click.command()
@json_option
def jobs(as_json: bool) -> None:
    """The training jobs, newest first."""
    _list(
        "job_overview",
        as_json,
        ("job_id", "job_name", "status", "current_epoch", "total_epochs", "val_rmse_m", "created_at", "error_message"),
    )


@click.command()
@click.argument("job")
@json_option
def metrics(job: str, as_json: bool) -> None:
    """The epochs of the training job JOB: the id of the job or of one of its runs, or the beginning of one."""
    shown = (
        "epoch",
        "train_loss",
        "val_loss",
        "val_rmse_m",
        "val_rmse_good_geom_m",
        "val_distance_p95_m",
        "val_nees",
        "val_coverage_95",
        "learning_rate",
        "epoch_seconds",
    )
    _list("epoch_overview", as_json, shown, job=job)


@click.command()
@json_option
def datasets(as_json: bool) -> None:
    """The datasets, newest first."""
    _list(
        "dataset_overview",
        as_json,
        ("dataset_id", "name", "num_samples", "train_count", "val_count", "test_count", "num_jobs", "created_at"),
    )


@click.command()
@json_option
def models(as_json: bool) -> None:
    """The registered models by name, the newest version first."""
    shown = (
        "model_name",
        "version",
        "network",
        "is_production",
        "promoted",
        "epoch",
        "test_rmse_m",
        "test_rmse_good_geom_m",
        "created_at",
        "job_id",
    )
    _list("model_overview", as_json, shown)


@click.command()
@json_option
def evaluations(as_json: bool) -> None:
    """The evaluations, newest first."""
    shown = (
        "job_id",
        "network",
        "epoch",
        "passed",
        "test_rmse_m",
        "test_rmse_good_geom_m",
        "test_p95_good_geom_m",
        "test_coverage_95_good_geom",
        "evaluated_at",
    )
    _list("evaluation_overview", as_json, shown)


def _list(view_name: str, as_json: bool, shown: Sequence[str], job: str | None = None) -> None:
    with sentences():
        engine = open_engine()
        from triangulation_pipeline.storage.views import VIEWS, read_view

        (view,) = (view for view in VIEWS if view.name == view_name)
        equal = {} if job is None else {"job_id": get_job_named(engine, job, runs_here).id}
        rows = read_view(engine, view, **equal)
    show_rows(rows, as_json, shown)
