"""``triangulation metrics``: the epochs of one training job."""

import click

from triangulation_pipeline.cli.home import open_engine
from triangulation_pipeline.cli.instance import runs_here
from triangulation_pipeline.cli.job_argument import JOB_IS, get_job_named
from triangulation_pipeline.cli.options import json_option
from triangulation_pipeline.cli.tables import Columns, percent, show_rows, tenths
from triangulation_pipeline.storage.views import epoch_overview, read_view


@click.command(epilog=JOB_IS)
@click.argument("job")
@json_option
def metrics(job: str, as_json: bool) -> None:
    """List the epochs of a training job.

    Errors are on the validation rows. The column "good m" is of those with good geometry.
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
    engine = open_engine()
    found = get_job_named(engine, job, runs_here)
    show_rows(read_view(engine, epoch_overview, job_id=found.id), as_json, columns)
