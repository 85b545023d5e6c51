"""``triangulation ui``: ``dagster dev``, closed to foreign web pages."""

import click

from triangulation_pipeline.cli.home import use_home
from triangulation_pipeline.cli.options import PASSED_ON, passed_on_arguments
from triangulation_pipeline.ui import run_dev


@click.command(context_settings=PASSED_ON)
@passed_on_arguments
def ui(arguments: tuple[str, ...]) -> None:
    """Start Dagster's pages and daemon.

    It is `dagster dev` with its code server, takes the same options, and is closed to foreign web pages.
    """
    use_home()
    run_dev(arguments)
