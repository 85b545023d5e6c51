"""The environment variables of automatic runs."""

from pathlib import Path
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from triangulation_pipeline.defs.dagster_private import is_valid_cron_string
from triangulation_pipeline.storage.settings import dagster_home
from triangulation_pipeline.validation import expanded, shown


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
    def _is_resolved_against_home(cls, value: Path | None) -> Path | None:
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
    """The settings of this process's environment.

    Raises ValueError with one sentence that names each wrong variable.
    """
    try:
        return AutomationSettings()
    except ValidationError as error:
        faults = (
            f"TRIANGULATION_{str(item['loc'][0]).upper()} {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False)
        )
        raise ValueError("; ".join(faults)) from None
