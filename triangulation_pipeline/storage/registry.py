"""The model registry: versions of named models, which is in production, and what evaluations found."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, insert, or_, select, update

from triangulation_pipeline.storage.columns import checked_json, now
from triangulation_pipeline.storage.engine import in_one_transaction, reading
from triangulation_pipeline.storage.errors import ProductionChanged, StorageError, quoted
from triangulation_pipeline.storage.tables import model_evaluations, models, synthetic_datasets, training_jobs
from triangulation_pipeline.validation import printable, shown, uuid_text


@dataclass(frozen=True)
class ModelRecord:
    """A row of ``models``: one set of weights. ``metrics``, ``epoch`` and ``sha256`` all describe the same file;
    ``weights_digest`` is of what decides its predictions (None in rows of old)."""

    id: str
    model_name: str
    version: int
    model_architecture: str
    pytorch_model_location: str
    sha256: str
    onnx_model_location: str | None
    onnx_sha256: str | None
    epoch: int
    trained_by_job_id: str
    synthetic_dataset_id: str
    network_name: str
    network_digest: str
    hyperparameters: dict[str, Any]
    metrics: dict[str, Any]
    is_active: bool
    is_production: bool
    promoted: bool
    promotion_reason: str
    created_at: datetime
    parent_model_id: str | None
    production_since: datetime | None
    passed: bool
    weights_digest: str | None

    @property
    def network(self) -> str:
        """The receiver network for a reader: its name, and the beginning of the digest that tells it from others."""
        return f"{self.network_name} ({self.network_digest[:8]})"


@dataclass(frozen=True)
class Registration:
    """What registering a set of weights did: the version they are, and whether it is a new one."""

    model: ModelRecord
    is_new: bool


@dataclass(frozen=True)
class Promotion:
    """What a promotion or a rollback did: the version that is in production now, and the one that was until then."""

    model: ModelRecord
    replaced: ModelRecord | None


@dataclass(frozen=True)
class EvaluationRecord:
    """A row of ``model_evaluations``; ``model_id`` is null until the checkpoint is registered."""

    id: str
    training_job_id: str
    epoch: int
    checkpoint_sha256: str
    synthetic_dataset_id: str
    model_id: str | None
    metrics: dict[str, Any]
    visualization_paths: dict[str, Any]
    evaluated_at: datetime
    weights_digest: str | None


def register_model(
    engine: Engine,
    *,
    model_name: str,
    model_architecture: str,
    pytorch_model_location: str,
    sha256: str,
    weights_digest: str,
    epoch: int,
    trained_by_job_id: str,
    synthetic_dataset_id: str,
    network_name: str,
    network_digest: str,
    hyperparameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    passed: bool,
    promotion_reason: str,
    champion_id: str | None = None,
    parent_model_id: str | None = None,
) -> Registration:
    """Registers a set of weights as the next version of its name, the active one from now on.

    ``passed`` and ``promotion_reason`` say whether it passed every check of a promotion, and why; ``champion_id`` is
    the version in production that it was compared with. One that passed is promoted: the production mark moves to it
    from the version that had it. But a version of another network (by its digest) is never replaced here: then it is
    not promoted, and the reason says so. Evaluations of the same weights are linked to it. All in one transaction.

    Equal weights (by ``weights_digest``) of one name are one version, whichever job trained them: registered again,
    they keep number, time and production mark, and take the new file (the old one may be lost), metrics and verdict.

    Raises ProductionChanged, with nothing written, where it passed and another version than ``champion_id`` is in
    production by now, and StorageError where it is registered under another name, or where the job, the dataset or the
    parent model (from whose weights the training began) does not exist.
    """
    values = {
        "model_name": model_name,
        "model_architecture": model_architecture,
        "pytorch_model_location": pytorch_model_location,
        "sha256": sha256,
        "weights_digest": weights_digest,
        "epoch": epoch,
        "trained_by_job_id": uuid_text("trained_by_job_id", trained_by_job_id),
        "synthetic_dataset_id": uuid_text("synthetic_dataset_id", synthetic_dataset_id),
        "network_name": network_name,
        "network_digest": network_digest,
        "hyperparameters": checked_json("hyperparameters", hyperparameters),
        "metrics": checked_json("metrics", metrics),
        "passed": passed,
        "promotion_reason": promotion_reason,
        "parent_model_id": None if parent_model_id is None else uuid_text("parent_model_id", parent_model_id),
    }
    return in_one_transaction(engine, lambda connection: _register(connection, values, champion_id))


def record_evaluation(
    engine: Engine,
    *,
    training_job_id: str,
    epoch: int,
    checkpoint_sha256: str,
    weights_digest: str,
    synthetic_dataset_id: str,
    metrics: Mapping[str, Any],
    visualization_paths: Mapping[str, str],
) -> str:
    """Records what was found of a job's checkpoint on a dataset; returns the evaluation's id.

    The same checkpoint on the same dataset again replaces what was recorded, under the same id. Raises StorageError
    where the job or the dataset does not exist.
    """
    values = {
        "training_job_id": uuid_text("training_job_id", training_job_id),
        "epoch": epoch,
        "checkpoint_sha256": checkpoint_sha256,
        "weights_digest": weights_digest,
        "synthetic_dataset_id": uuid_text("synthetic_dataset_id", synthetic_dataset_id),
        "metrics": checked_json("metrics", metrics),
        "visualization_paths": checked_json("visualization_paths", visualization_paths),
    }
    return in_one_transaction(engine, lambda connection: _evaluate(connection, values))


def get_evaluation(engine: Engine, evaluation_id: str) -> EvaluationRecord:
    """The evaluation of that id. Raises StorageError where there is none."""
    evaluation_id = uuid_text("evaluation_id", evaluation_id)
    with reading(engine) as connection:
        statement = select(model_evaluations).where(model_evaluations.c.id == evaluation_id)
        row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise StorageError(f"there is no evaluation {evaluation_id}")
    return EvaluationRecord(**row)


def get_model(engine: Engine, model_name: str, version: int | None = None) -> ModelRecord:
    """That version of a model, or its newest. Raises StorageError where there is none."""
    with reading(engine) as connection:
        return _get(connection, model_name, version)


def find_production_model(engine: Engine, model_name: str) -> ModelRecord | None:
    """The version of a model that is in production, or None."""
    with reading(engine) as connection:
        return _production(connection, model_name)


def get_model_by_id(engine: Engine, model_id: str) -> ModelRecord:
    """The version of that id. Raises StorageError where there is none."""
    model_id = uuid_text("model_id", model_id)
    with reading(engine) as connection:
        return _get_by_id(connection, model_id)


def find_referred_model(engine: Engine, reference: str, before_id: str | None = None) -> ModelRecord:
    """The version that a person means by its id, by ``name:version``, or by a name: that in production, else the
    newest. Where ``before_id`` is one that the reference could mean, it is that one: what was begun from a version goes
    on from it. Raises StorageError where there is none."""
    with reading(engine) as connection:
        if before_id is not None:
            before = _get_by_id(connection, before_id)
            if reference in (before.id, before.model_name, f"{before.model_name}:{before.version}"):
                return before
        with suppress(ValueError):
            return _get_by_id(connection, uuid_text("model_id", reference))
        name, _, version = reference.partition(":")
        production = None if version else _production(connection, name)
        return production or _get(connection, name, int(version) if version else None)


def promote_model(engine: Engine, model_name: str, version: int) -> Promotion:
    """Puts that version into production, in place of the one that is, be it for another network.

    Raises StorageError where it does not exist, or did not pass the checks of a promotion when it was registered.
    """

    def promote(connection: Connection) -> Promotion:
        _lock_versions(connection, model_name)
        model = _get(connection, model_name, version)
        if not model.passed:
            raise StorageError(
                f"{quoted(model_name)} version {version} cannot go into production. {printable(model.promotion_reason)}"
            )
        return _promote(connection, model)

    return in_one_transaction(engine, promote)


def rollback_model(engine: Engine, model_name: str) -> Promotion:
    """Puts the version that was in production before back into production, be it for another network: of those below
    the one that is, the one that last was. Done again it goes back further.

    Raises StorageError where nothing is in production, or nothing was before.
    """

    def roll_back(connection: Connection) -> Promotion:
        _lock_versions(connection, model_name)
        current = _production(connection, model_name)
        if current is None:
            raise StorageError(f"no version of model {shown(model_name)} is in production")
        earlier = connection.scalar(
            select(models.c.version)
            .where(
                models.c.model_name == model_name,
                models.c.version < current.version,
                models.c.production_since.is_not(None),
            )
            .order_by(models.c.production_since.desc())
            .limit(1)
        )
        if earlier is None:
            raise StorageError(f"no version of {quoted(model_name)} before {current.version} was ever in production")
        return _promote(connection, _get(connection, model_name, earlier))

    return in_one_transaction(engine, roll_back)


def get_model_of_job(engine: Engine, job_id: str) -> ModelRecord:
    """The model that a job trained, as it was registered last; its row may name a later job with equal weights. Raises
    StorageError where none is."""
    job_id = uuid_text("job_id", job_id)
    evaluated = select(model_evaluations.c.model_id).where(model_evaluations.c.training_job_id == job_id)
    statement = (
        select(models)
        .where(or_(models.c.trained_by_job_id == job_id, models.c.id.in_(evaluated)))
        .order_by(models.c.created_at.desc())
    )
    with reading(engine) as connection:
        row = connection.execute(statement).mappings().first()
    if row is None:
        raise StorageError(f"no model of job {job_id} is registered")
    return ModelRecord(**row)


def list_models(engine: Engine) -> list[ModelRecord]:
    """All versions of all models, by name, the newest version first."""
    statement = select(models).order_by(models.c.model_name, models.c.version.desc())
    with reading(engine) as connection:
        return [ModelRecord(**row) for row in connection.execute(statement).mappings()]


def _register(connection: Connection, values: dict[str, Any], champion_id: str | None) -> Registration:
    _check_origin(connection, values["trained_by_job_id"], values["synthetic_dataset_id"])
    if (parent := values["parent_model_id"]) is not None:
        _get_by_id(connection, parent)
    model_name = values["model_name"]
    _lock_versions(connection, model_name)
    same_name = models.c.model_name == model_name
    of_file = _find(
        connection, models.c.trained_by_job_id == values["trained_by_job_id"], models.c.sha256 == values["sha256"]
    )
    of_weights = _find(connection, same_name, models.c.weights_digest == values["weights_digest"])
    existing = of_file or of_weights
    if of_file is not None and of_weights is not None and of_file.id != of_weights.id:
        # An older version registered the file, without a digest; a later one has had equal weights since.
        values = values | {"weights_digest": of_file.weights_digest}
    if existing is not None and existing.model_name != model_name:
        raise StorageError(f"these weights are registered already, as {existing.model_name} version {existing.version}")
    newest = connection.scalar(select(func.max(models.c.version)).where(same_name)) or 0
    version = newest + 1 if existing is None else existing.version
    values = values | _verdict(values, version, _production(connection, model_name), champion_id)
    if existing is None:
        model_id = str(uuid4())
        connection.execute(update(models).where(same_name, models.c.is_active).values(is_active=False))
        connection.execute(
            insert(models).values(
                **values, id=model_id, version=version, is_active=True, is_production=False, created_at=now()
            )
        )
    else:
        model_id = existing.id
        connection.execute(update(models).where(models.c.id == model_id).values(**values))
    # One that was in production already, and had to leave it, does not come back by itself.
    if values["promoted"] and (existing is None or not (existing.promoted or existing.production_since)):
        _put_into_production(connection, model_name, model_id)
    evaluations = model_evaluations.c
    its_own = and_(
        evaluations.training_job_id == values["trained_by_job_id"], evaluations.checkpoint_sha256 == values["sha256"]
    )
    nobodys = and_(evaluations.weights_digest == values["weights_digest"], evaluations.model_id.is_(None))
    connection.execute(update(model_evaluations).where(or_(its_own, nobodys)).values(model_id=model_id))
    return Registration(_get_by_id(connection, model_id), is_new=existing is None)


def _verdict(
    values: dict[str, Any], version: int, production: ModelRecord | None, champion_id: str | None
) -> dict[str, Any]:
    """``promoted`` and ``promotion_reason`` of what is registered as that version."""
    if not values["passed"] or production is None or production.version == version:
        return {"promoted": values["passed"]}
    name = production.model_name
    if production.id != champion_id:
        raise ProductionChanged(
            f"version {production.version} of {name} went into production while another one was compared with what was "
            "there before"
        )
    if production.network_digest != values["network_digest"]:
        mine = f"{values['network_name']} ({values['network_digest'][:8]})"
        reason = (
            f"Not promoted: version {production.version} of {name}, which is in production, is for another network, "
            f"{production.network}, and this one for {mine}; train it under another model_name, or replace that "
            f"version by `triangulation promote {name} {version}`."
        )
        return {"promoted": False, "promotion_reason": reason}
    return {"promoted": True}


def _lock_versions(connection: Connection, model_name: str) -> None:
    """Until the end of the transaction nobody else changes what of a name is in production (SQLite has locked
    everything already); the next statement sees what others wrote before. Two first versions exclude each other by
    their number."""
    statement = select(models.c.id).where(models.c.model_name == model_name).order_by(models.c.id)
    connection.execute(statement.with_for_update(key_share=True)).all()


def _get(connection: Connection, model_name: str, version: int | None) -> ModelRecord:
    statement = select(models).where(models.c.model_name == model_name)
    statement = statement.where(models.c.is_active if version is None else models.c.version == version)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        wanted = "" if version is None else f" version {version}"
        raise StorageError(f"there is no model {shown(model_name)}{wanted} in the registry")
    return ModelRecord(**row)


def _get_by_id(connection: Connection, model_id: str) -> ModelRecord:
    row = connection.execute(select(models).where(models.c.id == model_id)).mappings().one_or_none()
    if row is None:
        raise StorageError(f"there is no model {model_id} in the registry")
    return ModelRecord(**row)


def _production(connection: Connection, model_name: str) -> ModelRecord | None:
    return _find(connection, models.c.model_name == model_name, models.c.is_production)


def _find(connection: Connection, *conditions: ColumnElement[bool]) -> ModelRecord | None:
    """The one row that meets the conditions, or None."""
    row = connection.execute(select(models).where(*conditions)).mappings().one_or_none()
    return None if row is None else ModelRecord(**row)


def _promote(connection: Connection, model: ModelRecord) -> Promotion:
    before = _production(connection, model.model_name)
    _put_into_production(connection, model.model_name, model.id)
    replaced = None if before is None or before.id == model.id else before
    return Promotion(_get_by_id(connection, model.id), replaced)


def _put_into_production(connection: Connection, model_name: str, model_id: str) -> None:
    others = models.c.model_name == model_name, models.c.is_production, models.c.id != model_id
    connection.execute(update(models).where(*others).values(is_production=False))
    this = models.c.id == model_id, ~models.c.is_production
    connection.execute(update(models).where(*this).values(is_production=True, production_since=now()))


def _evaluate(connection: Connection, values: dict[str, Any]) -> str:
    _check_origin(connection, values["training_job_id"], values["synthetic_dataset_id"])
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


def _check_origin(connection: Connection, job_id: str, dataset_id: str) -> None:
    # The job's row is locked (SQLite has locked everything already), or a model and an evaluation of the same file that
    # are written at once would not see, and not link, each other.
    job = select(training_jobs.c.id).where(training_jobs.c.id == job_id).with_for_update(key_share=True)
    if connection.scalar(job) is None:
        raise StorageError(f"there is no training job {job_id}")
    if connection.scalar(select(synthetic_datasets.c.id).where(synthetic_datasets.c.id == dataset_id)) is None:
        raise StorageError(f"there is no dataset {dataset_id}")
