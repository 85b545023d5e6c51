"""What launches runs by itself, each off until somebody turns it on: two sensors, a schedule, and the conditions under
which a model trained by hand is evaluated and registered.

Nothing is launched twice: a run key names what a run is for, a cursor what was seen, and Dagster keeps both over a
restart of its daemon. While a training is queued or in progress, none is launched.
"""

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from triangulation_pipeline.defs.config import (
    model_name_of,
    network_file_of,
    network_of,
    network_path,
    resolve_run_config,
)
from triangulation_pipeline.defs.dagster_private import NOT_FINISHED_STATUSES, is_valid_cron_string
from triangulation_pipeline.defs.jobs import train_locator, trains
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_config import read_run_config
from triangulation_pipeline.defs.run_tags import REASON_TAG, run_tags
from triangulation_pipeline.storage.datasets import list_untrained_datasets
from triangulation_pipeline.storage.registry import find_production_model
from triangulation_pipeline.storage.settings import dagster_home
from triangulation_pipeline.validation import expanded, printable, shown

log = logging.getLogger(__name__)

MINIMUM_INTERVAL_S = 30
RUN_CONFIG_VARIABLE = "TRIANGULATION_RUN_CONFIG"
"""A file of run config: what automatic runs train, on which network, and under which name it is registered."""
FORMER_VARIABLE = "TRIANGULATION_NETWORK_FILE"
"""What named the network of automatic runs before there was a run config of theirs."""


class AutomationSettings(BaseSettings):
    """``TRIANGULATION_RUN_CONFIG``, ``TRIANGULATION_RETRAIN_CRON`` and ``TRIANGULATION_RETRAIN_TIMEZONE``; made by
    ``read_automation_settings``."""

    model_config = SettingsConfigDict(env_prefix="TRIANGULATION_", env_ignore_empty=True, frozen=True)

    run_config: Path | None = Field(
        None,
        description="Automatic runs take their settings from this file of run config. A relative path is resolved "
        "against DAGSTER_HOME. Unset = every setting has its default.",
    )
    retrain_cron: str = Field(
        "0 3 * * 0", description="The schedule periodic_retraining launches at these times, five cron fields."
    )
    retrain_timezone: str = Field(
        "UTC", description="The times of retrain_cron are those of this time zone, as in Europe/Rome."
    )

    @field_validator("run_config")
    @classmethod
    def _is_seen_from_home(cls, value: Path | None) -> Path | None:
        return None if value is None else dagster_home() / expanded(value)

    @field_validator("retrain_cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        if not is_valid_cron_string(value):
            raise ValueError(f"must be five cron fields, as in '0 3 * * 0' (Sundays at 3:00), got {shown(value)}")
        return value

    @field_validator("retrain_timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError):
            raise ValueError(f"must be the name of a time zone, as in Europe/Rome, got {shown(value)}") from None
        return value


def read_automation_settings() -> AutomationSettings:
    """The settings of this process's environment. Raises ValueError with one sentence naming each variable that is
    wrong."""
    try:
        return AutomationSettings()
    except ValidationError as error:
        faults = (
            f"TRIANGULATION_{str(item['loc'][0]).upper()} {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False)
        )
        raise ValueError("; ".join(faults)) from None


def automatic_run_config(job: dg.JobDefinition) -> dict[str, Any]:
    """The run config of automatic runs, as it is in its file now. Raises ValueError with one sentence where it is not
    one of that job, or leaves no dataset to choose."""
    if os.environ.get(FORMER_VARIABLE):
        raise ValueError(
            f"{FORMER_VARIABLE} is no longer read: write 'ops: {{receiver_network: {{config: {{network_file: "
            f"mine.yaml}}}}}}' into a file, name that file by {RUN_CONFIG_VARIABLE}, and unset {FORMER_VARIABLE}"
        )
    path = read_automation_settings().run_config
    if path is None:
        return {}
    try:
        run_config = read_run_config(path)
        # Where the runs will be may have a GPU that this process has not.
        settings = resolve_run_config(job, run_config, runs_here=False)
        if settings["ops"]["synthetic_dataset"]["config"].get("dataset_id"):
            raise ValueError("synthetic_dataset: leave out dataset_id; automatic runs choose their dataset")
    except ValueError as error:
        raise ValueError(f"{RUN_CONFIG_VARIABLE}: {error}") from None
    return run_config


def warn_of_wrong_run_config(job: Callable[[], dg.JobDefinition]) -> None:
    """Logs what is wrong with the run config of automatic runs, if anything is: at load nothing else depends on it."""
    if not any(os.environ.get(name) for name in (RUN_CONFIG_VARIABLE, FORMER_VARIABLE)):
        return
    try:
        automatic_run_config(job())
    except ValueError as error:
        log.warning("automatic runs will be skipped: %s", error)


def _with_dataset(run_config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The run config with these settings of synthetic_dataset beside those that it has."""
    ops = run_config.get("ops") or {}
    step = ops.get("synthetic_dataset") or {}
    config = (step.get("config") or {}) | changes
    # What was simulated already is not told how to be.
    config = {"dataset_id": config["dataset_id"]} if config.get("dataset_id") else config
    return run_config | {"ops": ops | {"synthetic_dataset": step | {"config": config}}}


def _job(context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext) -> dg.JobDefinition:
    repository = context.repository_def
    assert repository is not None, "Dagster evaluates sensors and schedules of a code location"
    return repository.get_job(train_locator.name)


def training_under_way(instance: dg.DagsterInstance, but_for: str | None = None) -> str | None:
    """None, or one sentence on a run that trains, or will, and has not ended, but for that of a run key."""
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        if but_for is not None and run.tags.get("dagster/run_key") == but_for:
            continue
        if trains(run):
            return f"run {run.run_id} trains a model ({run.status.value.lower()}): one at a time"
    return None


@dg.sensor(
    job=train_locator,
    minimum_interval_seconds=MINIMUM_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Launches a training on each dataset that was written, or expanded, after this was turned on, that no "
    "run has trained on, and that is of the network of automatic runs. These take their settings from the file "
    "TRIANGULATION_RUN_CONFIG.",
)
def new_dataset(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult | dg.SkipReason:
    """One look at the datasets without a training."""
    # The datasets first: one that a training made is seen only while its run is under way, or has its job.
    untrained = list_untrained_datasets(storage.engine)
    if not context.cursor:
        return dg.SensorResult(
            skip_reason=f"from now on: datasets without a training that exist are left alone ({len(untrained)})",
            cursor=json.dumps([dataset.id for dataset in untrained]),
        )
    if busy := training_under_way(context.instance):
        return dg.SkipReason(busy)
    try:
        run_config = automatic_run_config(_job(context))
        network = network_of(run_config)
    except ValueError as error:
        return dg.SkipReason(str(error))
    known = set(json.loads(context.cursor)) & {dataset.id for dataset in untrained}
    new = [dataset for dataset in untrained if dataset.id not in known]
    of_network = [dataset for dataset in new if dataset.network_digest == network.digest]
    if not of_network:
        others = ", ".join(printable(f"{dataset.name} of {dataset.network_name}") for dataset in new)
        return dg.SkipReason(
            f"new datasets are of another network than {network.name} ({network.digest[:8]}): {others}"
            if new
            else "there is no new dataset"
        )
    dataset = of_network[0]
    run_config = _with_dataset(run_config, dataset_id=dataset.id)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"dataset:{dataset.id}",
                run_config=run_config,
                tags=run_tags(run_config, network) | {REASON_TAG: f"new dataset {printable(dataset.name)}"},
            )
        ],
        # Of those with a training since nothing need be remembered: they are no longer asked for.
        cursor=json.dumps(sorted(known | {dataset.id})),
    )


@dg.sensor(
    job=train_locator,
    minimum_interval_seconds=MINIMUM_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Launches a training when the network file that TRIANGULATION_RUN_CONFIG names (network_file of "
    "receiver_network) has changed; when first turned on, where the model in production is for another network. The "
    "first model of a new network is not promoted by itself.",
)
def network_file_changed(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult | dg.SkipReason:
    """One look at the file."""
    try:
        run_config = automatic_run_config(_job(context))
        name = network_file_of(run_config)
        if not name:
            return dg.SkipReason(
                f"{RUN_CONFIG_VARIABLE} names no network_file of receiver_network: automatic runs train on the default "
                "network, which does not change"
            )
        # The time before the content: a file replaced in between has a newer time at most.
        modified_ns = network_path(name).stat().st_mtime_ns
        network = network_of(run_config)
    except ValueError as error:
        return dg.SkipReason(str(error))
    except OSError as error:
        return dg.SkipReason(f"the network file cannot be read: {error.strerror}")
    before = context.cursor
    if not before:
        production = find_production_model(storage.engine, model_name_of(run_config))
        before = network.digest if production is None else production.network_digest
    if before == network.digest:
        return dg.SensorResult(skip_reason=f"{network.name} ({before[:8]}) has not changed", cursor=before)
    if busy := training_under_way(context.instance):
        return dg.SkipReason(busy)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                # With its time, as a file may be changed, and changed back.
                run_key=f"network:{network.digest}:{modified_ns}",
                run_config=run_config,
                tags=run_tags(run_config, network)
                | {REASON_TAG: f"network {printable(network.name)} is {network.digest[:8]}, was {before[:8]}"},
            )
        ],
        cursor=network.digest,
    )


_settings = read_automation_settings()


@dg.schedule(
    job=train_locator,
    cron_schedule=_settings.retrain_cron,
    execution_timezone=_settings.retrain_timezone,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Launches a training by the clock (TRIANGULATION_RETRAIN_CRON, TRIANGULATION_RETRAIN_TIMEZONE) on a "
    "dataset simulated with a new seed, with the settings of the file TRIANGULATION_RUN_CONFIG; left out while a "
    "training is queued or in progress.",
)
def periodic_retraining(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One training; its seed is the scheduled minute."""
    # In UTC no minute comes twice.
    minute = context.scheduled_execution_time.astimezone(UTC)
    run_key = f"scheduled:{minute.isoformat()}"
    # A daemon that was killed between making the run and queueing it asks anew, and goes on with it.
    if busy := training_under_way(context.instance, but_for=run_key):
        return dg.SkipReason(busy)
    try:
        run_config = automatic_run_config(_job(context))
        network = network_of(run_config)
    except ValueError as error:
        return dg.SkipReason(str(error))
    run_config = _with_dataset(run_config, seed=int(f"{minute:%Y%m%d%H%M}"))
    return dg.RunRequest(
        run_key=run_key,
        run_config=run_config,
        tags=run_tags(run_config, network) | {REASON_TAG: f"scheduled for {minute:%Y-%m-%d %H:%M} UTC"},
    )


# The splits are not looked at: a new dataset alone makes no evaluation of a model that was trained on another.
AFTER_TRAINED_MODEL = (
    dg.AutomationCondition.eager().ignore(dg.AssetSelection.assets("training_split", "test_split"))
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
)

evaluate_and_register = dg.AutomationConditionSensorDefinition(
    "evaluate_and_register",
    target=dg.AssetSelection.assets("model_evaluation", "registered_model"),
    minimum_interval_seconds=MINIMUM_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    run_tags={REASON_TAG: "trained_model was materialised alone"},
    description="Launches model_evaluation and registered_model after trained_model was materialised alone and its "
    "check has passed, with their default settings: the model is registered as rf-triangulation.",
)
