"""``triangulation webserver``: ``dagster-webserver``, closed to foreign web pages."""

import click

from triangulation_pipeline.cli.home import use_home
from triangulation_pipeline.cli.options import PASSED_ON, passed_on_arguments
from triangulation_pipeline.webserver import run_webserver


@click.command(context_settings=PASSED_ON)
@passed_on_arguments
def webserver(arguments: tuple[str, ...]) -> None:
    """Start the webserver alone.

    It is `dagster-webserver`, takes the same options, and is closed to foreign web pages.
    """
    use_home()
    run_webserver(arguments)
