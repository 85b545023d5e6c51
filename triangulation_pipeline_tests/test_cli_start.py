"""The command line starts without what only some commands need."""

import subprocess
import sys

from triangulation_pipeline_tests.test_cli import triangulation

HEAVY = {"dagster", "torch", "sqlalchemy", "pandas", "scipy", "matplotlib", "requests"}


def test_help_imports_nothing_heavy() -> None:
    program = f"import sys, triangulation_pipeline.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command() -> None:
    shown = triangulation("--help").stdout
    assert shown.startswith("Usage: triangulation ")
    for name in ("run", "launch", "status", "watch", "pause", "cancel", "resume", "promote", "rollback"):
        assert f"\n  {name} " in shown
