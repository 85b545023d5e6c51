"""Options that several commands have."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from triangulation_pipeline.validation import shown

Command = Callable[..., Any]

# Settings of a command whose options are all Dagster's, also ``--help``.
PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}


def passed_on_arguments(command: Command) -> Command:
    """All that follows the command's name, passed on as ``arguments``."""
    return click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]")(command)


def json_option(command: Command) -> Command:
    """``--json``, passed on as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, with whole ids and all columns.")(command)


def webserver_option(command: Command) -> Command:
    """``--url``, passed on as ``webserver``: a client of the webserver at that address."""

    def client_of(context: click.Context, option: click.Parameter, url: str | None) -> Any:
        # Commands that ask no webserver do not wait for what this imports.
        from triangulation_pipeline.client import Webserver

        return Webserver(url)

    return click.option(
        "--url",
        "webserver",
        metavar="URL",
        callback=client_of,
        help="Address of Dagster's webserver. The default is TRIANGULATION_WEBSERVER_URL, or http://localhost:3000.",
    )(command)


def config_option(command: Command) -> Command:
    """``--config``, passed on as ``config_file``."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
        help="File of Dagster run config in YAML. Settings that it leaves out keep their defaults.",
    )(command)


def set_option(command: Command) -> Command:
    """``--set``, passed on as ``settings``: parameters of the scenario for ``overrides_of``."""
    return click.option(
        "--set",
        "settings",
        metavar="NAME=VALUE",
        multiple=True,
        help="Change a parameter of the scenario, as in --set frequency_mhz=433. It can be given several times.",
    )(command)


def overrides_of(settings: tuple[str, ...]) -> dict[str, Any]:
    """The values of ``--set`` by parameter, for ``scenario_of``. Raises UsageError."""
    from triangulation_pipeline.physics.scenario import Scenario

    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes NAME=VALUE, got {shown(setting)}")
        if name not in Scenario.model_fields:
            close = difflib.get_close_matches(name, Scenario.model_fields, 1)
            raise click.UsageError(
                f"--set: the scenario has no parameter {shown(name)}" + (f"; meant {close[0]}?" if close else "")
            )
        overrides[name] = value.split(",") if name.startswith("tx_power") else value
    return overrides
