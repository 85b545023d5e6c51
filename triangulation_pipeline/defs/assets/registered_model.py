"""The registration of the weights."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.defs.automation.conditions import AFTER_TRAINED_MODEL
from triangulation_pipeline.defs.checks import check_result, check_specs
from triangulation_pipeline.defs.config import RegisteredModelConfig
from triangulation_pipeline.defs.io_managers import (
    CheckpointReference,
    EvaluationReference,
    ModelReference,
    StoredCheckpoint,
    StoredSplit,
    reference_type,
    same_dataset,
)
from triangulation_pipeline.defs.jobs import TRAINING_POOL
from triangulation_pipeline.defs.metadata import drop_none, epoch_table, picture, plotted, rounded
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.step import step
from triangulation_pipeline.evaluation import EVALUATION_VERSION
from triangulation_pipeline.evaluation.summary import Evaluation
from triangulation_pipeline.evaluation.verdict import (
    NOT_WORSE_THAN_PRODUCTION,
    PromotionCheck,
    not_worse_than_production,
    promotion_checks,
    promotion_verdict,
)
from triangulation_pipeline.jobs.record import load_checkpoint, read_history
from triangulation_pipeline.model.spec import LOCATOR_VERSION
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.storage.datasets import DatasetRecord, get_dataset
from triangulation_pipeline.storage.errors import ProductionChanged, StorageError
from triangulation_pipeline.storage.evaluations import EvaluationRecord, get_evaluation
from triangulation_pipeline.storage.registry import (
    ModelRecord,
    NewModel,
    Registration,
    find_production_model,
    register_model,
)
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics
from triangulation_pipeline.validation import printable

if TYPE_CHECKING:
    from triangulation_pipeline.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)

# As many as fit beside the reason on the page; the table of `trained_model` has all.
EPOCH_COLUMNS = ("epoch", "train_loss", "val_loss", "val_rmse_m", "val_rmse_good_geom_m", "val_coverage_95")


@dataclass(frozen=True)
class _Candidate:
    """Evaluated weights that may become a version of a model."""

    model_name: str
    file: CheckpointReference
    checkpoint: "Checkpoint"
    evaluation: Evaluation
    dataset: DatasetRecord
    test: Samples


@dg.asset(
    io_manager_key="references",
    group_name="model",
    kinds={"table"},
    code_version=f"evaluation {EVALUATION_VERSION}, locator {LOCATOR_VERSION}",
    pool=TRAINING_POOL,
    automation_condition=AFTER_TRAINED_MODEL,
    dagster_type=reference_type(ModelReference),
    check_specs=check_specs("registered_model", [NOT_WORSE_THAN_PRODUCTION]),
)
@step
def registered_model(
    context: dg.AssetExecutionContext,
    config: RegisteredModelConfig,
    storage: Storage,
    trained_model: StoredCheckpoint,
    model_evaluation: EvaluationReference,
    test_split: StoredSplit,
) -> dg.MaterializeResult:
    """Registers the weights as a version in `models`, with the metrics of exactly that epoch, dataset, job and network.

    The version goes into production if it passes the checks of the evaluation and is no worse than the version in
    production on the same test rows. A version for another network stays in production until somebody replaces it."""
    checkpoint = trained_model.read()
    record = get_evaluation(storage.engine, model_evaluation.evaluation_id)
    _check_origin(record, trained_model.reference, checkpoint, test_split)
    evaluation = Evaluation.model_validate(record.metrics)
    candidate = _Candidate(
        config.model_name,
        trained_model.reference,
        checkpoint,
        evaluation,
        get_dataset(storage.engine, test_split.dataset_id),
        test_split.batch,
    )
    while True:
        try:
            not_worse, registration = _registered(storage, candidate)
            break
        except ProductionChanged as change:
            log.info("registered_model: %s; it is compared again", printable(str(change)))
    model = registration.model
    before = None if registration.is_new else f"the same weights as {model.reference}: no new version was made"
    log.info("registered_model: %s", before or printable(str(model.reference)))
    history = read_history(storage.engine, trained_model.reference.job_id)
    return dg.MaterializeResult(
        value=ModelReference(model_id=model.id),
        metadata=_shown(model, before, evaluation, history),
        data_version=dg.DataVersion(checkpoint.weights_digest),
        check_results=[check_result(not_worse)],
    )


def _check_origin(
    evaluation: EvaluationRecord, file: CheckpointReference, checkpoint: "Checkpoint", test_split: StoredSplit
) -> None:
    """Raises ValueError if the evaluation is of other weights or on other rows."""
    # Of the same file, or of another job's with equal weights.
    if file.sha256 != evaluation.checkpoint_sha256 and checkpoint.weights_digest != evaluation.weights_digest:
        raise ValueError(
            f"model_evaluation is of the weights of job {evaluation.training_job_id}, trained_model is of job "
            f"{file.job_id} and has others; materialise them in one run"
        )
    same_dataset(model_evaluation=evaluation.synthetic_dataset_id, test_split=test_split.dataset_id)


def _registered(storage: Storage, candidate: _Candidate) -> tuple[PromotionCheck, Registration]:
    """The comparison with the version in production, and what was registered. Raises ProductionChanged if another
    version went into production meanwhile."""
    checkpoint, evaluation, dataset = candidate.checkpoint, candidate.evaluation, candidate.dataset
    champion = find_production_model(storage.engine, candidate.model_name)
    checks = promotion_checks(evaluation, evaluation.max_rmse_m)
    if champion is None or champion.network_digest == dataset.network_digest:
        not_worse = _not_worse_than_production(storage, candidate, champion)
        checks.append(not_worse)
    else:
        # Nothing was compared, so nothing speaks against a promotion by hand; the registry makes none by itself.
        reason = f"{champion.reference} in production is for another network, {champion.network}"
        not_worse = PromotionCheck(NOT_WORSE_THAN_PRODUCTION.name, False, reason)
    passed, verdict = promotion_verdict(evaluation, checks)
    new = NewModel(
        model_name=candidate.model_name,
        model_architecture=checkpoint.spec.architecture.value,
        pytorch_model_location=candidate.file.location,
        sha256=candidate.file.sha256,
        weights_digest=checkpoint.weights_digest,
        epoch=checkpoint.epoch,
        trained_by_job_id=candidate.file.job_id,
        synthetic_dataset_id=dataset.id,
        network_name=dataset.network_name,
        network_digest=dataset.network_digest,
        hyperparameters=checkpoint.config,
        metrics={**checkpoint.metrics, **evaluation.headline},
        passed=passed,
        promotion_reason=verdict,
        parent_model_id=_settings(checkpoint).registered_parent,
    )
    return not_worse, register_model(storage.engine, new, None if champion is None else champion.id)


def _not_worse_than_production(
    storage: Storage, candidate: _Candidate, production: ModelRecord | None
) -> PromotionCheck:
    name, challenger = NOT_WORSE_THAN_PRODUCTION.name, candidate.checkpoint
    if production is None:
        return PromotionCheck(name, True, f"no version of {candidate.model_name} was in production")
    if production.sha256 == candidate.file.sha256 or production.weights_digest == challenger.weights_digest:
        return PromotionCheck(name, True, f"it is {production.reference}, which was in production")
    try:
        champion = load_checkpoint(storage.objects, production.pytorch_model_location, production.sha256)
        champion_m = _errors_m(champion, candidate)
    except (ValueError, StorageError) as error:
        return PromotionCheck(
            name,
            False,
            f"{production.reference} in production cannot be compared ({error}); restore its weights, replace it by "
            "hand, or roll back",
        )
    challenger_m = _errors_m(challenger, candidate)
    good_geometry = candidate.test.gdop < _settings(challenger).max_gdop
    return not_worse_than_production(challenger_m, champion_m, good_geometry, production.model_name, production.version)


def _settings(checkpoint: "Checkpoint") -> TrainingConfig:
    return TrainingConfig.model_validate(checkpoint.config)


def _errors_m(checkpoint: "Checkpoint", candidate: _Candidate) -> NDArray[np.float64]:
    """The position errors of a model on the candidate's test rows, metres."""
    from triangulation_pipeline.evaluation.comparison import errors_m
    from triangulation_pipeline.model.predict import locate_samples

    spec, test = candidate.dataset.spec, candidate.test
    return errors_m(spec, test, locate_samples(checkpoint, spec, test))


def _shown(
    model: ModelRecord, before: str | None, evaluation: Evaluation, history: Sequence[EpochMetrics]
) -> dict[str, Any]:
    """The metadata of the materialisation; ``before`` says that the weights were registered already."""
    from triangulation_pipeline.plots.style import png
    from triangulation_pipeline.plots.training import training_curves

    return {
        "model_name": model.model_name,
        "version": model.version,
        **drop_none({"registered_before": before}),
        "network": model.network,
        "promoted": model.promoted,
        "promotion_reason": model.promotion_reason,
        "curves": picture(png(training_curves(history)), "training curves"),
        **rounded(drop_none(plotted(evaluation.headline))),
        "epoch": model.epoch,
        "checkpoint": dg.MetadataValue.path(model.pytorch_model_location),
        "sha256": model.sha256,
        "weights_digest": model.weights_digest,
        "dataset_id": model.synthetic_dataset_id,
        "job_id": model.trained_by_job_id,
        "network_digest": model.network_digest,
        **epoch_table([rounded({name: getattr(metrics, name) for name in EPOCH_COLUMNS}) for metrics in history]),
    }
