"""The command line starts without what only some commands need."""

import subprocess
import sys

import pytest

from triangulation_pipeline.cli import COMMANDS, load_command, main
from triangulation_pipeline_tests.test_cli import triangulation

HEAVY = {"dagster", "torch", "sqlalchemy", "pandas", "pyarrow", "scipy", "matplotlib", "requests"}


def test_help_imports_nothing_heavy() -> None:
    program = f"import sys, triangulation_pipeline.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command() -> None:
    shown = triangulation("--help").stdout
    assert shown.startswith("Usage: triangulation ")
    for name in ("run", "launch", "status", "watch", "pause", "cancel", "resume", "promote", "rollback"):
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_shows_what_each_command_says_of_itself(name: str) -> None:
    assert main.commands[name].get_short_help_str() == load_command(name).get_short_help_str()
    assert load_command(name).name == name
