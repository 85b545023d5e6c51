"""What evaluations of a job's weights found, per checkpoint and dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, and_, insert, or_, select, update

from triangulation_pipeline.storage.columns import checked_json, now
from triangulation_pipeline.storage.engine import in_one_transaction, reading
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.tables import model_evaluations, models, synthetic_datasets, training_jobs
from triangulation_pipeline.validation import uuid_text


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """A job's checkpoint on a dataset."""

    training_job_id: str
    epoch: int
    checkpoint_sha256: str
    synthetic_dataset_id: str
    metrics: Mapping[str, Any]
    visualization_paths: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class NewEvaluation(_Evaluated):
    """An evaluation to record; ``weights_digest`` is of all that decides the predictions of the weights."""

    weights_digest: str


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(_Evaluated):
    """A row of ``model_evaluations``.

    ``model_id`` is None until the checkpoint is registered, ``weights_digest`` in rows that an older version wrote.
    """

    id: str
    model_id: str | None
    evaluated_at: datetime
    weights_digest: str | None


def record_evaluation(engine: Engine, new: NewEvaluation) -> str:
    """Records an evaluation of a job's checkpoint on a dataset; returns its id.

    An evaluation of the same checkpoint on the same dataset replaces the recorded one, under the same id. Raises
    StorageError if the job or the dataset does not exist.
    """
    values = vars(new) | {
        "training_job_id": uuid_text("training_job_id", new.training_job_id),
        "synthetic_dataset_id": uuid_text("synthetic_dataset_id", new.synthetic_dataset_id),
        "metrics": checked_json("metrics", new.metrics),
        "visualization_paths": checked_json("visualization_paths", new.visualization_paths),
    }
    return in_one_transaction(engine, lambda connection: _evaluate(connection, values))


def get_evaluation(engine: Engine, evaluation_id: str) -> EvaluationRecord:
    """The evaluation of that id. Raises StorageError if there is none."""
    evaluation_id = uuid_text("evaluation_id", evaluation_id)
    with reading(engine) as connection:
        statement = select(model_evaluations).where(model_evaluations.c.id == evaluation_id)
        row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise StorageError(f"there is no evaluation {evaluation_id}")
    return EvaluationRecord(**row)


def check_origin(connection: Connection, job_id: str, dataset_id: str) -> None:
    """Raises StorageError if the job or the dataset that weights or an evaluation came from does not exist."""
    # The job's row is locked (SQLite has locked everything already), or a model and an evaluation of the same file that
    # are written at once would not see, and not link, each other.
    job = select(training_jobs.c.id).where(training_jobs.c.id == job_id).with_for_update(key_share=True)
    if connection.scalar(job) is None:
        raise StorageError(f"there is no training job {job_id}")
    if connection.scalar(select(synthetic_datasets.c.id).where(synthetic_datasets.c.id == dataset_id)) is None:
        raise StorageError(f"there is no dataset {dataset_id}")


def _evaluate(connection: Connection, values: dict[str, Any]) -> str:
    check_origin(connection, values["training_job_id"], values["synthetic_dataset_id"])
    identity = ("training_job_id", "checkpoint_sha256", "synthetic_dataset_id")
    replaced = connection.scalar(
        update(model_evaluations)
        .where(*(model_evaluations.c[name] == values[name] for name in identity))
        .values(**values, evaluated_at=now())
        .returning(model_evaluations.c.id)
    )
    if replaced is not None:
        return replaced
    evaluation_id = str(uuid4())
    registered_as = (
        select(models.c.id)
        .where(
            or_(
                and_(
                    models.c.trained_by_job_id == values["training_job_id"],
                    models.c.sha256 == values["checkpoint_sha256"],
                ),
                models.c.weights_digest == values["weights_digest"],
            )
        )
        .order_by(models.c.created_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    connection.execute(
        insert(model_evaluations).values(**values, id=evaluation_id, model_id=registered_as, evaluated_at=now())
    )
    return evaluation_id
