"""The evaluation on the test split."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from triangulation_pipeline.defs.assets.trained_model import trained_model
from triangulation_pipeline.defs.automation.conditions import AFTER_TRAINED_MODEL
from triangulation_pipeline.defs.checks import check_result, check_specs
from triangulation_pipeline.defs.config import ModelEvaluationConfig
from triangulation_pipeline.defs.failures import plain_failures
from triangulation_pipeline.defs.io_managers import (
    CheckpointReference,
    EvaluationReference,
    StoredCheckpoint,
    StoredSplit,
    reference_type,
    same_dataset,
)
from triangulation_pipeline.defs.metadata import drop_none, picture, plotted, rounded, table
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import network_tag
from triangulation_pipeline.defs.step import step
from triangulation_pipeline.evaluation import EVALUATION_VERSION
from triangulation_pipeline.evaluation.summary import Evaluation, Subset, Summary
from triangulation_pipeline.evaluation.verdict import (
    EVALUATION_CHECKS,
    PromotionCheck,
    promotion_checks,
    promotion_verdict,
)
from triangulation_pipeline.model.spec import LOCATOR_VERSION
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.storage.datasets import get_dataset
from triangulation_pipeline.storage.evaluations import NewEvaluation, record_evaluation
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.validation import printable

if TYPE_CHECKING:
    from triangulation_pipeline.evaluation.comparison import Comparison
    from triangulation_pipeline.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dg.asset_check(
    asset=trained_model,
    additional_ins={"validation_split": dg.AssetIn()},
    blocking=True,
)
def checkpoint_is_sound(
    storage: Storage, trained_model: StoredCheckpoint, validation_split: StoredSplit
) -> dg.AssetCheckResult:
    """The stored weights are those that were trained: their digest is right, they are finite, and the reloaded model
    has the validation errors that are recorded with them."""
    from triangulation_pipeline.training.verify import fault

    with plain_failures():
        checkpoint = trained_model.read()
        dataset = get_dataset(storage.engine, validation_split.dataset_id)
        found = fault(checkpoint, dataset.spec, validation_split.batch)
    return dg.AssetCheckResult(
        passed=found is None,
        description=found
        or f"epoch {checkpoint.epoch}: digest {trained_model.reference.sha256[:12]} verified, weights finite, reloaded "
        "predictions equal",
        metadata={
            "val_rmse_m": checkpoint.metrics["val_rmse_m"],
            "rows": len(validation_split.batch),
            "epoch": checkpoint.epoch,
            "sha256": trained_model.reference.sha256,
        },
    )


@dg.asset(
    io_manager_key="references",
    group_name="model",
    kinds={"numpy", "table"},
    code_version=f"evaluation {EVALUATION_VERSION}, locator {LOCATOR_VERSION}, solvers {SOLVERS_VERSION}",
    automation_condition=AFTER_TRAINED_MODEL,
    dagster_type=reference_type(EvaluationReference),
    check_specs=check_specs("model_evaluation", EVALUATION_CHECKS),
)
@step
def model_evaluation(
    context: dg.AssetExecutionContext,
    config: ModelEvaluationConfig,
    storage: Storage,
    trained_model: StoredCheckpoint,
    training_split: StoredSplit,
    test_split: StoredSplit,
) -> dg.MaterializeResult:
    """Compares the best epoch with the exact posterior, the Cramér-Rao bound and the classical solvers, on the test
    rows, which the training never used. All get the same calibrated measurements; the exact posterior, the limit, knows
    how the rows were simulated. The result is a row of `model_evaluations`."""
    checkpoint = trained_model.read()
    dataset_id = same_dataset(
        trained_model=None if checkpoint.dataset is None else checkpoint.dataset.dataset_id,
        training_split=training_split.dataset_id,
        test_split=test_split.dataset_id,
    )
    dataset = get_dataset(storage.engine, dataset_id)
    context.instance.add_run_tags(context.run.run_id, network_tag(dataset.network_name, dataset.network_digest))
    comparison = _compared(checkpoint, dataset.spec, test_split.batch, training_split.batch)
    summary = comparison.summary()
    checks = promotion_checks(summary, config.max_rmse_m)
    evaluation = _judged(summary, config.max_rmse_m, checks)
    pictures = pictures_of(dataset.spec, comparison)
    evaluation_id = _stored(storage, trained_model.reference, checkpoint, dataset.id, evaluation, pictures)
    log.info("model_evaluation: %s", printable(evaluation.promotion_reason))
    found = [checkpoint.weights_digest, dataset.sha256, config.max_rmse_m, summary.document()]
    return dg.MaterializeResult(
        value=EvaluationReference(evaluation_id=evaluation_id),
        metadata=_shown(evaluation_id, summary, evaluation, pictures),
        data_version=dg.DataVersion(hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()),
        check_results=[check_result(check) for check in checks],
    )


def _compared(checkpoint: "Checkpoint", spec: DatasetSpec, test: Samples, train: Samples) -> "Comparison":
    from triangulation_pipeline.evaluation.comparison import compare
    from triangulation_pipeline.model.predict import locate_samples

    max_gdop = TrainingConfig.model_validate(checkpoint.config).max_gdop
    return compare(spec, test, train, locate_samples(checkpoint, spec, test), max_gdop)


def _judged(summary: Summary, max_rmse_m: float, checks: list[PromotionCheck]) -> Evaluation:
    from triangulation_pipeline.evaluation.report import headline

    promoted, reason = promotion_verdict(summary, checks)
    return Evaluation(
        **dict(summary),
        headline=headline(summary),
        max_rmse_m=max_rmse_m,
        promoted=promoted,
        promotion_reason=reason,
    )


def pictures_of(spec: DatasetSpec, comparison: "Comparison") -> dict[str, bytes]:
    """PNG files by name, on the rows with good geometry, or on all if none has it. Random layouts have no common
    map."""
    from triangulation_pipeline.plots.evaluation import calibration_curve, error_cdf, error_map
    from triangulation_pipeline.plots.style import png

    curves = {"error_cdf": error_cdf, "calibration_curve": calibration_curve}
    subset = Subset.good_geometry if comparison.good_geometry.any() else Subset.all
    figures = {name: draw(comparison, subset) for name, draw in curves.items()}
    if spec.network is not None:
        figures["error_map"] = error_map(spec.network, comparison)
    return {name: png(figure) for name, figure in figures.items()}


def _stored(
    storage: Storage,
    reference: CheckpointReference,
    checkpoint: "Checkpoint",
    dataset_id: str,
    evaluation: Evaluation,
    pictures: Mapping[str, bytes],
) -> str:
    """Stores pictures and numbers; gives the evaluation's id."""
    folder = f"evaluations/{reference.job_id}/{reference.sha256[:12]}"
    locations = {
        name: storage.objects.put(f"{folder}/{name}.png", content).location for name, content in pictures.items()
    }
    return record_evaluation(
        storage.engine,
        NewEvaluation(
            training_job_id=reference.job_id,
            epoch=checkpoint.epoch,
            checkpoint_sha256=reference.sha256,
            weights_digest=checkpoint.weights_digest,
            synthetic_dataset_id=dataset_id,
            metrics=evaluation.document(),
            visualization_paths=locations,
        ),
    )


def _shown(
    evaluation_id: str, summary: Summary, evaluation: Evaluation, pictures: Mapping[str, bytes]
) -> dict[str, Any]:
    """The metadata of the materialisation."""
    from triangulation_pipeline.evaluation.report import estimator_table, group_table, posterior_table

    return {
        **{name: picture(content, name.replace("_", " ")) for name, content in pictures.items()},
        "promoted": evaluation.promoted,
        "promotion_reason": evaluation.promotion_reason,
        "estimators_good_geometry": table([rounded(row) for row in estimator_table(summary, Subset.good_geometry)]),
        "estimators_all": table([rounded(row) for row in estimator_table(summary, Subset.all)]),
        "exact_posterior": table([rounded(row) for row in posterior_table(summary)]),
        **{
            name: table([rounded(row) for row in group_table(groups)])
            for name, groups in (
                ("by_arrival_times", summary.all.by_arrival_times),
                ("by_gdop", summary.all.by_gdop),
                ("by_hull", summary.all.by_hull),
            )
        },
        **rounded(drop_none(plotted(evaluation.headline))),
        "evaluation_id": evaluation_id,
        "summary": dg.MetadataValue.json(summary.document()),
    }
