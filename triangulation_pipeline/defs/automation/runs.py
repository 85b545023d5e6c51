"""What automatic runs have in common: their run config, and that none is launched while a training is under way."""

import logging
import os
from collections.abc import Callable
from typing import Any

import dagster as dg

from triangulation_pipeline.defs.automation.settings import read_automation_settings
from triangulation_pipeline.defs.config import RunSettings, check_whole_run_config, settings_of
from triangulation_pipeline.defs.dagster_private import NOT_FINISHED_STATUSES
from triangulation_pipeline.defs.jobs import train_locator, trains
from triangulation_pipeline.defs.run_config import read_run_config

log = logging.getLogger(__name__)

MINIMUM_INTERVAL_S = 30
RUN_CONFIG_VARIABLE = "TRIANGULATION_RUN_CONFIG"
"""A file of run config: what automatic runs train, on which network, and under which name it is registered."""
FORMER_VARIABLE = "TRIANGULATION_NETWORK_FILE"
"""The variable that named the network of automatic runs before they had a run config of their own."""


def automatic_run_config(job: dg.JobDefinition) -> tuple[dict[str, Any], RunSettings]:
    """The run config of automatic runs, read from its file now, and its settings.

    Raises ValueError with one sentence if it is no run config of that job, or if it names a dataset.
    """
    if os.environ.get(FORMER_VARIABLE):
        raise ValueError(
            f"{FORMER_VARIABLE} is no longer read: write 'ops: {{receiver_network: {{config: {{network_file: "
            f"mine.yaml}}}}}}' into a file, name that file by {RUN_CONFIG_VARIABLE}, and unset {FORMER_VARIABLE}"
        )
    path = read_automation_settings().run_config
    if path is None:
        return {}, settings_of({})
    try:
        run_config = read_run_config(path)
        # The machine of the runs may have a GPU that this one lacks.
        settings = check_whole_run_config(job, run_config, runs_here=False)
        if settings.synthetic_dataset.dataset_id:
            raise ValueError("synthetic_dataset: leave out dataset_id; automatic runs choose their dataset")
    except ValueError as error:
        raise ValueError(f"{RUN_CONFIG_VARIABLE}: {error}") from None
    return run_config, settings


def warn_of_wrong_run_config(job: Callable[[], dg.JobDefinition]) -> None:
    """Logs what is wrong with the run config of automatic runs. It is only a warning, as no other run depends on it."""
    if not any(os.environ.get(name) for name in (RUN_CONFIG_VARIABLE, FORMER_VARIABLE)):
        return
    try:
        automatic_run_config(job())
    except ValueError as error:
        log.warning("automatic runs will be skipped: %s", error)


def with_dataset(run_config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The run config with these settings of synthetic_dataset changed."""
    ops = run_config.get("ops") or {}
    step = ops.get("synthetic_dataset") or {}
    config = (step.get("config") or {}) | changes
    # A dataset that exists takes no settings of a simulation.
    config = {"dataset_id": config["dataset_id"]} if config.get("dataset_id") else config
    return run_config | {"ops": ops | {"synthetic_dataset": step | {"config": config}}}


def job_of(context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext) -> dg.JobDefinition:
    """The job ``train_locator`` of the code location that evaluates a sensor or the schedule."""
    repository = context.repository_def
    assert repository is not None, "Dagster evaluates sensors and schedules of a code location"
    return repository.get_job(train_locator.name)


def training_under_way(instance: dg.DagsterInstance, but_for: str | None = None) -> str | None:
    """One sentence on a run that trains, or will, and has not ended; None if there is none. The run with the run key
    ``but_for`` does not count."""
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        if but_for is not None and run.tags.get("dagster/run_key") == but_for:
            continue
        if trains(run):
            return f"run {run.run_id} trains a model ({run.status.value.lower()}): one at a time"
    return None
