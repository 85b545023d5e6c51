"""Run config from a file, for the command line and for automatic runs. It is checked in ``config.py``."""

import re
from pathlib import Path
from typing import Any

from triangulation_pipeline.documents import file_name, parse_yaml, read_text
from triangulation_pipeline.validation import brief


def read_run_config(path: Path) -> dict[str, Any]:
    """Dagster run config from a YAML file. A relative ``network_file`` is first looked for beside that file.

    Raises ValueError with one sentence.
    """
    text = read_text(path)
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{file_name(path)}: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(
            f"{file_name(path)} must hold Dagster run config, as in 'ops: {{trained_model: {{config: {{epochs: 5}}}}}}'"
        )
    _use_file_beside(path, document)
    return document


def _use_file_beside(path: Path, run_config: dict[str, Any]) -> None:
    """Replaces the name of the network file by its absolute path if it lies beside the file of run config."""
    try:
        config = run_config["ops"]["receiver_network"]["config"]
        beside = path.absolute().parent / config["network_file"]
        is_there = beside.is_file()
    except (KeyError, TypeError, OSError):
        return  # no network file is named, or its reader will say what is wrong with it
    if is_there:
        config["network_file"] = str(beside)


def config_fault(message: str) -> str:
    """Dagster's message on a wrong setting, without the list of the whole schema and without a traceback."""
    message = " ".join(message[:50_000].split())
    if unset := re.match(r"Post processing at path (\S+) of original value \{'env': '(\w+)'\} failed", message):
        return f"{unset[1]}: the environment variable {unset[2]} is not set"
    return brief(re.split(r"[.:,]? Expected:? [\"'{]", message)[0])
