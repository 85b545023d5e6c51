"""The schedule that launches a training by the clock. It is off until somebody turns it on."""

from datetime import UTC

import dagster as dg

from triangulation_pipeline.defs.automation.runs import automatic_run_config, job_of, training_under_way, with_dataset
from triangulation_pipeline.defs.automation.settings import AutomationSettings
from triangulation_pipeline.defs.jobs import train_locator
from triangulation_pipeline.defs.run_tags import REASON_TAG, run_tags


def make_periodic_retraining(settings: AutomationSettings) -> dg.ScheduleDefinition:
    """The schedule with the cron and the time zone of these settings."""
    declare = dg.schedule(
        name="periodic_retraining",
        job=train_locator,
        cron_schedule=settings.retrain_cron,
        execution_timezone=settings.retrain_timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Launches a training by the clock (TRIANGULATION_RETRAIN_CRON, TRIANGULATION_RETRAIN_TIMEZONE) on "
        "a dataset simulated with a new seed, with the settings of the file TRIANGULATION_RUN_CONFIG. It launches none "
        "while a training is queued or in progress.",
    )
    return declare(_retraining)


def _retraining(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One training. The seed of its dataset is the scheduled minute."""
    # In UTC no minute occurs twice.
    minute = context.scheduled_execution_time.astimezone(UTC)
    run_key = f"scheduled:{minute.isoformat()}"
    # If the daemon is killed after it made the run and before it queued it, it asks again and continues with that run.
    if busy := training_under_way(context.instance, but_for=run_key):
        return dg.SkipReason(busy)
    try:
        run_config, settings = automatic_run_config(job_of(context))
        network = settings.network
    except ValueError as error:
        return dg.SkipReason(str(error))
    return dg.RunRequest(
        run_key=run_key,
        run_config=with_dataset(run_config, seed=int(f"{minute:%Y%m%d%H%M}")),
        tags=run_tags(settings, network) | {REASON_TAG: f"scheduled for {minute:%Y-%m-%d %H:%M} UTC"},
    )
