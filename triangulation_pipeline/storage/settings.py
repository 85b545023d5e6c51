"""Where data is stored. It is set by environment variables only."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from triangulation_pipeline.storage.engine import parse_url
from triangulation_pipeline.storage.objects import S3Location, parse_s3_url
from triangulation_pipeline.validation import expanded


def dagster_home() -> Path:
    """The folder that relative paths are resolved against: ``DAGSTER_HOME``, or the current folder. It is absolute.

    Raises ValueError if the variable begins with the name of a user who does not exist.
    """
    return expanded(os.environ.get("DAGSTER_HOME", ".")).absolute()


class Settings(BaseSettings):
    """``TRIANGULATION_DATABASE_URL`` and ``TRIANGULATION_OBJECT_STORE``; made by ``read_settings``."""

    model_config = SettingsConfigDict(
        env_prefix="TRIANGULATION_", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    database_url: str = Field(
        default_factory=lambda: f"sqlite:///{dagster_home() / '.dagster' / 'triangulation.db'}",
        description="The tables are kept in this database: sqlite:////folder/triangulation.db (a relative path is "
        "resolved against DAGSTER_HOME) or postgresql://user:password@host/triangulation.",
        repr=False,
    )
    object_store: Annotated[Path | S3Location, NoDecode] = Field(
        default_factory=lambda: dagster_home() / ".dagster" / "objects",
        description="Checkpoints, plots and models are kept in this place: a folder (a relative path is resolved "
        "against DAGSTER_HOME) or s3://bucket/prefix, whose server and credentials are named by the AWS variables.",
    )

    @field_validator("database_url")
    @classmethod
    def _database_is_known(cls, value: str) -> str:
        if not value.strip():
            raise ValueError(
                "is empty; unset it for the default, or write it as in sqlite:////folder/triangulation.db or "
                "postgresql://user:password@host/triangulation"
            )
        url = parse_url(value.strip())
        if url.get_backend_name() == "sqlite":
            url = url.set(database=str(dagster_home() / expanded(str(url.database))))
        return url.render_as_string(hide_password=False)

    @field_validator("object_store", mode="before")
    @classmethod
    def _store_is_a_folder_or_bucket(cls, value: str | Path) -> Path | S3Location:
        text = str(value).strip()
        if not text:
            raise ValueError("is empty; unset it for the default, or write a folder or s3://bucket/prefix")
        # With one slash or none it is a typing error, and not a folder.
        if text.lower().startswith("s3:"):
            return parse_s3_url(text)
        if "://" in text:
            raise ValueError("must be a folder or s3://bucket/prefix, and no other URL")
        return dagster_home() / expanded(text)


def read_settings() -> Settings:
    """The settings of this process's environment.

    Raises ValueError with one sentence naming each variable that is wrong; values, which may hold a password, are
    never shown.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = (
            f"TRIANGULATION_{str(item['loc'][0]).upper()}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise ValueError("; ".join(faults)) from None
