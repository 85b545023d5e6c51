"""The registry."""

import logging
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.defs.automation.conditions import AFTER_TRAINED_MODEL
from triangulation_pipeline.defs.config import RegisteredModelConfig
from triangulation_pipeline.defs.io_managers import (
    EvaluationReference,
    ModelReference,
    StoredCheckpoint,
    StoredSplit,
    reference_type,
)
from triangulation_pipeline.defs.jobs import TRAINING_POOL
from triangulation_pipeline.defs.metadata import drop_none, epoch_table, picture, plotted, rounded, words
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
from triangulation_pipeline.storage.errors import ProductionChanged, StorageError
from triangulation_pipeline.storage.registry import (
    EvaluationRecord,
    ModelRecord,
    Registration,
    find_production_model,
    get_evaluation,
    register_model,
)
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.validation import printable

if TYPE_CHECKING:
    from triangulation_pipeline.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)

# As many as fit beside the reason on the page; the table of `trained_model` has all.
EPOCH_COLUMNS = ("epoch", "train_loss", "val_loss", "val_rmse_m", "val_rmse_good_geom_m", "val_coverage_95")


@dg.asset(
    io_manager_key="references",
    group_name="model",
    kinds={"table"},
    code_version=f"evaluation {EVALUATION_VERSION}, locator {LOCATOR_VERSION}",
    pool=TRAINING_POOL,
    automation_condition=AFTER_TRAINED_MODEL,
    dagster_type=reference_type(ModelReference),
    check_specs=[
        dg.AssetCheckSpec(
            NOT_WORSE_THAN_PRODUCTION.name, asset="registered_model", description=NOT_WORSE_THAN_PRODUCTION.description
        )
    ],
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
    """A version in `models`: name, digest and place of the weights, the metrics of exactly that epoch, dataset, job and
    network; promoted to production or not, and why: it has to pass the evaluation's checks, and to be no worse than the
    version in production on the same test rows. A version of another network is never replaced by itself."""
    from triangulation_pipeline.plots.style import png
    from triangulation_pipeline.plots.training import training_curves

    reference = trained_model.reference
    checkpoint = trained_model.read()
    evaluation = get_evaluation(storage.engine, model_evaluation.evaluation_id)
    # Of the same file, or of another job's with equal weights.
    if reference.sha256 != evaluation.checkpoint_sha256 and checkpoint.weights_digest != evaluation.weights_digest:
        raise ValueError(
            f"model_evaluation is of the weights of job {evaluation.training_job_id}, trained_model is of job "
            f"{reference.job_id} and has others; materialise model_evaluation and registered_model in one run"
        )
    if evaluation.synthetic_dataset_id != test_split.dataset_id:
        raise ValueError(
            f"model_evaluation is on dataset {evaluation.synthetic_dataset_id}, test_split is of dataset "
            f"{test_split.dataset_id}; materialise model_evaluation and registered_model in one run"
        )
    while True:
        try:
            not_worse, registration = _register(
                storage, config.model_name, trained_model, checkpoint, evaluation, test_split.batch
            )
            break
        except ProductionChanged as change:
            log.info("registered_model: %s; it is compared anew", printable(str(change)))
    model = registration.model
    history = read_history(storage.engine, reference.job_id)
    before = None if registration.is_new else f"the same weights as version {model.version}: no new version was made"
    log.info("registered_model: %s", before or f"{printable(model.model_name)} version {model.version}")
    return dg.MaterializeResult(
        value=ModelReference(model_id=model.id),
        metadata={
            "model_name": model.model_name,
            "version": model.version,
            **({} if before is None else {"registered_before": before}),
            "network": model.network,
            "promoted": model.promoted,
            "promotion_reason": model.promotion_reason,
            "curves": picture(png(training_curves(history)), "training curves"),
            **rounded(drop_none(plotted(evaluation.metrics["headline"]))),
            "epoch": model.epoch,
            "checkpoint": dg.MetadataValue.path(model.pytorch_model_location),
            "sha256": model.sha256,
            "weights_digest": model.weights_digest,
            "dataset_id": model.synthetic_dataset_id,
            "job_id": model.trained_by_job_id,
            "network_digest": model.network_digest,
            **epoch_table([rounded({name: getattr(metrics, name) for name in EPOCH_COLUMNS}) for metrics in history]),
        },
        data_version=dg.DataVersion(checkpoint.weights_digest),
        check_results=[
            dg.AssetCheckResult(
                check_name=not_worse.name,
                passed=not_worse.passed,
                severity=dg.AssetCheckSeverity.WARN,
                description=words(not_worse.description),
                metadata=not_worse.numbers,
            )
        ],
    )


def _register(
    storage: Storage,
    model_name: str,
    trained_model: StoredCheckpoint,
    checkpoint: "Checkpoint",
    evaluation: EvaluationRecord,
    test: Samples,
) -> tuple[PromotionCheck, Registration]:
    """The comparison with the version in production, and what was registered. Raises ProductionChanged where another
    one went into production meanwhile."""
    summary = Evaluation.model_validate(evaluation.metrics)
    network, reference = checkpoint.spec.network, trained_model.reference
    champion = find_production_model(storage.engine, model_name)
    checks = promotion_checks(summary, summary.max_rmse_m)
    if champion is None or champion.network_digest == network.digest:
        not_worse = _not_worse_than_production(storage, model_name, champion, trained_model, checkpoint, test)
        checks.append(not_worse)
    else:
        # Nothing was compared, so that nothing speaks against a promotion by hand; the registry makes none by itself.
        told = f"version {champion.version} in production is for another network, {champion.network}"
        not_worse = PromotionCheck(NOT_WORSE_THAN_PRODUCTION.name, False, told)
    passed, reason = promotion_verdict(summary, checks)
    registration = register_model(
        storage.engine,
        model_name=model_name,
        model_architecture=checkpoint.spec.architecture.value,
        pytorch_model_location=reference.location,
        sha256=reference.sha256,
        weights_digest=checkpoint.weights_digest,
        epoch=checkpoint.epoch,
        trained_by_job_id=reference.job_id,
        synthetic_dataset_id=evaluation.synthetic_dataset_id,
        network_name=network.name,
        network_digest=network.digest,
        hyperparameters=checkpoint.config,
        metrics={**checkpoint.metrics, **summary.headline},
        passed=passed,
        promotion_reason=reason,
        champion_id=None if champion is None else champion.id,
        parent_model_id=TrainingConfig.model_validate(checkpoint.config).parent_model_id,
    )
    return not_worse, registration


def _not_worse_than_production(
    storage: Storage,
    model_name: str,
    production: ModelRecord | None,
    trained_model: StoredCheckpoint,
    challenger: "Checkpoint",
    test: Samples,
) -> PromotionCheck:

    reference = trained_model.reference
    if production is None:
        return PromotionCheck(NOT_WORSE_THAN_PRODUCTION.name, True, f"no version of {model_name} was in production")
    if production.sha256 == reference.sha256 or production.weights_digest == challenger.weights_digest:
        return PromotionCheck(
            NOT_WORSE_THAN_PRODUCTION.name, True, f"it is version {production.version}, which was in production"
        )
    try:
        champion = load_checkpoint(storage.objects, production.pytorch_model_location, production.sha256)
        champion_m = _errors_m(champion, test)
    except (ValueError, StorageError) as error:
        return PromotionCheck(
            NOT_WORSE_THAN_PRODUCTION.name,
            False,
            f"version {production.version} in production cannot be compared, as its weights cannot be read "
            f"({error}; restore them, or roll back)",
        )
    good_geometry = test.gdop < TrainingConfig.model_validate(challenger.config).max_gdop
    return not_worse_than_production(_errors_m(challenger, test), champion_m, good_geometry, production.version)


def _errors_m(checkpoint: "Checkpoint", test: Samples) -> NDArray[np.float64]:
    from triangulation_pipeline.model.predict import locate

    spec = checkpoint.spec
    predicted = locate(checkpoint, test)
    return predicted.error_m(spec.network.frame, test.tx_altitude_m, test.tx_lat, test.tx_lon)
