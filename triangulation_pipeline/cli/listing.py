"""``triangulation jobs | datasets | models | evaluations | calibrations``: the views of ``storage/views.py``."""

from typing import Any

import click

from triangulation_pipeline.cli.home import open_engine
from triangulation_pipeline.cli.options import json_option
from triangulation_pipeline.cli.tables import Columns, ago, epochs_done, percent, short, show_rows, tenths
from triangulation_pipeline.storage.views import (
    calibration_overview,
    dataset_overview,
    evaluation_overview,
    job_overview,
    model_overview,
    read_view,
)


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
    show_rows(read_view(open_engine(), job_overview), as_json, columns, note=lambda row: row["error_message"])


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
    show_rows(read_view(open_engine(), dataset_overview), as_json, columns)


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the registered models by name.

    The newest version comes first. Errors are on the test rows of good geometry. The first column is what a
    model is called: `triangulation locate --model` takes it, and a run config as parent_model_id.
    """
    columns: Columns = {
        "model": lambda row: f"{row['model_name']}/{row['version']}",
        "network": lambda row: row["network"],
        "production": lambda row: row["is_production"],
        "p50 m": lambda row: tenths(row["test_p50_good_geom_m"]),
        "p95 m": lambda row: tenths(row["test_p95_good_geom_m"]),
        "made": lambda row: ago(row["created_at"]),
    }
    show_rows(read_view(open_engine(), model_overview), as_json, columns, note=lambda row: row["promotion_reason"])


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
    show_rows(read_view(open_engine(), evaluation_overview), as_json, columns, note=lambda row: row["verdict"])


@click.command()
@json_option
def calibrations(as_json: bool) -> None:
    """List the calibrations, the newest first.

    `triangulation locate --calibration stored/ID` takes one of them. With --json there is a row for each site.
    """
    rows = read_view(open_engine(), calibration_overview)
    if not as_json:
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            summed = found.setdefault(row["calibration_id"], row | {"num_rows": 0, "num_sites": 0})
            summed["num_rows"] += row["num_rows"]
            summed["num_sites"] += 1
        rows = list(found.values())
    columns: Columns = {
        "calibration": lambda row: f"stored/{short(row['calibration_id'])}",
        "network": lambda row: row["network"],
        "sites": lambda row: row["num_sites"],
        "rows": lambda row: f"{row['num_rows']:,}",
        "made": lambda row: ago(row["created_at"]),
    }
    show_rows(rows, as_json, columns)
