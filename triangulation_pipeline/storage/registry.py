"""The model registry: versions of named models, and which of them is in production."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, insert, or_, select, update

from triangulation_pipeline.model.names import ModelName
from triangulation_pipeline.storage.columns import checked_json, now
from triangulation_pipeline.storage.engine import in_one_transaction, reading
from triangulation_pipeline.storage.errors import ProductionChanged, StorageError, quoted
from triangulation_pipeline.storage.evaluations import check_origin
from triangulation_pipeline.storage.tables import model_evaluations, models
from triangulation_pipeline.validation import printable, shown, uuid_text


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """One set of weights. ``metrics``, ``epoch`` and ``sha256`` all describe the file at ``pytorch_model_location``."""

    model_name: str
    model_architecture: str
    pytorch_model_location: str
    sha256: str
    epoch: int
    trained_by_job_id: str
    synthetic_dataset_id: str
    network_name: str
    network_digest: str
    hyperparameters: Mapping[str, Any]
    metrics: Mapping[str, Any]
    passed: bool  # every check of a promotion
    promotion_reason: str
    parent_model_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewModel(_Weights):
    """Weights to register; ``weights_digest`` is of all that decides their predictions."""

    weights_digest: str


@dataclass(frozen=True, kw_only=True)
class ModelRecord(_Weights):
    """A row of ``models``; ``weights_digest`` is None in rows that an older version wrote."""

    id: str
    version: int
    onnx_model_location: str | None
    onnx_sha256: str | None
    is_active: bool
    is_production: bool
    promoted: bool
    created_at: datetime
    production_since: datetime | None
    weights_digest: str | None

    @property
    def reference(self) -> ModelName:
        """What a person calls it: ``name/3``."""
        return ModelName(self.model_name, self.version)

    @property
    def network(self) -> str:
        """The receiver network for a reader: its name, and the beginning of the digest that tells it from others."""
        return f"{self.network_name} ({self.network_digest[:8]})"


@dataclass(frozen=True)
class Registration:
    """The version that weights were registered as, and whether it is a new one."""

    model: ModelRecord
    is_new: bool


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion or a rollback: the version now in production, and the one that was there before."""

    model: ModelRecord
    replaced: ModelRecord | None


def register_model(engine: Engine, new: NewModel, champion_id: str | None = None) -> Registration:
    """Registers weights as the next version of their name, which is the active one from now on.

    ``champion_id`` is the version in production that the weights were compared with. Weights that ``passed`` are
    promoted: the production mark moves to them from the version that had it. But a version of another network (by its
    digest) is never replaced here: then the weights are not promoted, and the reason says so. Evaluations of the same
    weights are linked to the version. All this is one transaction.

    Equal weights (by ``weights_digest``) of one name are one version, whichever job trained them. If they are
    registered again, they keep number, time and production mark, and take the new file (the old one may be lost),
    metrics and verdict.

    Raises ProductionChanged, with nothing written, if the weights passed and another version than ``champion_id`` is in
    production by now. Raises StorageError if they are registered under another name, or if the job, the dataset or the
    parent model (from whose weights the training began) does not exist.
    """
    parent_id = new.parent_model_id
    values = vars(new) | {
        "trained_by_job_id": uuid_text("trained_by_job_id", new.trained_by_job_id),
        "synthetic_dataset_id": uuid_text("synthetic_dataset_id", new.synthetic_dataset_id),
        "hyperparameters": checked_json("hyperparameters", new.hyperparameters),
        "metrics": checked_json("metrics", new.metrics),
        "parent_model_id": None if parent_id is None else uuid_text("parent_model_id", parent_id),
    }
    return in_one_transaction(engine, lambda connection: _register(connection, values, champion_id))


def find_production_model(engine: Engine, model_name: str) -> ModelRecord | None:
    """The version of a model that is in production, or None."""
    with reading(engine) as connection:
        return _production(connection, model_name)


def get_model_by_id(engine: Engine, model_id: str) -> ModelRecord:
    """The version of that id. Raises StorageError if there is none."""
    model_id = uuid_text("model_id", model_id)
    with reading(engine) as connection:
        return _get_by_id(connection, model_id)


def find_referred_model(engine: Engine, reference: str, before_id: str | None = None) -> ModelRecord:
    """The version that a person refers to by its id, by ``name/3``, ``name@production``, or by a name.

    A name means its version in production, else its newest. If the reference could mean the version ``before_id``, it
    means that one: a job that began from a version continues from it. Raises StorageError if there is none.
    """
    wanted = ModelName.parse(reference)
    with reading(engine) as connection:
        if before_id is not None:
            before = _get_by_id(connection, before_id)
            if reference == before.id or wanted in (
                before.reference,
                ModelName(before.model_name),
                ModelName(before.model_name, in_production=True),
            ):
                return before
        with suppress(ValueError):
            return _get_by_id(connection, uuid_text("model_id", reference))
        if wanted is None:
            raise StorageError(f"there is no model {shown(reference)} in the registry")
        production = _production(connection, wanted.name) if wanted.version is None else None
        if production is None and wanted.in_production:
            raise StorageError(f"no version of model {shown(wanted.name)} is in production")
        return production or _get(connection, wanted.name, wanted.version)


def promote_model(engine: Engine, model_name: str, version: int) -> Promotion:
    """Puts that version into production. It replaces the one that is there, even if that is for another network.

    Raises StorageError if the version does not exist, or did not pass the checks when it was registered.
    """

    def promote(connection: Connection) -> Promotion:
        _lock_versions(connection, model_name)
        model = _get(connection, model_name, version)
        if not model.passed:
            raise StorageError(
                f"{quoted(model_name)}/{version} cannot go into production. {printable(model.promotion_reason)}"
            )
        return _promote(connection, model)

    return in_one_transaction(engine, promote)


def rollback_model(engine: Engine, model_name: str) -> Promotion:
    """Puts the version that was in production before back into production, even if it is for another network.

    That is the version that was there last, among those with a lower number than the present one. A second rollback
    goes back further. Raises StorageError if no version is in production, or none was before.
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
            raise StorageError(f"no version before {quoted(model_name)}/{current.version} was ever in production")
        return _promote(connection, _get(connection, model_name, earlier))

    return in_one_transaction(engine, roll_back)


def get_model_of_job(engine: Engine, job_id: str) -> ModelRecord:
    """The model that a job trained, as it was registered last. Its row may name a later job with equal weights.

    Raises StorageError if there is none.
    """
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


def _register(connection: Connection, values: dict[str, Any], champion_id: str | None) -> Registration:
    check_origin(connection, values["trained_by_job_id"], values["synthetic_dataset_id"])
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
        # An older version of the pipeline registered the file without a digest, and equal weights came later.
        values = values | {"weights_digest": of_file.weights_digest}
    if existing is not None and existing.model_name != model_name:
        raise StorageError(f"these weights are registered already, as {existing.reference}")
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
    # A version that was in production and had to leave it does not come back by itself.
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
    if production.id != champion_id:
        raise ProductionChanged(
            f"{production.reference} went into production while another version was compared with what was there before"
        )
    if production.network_digest != values["network_digest"]:
        mine = f"{values['network_name']} ({values['network_digest'][:8]})"
        reason = (
            f"Not promoted: {production.reference}, which is in production, is for another network, "
            f"{production.network}, and this one for {mine}; train it under another model_name, or replace that "
            f"version by `triangulation promote {ModelName(production.model_name, version)}`."
        )
        return {"promoted": False, "promotion_reason": reason}
    return {"promoted": True}


def _lock_versions(connection: Connection, model_name: str) -> None:
    """Keeps others from changing which version of a name is in production, until the transaction ends.

    The next statement sees what others wrote before. SQLite has locked everything already. Two first versions exclude
    each other by their number.
    """
    statement = select(models.c.id).where(models.c.model_name == model_name).order_by(models.c.id)
    connection.execute(statement.with_for_update(key_share=True)).all()


def _get(connection: Connection, model_name: str, version: int | None) -> ModelRecord:
    statement = select(models).where(models.c.model_name == model_name)
    statement = statement.where(models.c.is_active if version is None else models.c.version == version)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise StorageError(f"there is no model {shown(str(ModelName(model_name, version)))} in the registry")
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
