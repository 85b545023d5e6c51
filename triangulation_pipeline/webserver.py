"""Dagster's webserver behind the gate: Dagster's own command, with two parts exchanged.

The webserver has no place to put a gate, so functions of Dagster's are exchanged by name: the one that makes the
webserver's application, and the one that reads the launchpad's text, so that it means there what it means to
``--config``. Dagster's version is pinned, and tests ask the running webserver.
"""

from collections.abc import Sequence
from typing import Any

from dagster_graphql.schema import runs
from dagster_webserver import cli
from yaml import YAMLError  # PyYAML's, which Dagster expects

from triangulation_pipeline.documents import parse_yaml
from triangulation_pipeline.gate import gated, read_hosts


def run_webserver(arguments: Sequence[str]) -> None:
    """Runs ``dagster-webserver`` with these arguments behind the gate, and ends the process with it.

    Raises ValueError if ``TRIANGULATION_WEBSERVER_HOSTS`` is wrong.
    """
    hosts = read_hosts()
    create = cli.create_app_from_workspace_process_context

    def create_gated(*args: Any, **kwargs: Any) -> Any:
        return gated(create(*args, **kwargs), hosts)

    cli.create_app_from_workspace_process_context = create_gated
    read_run_config_as_yaml_1_2()
    cli.dagster_webserver(list(arguments), prog_name="triangulation webserver", auto_envvar_prefix="DAGSTER_WEBSERVER")


def read_run_config_as_yaml_1_2() -> None:
    """Makes this process read the launchpad's text as the command line reads a file.

    Dagster's own reader takes YAML 1.1: ``012`` is 10 and ``1e-3`` a text, and of two equal keys the last counts,
    without a message.
    """
    runs.load_run_config_yaml = _run_config  # type: ignore[assignment] # an empty text is None


def _run_config(text: str) -> Any:
    """The run config of a text. Raises YAMLError with one sentence, which the launchpad shows."""
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise YAMLError(f"The run config is refused: {error}") from None
