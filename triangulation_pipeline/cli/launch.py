"""``triangulation launch``: a run of the whole graph by Dagster's webserver."""

from pathlib import Path

import click
from rich.console import Console

from triangulation_pipeline.cli.home import open_engine
from triangulation_pipeline.cli.options import config_option, json_option, webserver_option
from triangulation_pipeline.cli.tables import say, show_json
from triangulation_pipeline.cli.watch import follow
from triangulation_pipeline.client import Webserver
from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.config import check_whole_run_config
from triangulation_pipeline.defs.run_config import read_run_config
from triangulation_pipeline.defs.run_tags import run_tags
from triangulation_pipeline.jobs.continuation import announce_job
from triangulation_pipeline.storage.tables import JobStatus


@click.command()
@config_option
@click.option("--watch", "watched", is_flag=True, help="Follow the run to its end, as `triangulation watch` does.")
@json_option
@webserver_option
def launch(config_file: Path | None, watched: bool, as_json: bool, webserver: Webserver) -> None:
    """Launch a run of the whole graph.

    The settings are checked, then Dagster's webserver launches the run. Its id is printed.
    """
    run_config = {} if config_file is None else read_run_config(config_file)
    engine = open_engine()
    settings = check_whole_run_config(train_locator_job(), run_config, runs_here=False)
    run = webserver.launch(run_config, run_tags(settings, settings.network))
    job = announce_job(engine, job_id=run.run_id, status=JobStatus.queued, config=settings.trained_model)
    if as_json:
        show_json({"run_id": run.run_id, "job_id": job.id})
    elif not watched:
        say(run.run_id)
    if watched:
        follow(engine, webserver, run.run_id, Console(stderr=as_json))
