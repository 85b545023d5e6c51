"""Run config of the command line, checked before a run is made of it."""

from collections.abc import Mapping
from typing import Any

from triangulation_pipeline.cli.home import JOB


def check(run_config: Mapping[str, Any], *, runs_here: bool = True) -> dict[str, Any]:
    """The run config with its defaults filled in. Raises ValueError where it is bad."""
    from triangulation_pipeline.definitions import defs
    from triangulation_pipeline.defs import run_config as room

    return room.check(defs.resolve_job_def(JOB), run_config, runs_here=runs_here)
