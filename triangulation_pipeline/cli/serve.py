"""``triangulation ui`` and ``triangulation webserver``: Dagster's own programs, closed to foreign web pages."""

import click

from triangulation_pipeline.cli.home import use_home
from triangulation_pipeline.cli.options import Command
from triangulation_pipeline.webserver import run_dev, run_webserver


def _passes_on(command: Command) -> Command:
    """All options are Dagster's, ``--help`` among them."""
    return click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]")(command)


PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}


@click.command(context_settings=PASSED_ON)
@_passes_on
def ui(arguments: tuple[str, ...]) -> None:
    """Start Dagster's pages, daemon and code server: `dagster dev`, closed to foreign web pages."""
    use_home()
    run_dev(arguments)


@click.command(context_settings=PASSED_ON)
@_passes_on
def webserver(arguments: tuple[str, ...]) -> None:
    """Start the webserver alone: `dagster-webserver`, closed to foreign web pages."""
    use_home()
    run_webserver(arguments)
