"""The command line, ``triangulation``; its commands are in the files beside this one."""

import click

from triangulation_pipeline.cli.listing import datasets, evaluations, jobs, metrics, models
from triangulation_pipeline.cli.network import network
from triangulation_pipeline.cli.operate import cancel, launch, pause, promote, resume, rollback, status
from triangulation_pipeline.cli.run import run
from triangulation_pipeline.cli.watch import watch


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="triangulation-pipeline")
def main() -> None:
    """From the description of a receiver network to a registered, calibrated locator of transmitters."""


for command in (
    run,
    launch,
    status,
    watch,
    pause,
    cancel,
    resume,
    jobs,
    metrics,
    datasets,
    models,
    evaluations,
    promote,
    rollback,
    network,
):
    main.add_command(command)
