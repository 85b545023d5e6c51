"""The command line, ``triangulation``; its commands are in the files beside this one."""

import click

from triangulation_pipeline.cli import listing, network, operate, run, serve, watch


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="triangulation-pipeline")
def main() -> None:
    """From the description of a receiver network to a registered, calibrated locator of transmitters."""


for command in (
    run.run,
    serve.ui,
    serve.webserver,
    operate.launch,
    operate.status,
    watch.watch,
    operate.pause,
    operate.cancel,
    operate.resume,
    listing.jobs,
    listing.metrics,
    listing.datasets,
    listing.models,
    listing.evaluations,
    operate.promote,
    operate.rollback,
    network.network,
):
    main.add_command(command)
