"""What the table of models holds, whatever the product tells of it."""

from sqlalchemy import Engine, select

from triangulation_pipeline.storage.engine import reading
from triangulation_pipeline.storage.registry import ModelRecord
from triangulation_pipeline.storage.tables import models


def list_models(engine: Engine) -> list[ModelRecord]:
    """All versions of all models, by name, the newest version first."""
    statement = select(models).order_by(models.c.model_name, models.c.version.desc())
    with reading(engine) as connection:
        return [ModelRecord(**row) for row in connection.execute(statement).mappings()]


def get_model(engine: Engine, model_name: str, version: int | None = None) -> ModelRecord:
    """That version of a model, or its active one."""
    (found,) = (
        model
        for model in list_models(engine)
        if model.model_name == model_name and (model.is_active if version is None else model.version == version)
    )
    return found
