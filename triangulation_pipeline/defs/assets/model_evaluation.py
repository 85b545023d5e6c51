"""The evaluation on the test split."""

import hashlib
import json
import logging

import dagster as dg

from triangulation_pipeline.defs.assets.trained_model import trained_model
from triangulation_pipeline.defs.automation.conditions import AFTER_TRAINED_MODEL
from triangulation_pipeline.defs.config import ModelEvaluationConfig
from triangulation_pipeline.defs.failures import plain_failures
from triangulation_pipeline.defs.io_managers import EvaluationReference, StoredCheckpoint, StoredSplit, reference_type
from triangulation_pipeline.defs.metadata import drop_none, picture, plotted, rounded, table
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import network_tag
from triangulation_pipeline.defs.step import step
from triangulation_pipeline.evaluation import EVALUATION_VERSION
from triangulation_pipeline.evaluation.summary import Evaluation, Subset
from triangulation_pipeline.evaluation.verdict import EVALUATION_CHECKS, promotion_checks, promotion_verdict
from triangulation_pipeline.model.spec import LOCATOR_VERSION
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.storage.datasets import get_dataset
from triangulation_pipeline.storage.registry import record_evaluation
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.validation import printable

log = logging.getLogger(__name__)


@dg.asset_check(
    asset=trained_model,
    additional_ins={"validation_split": dg.AssetIn()},
    blocking=True,
)
def checkpoint_is_sound(trained_model: StoredCheckpoint, validation_split: StoredSplit) -> dg.AssetCheckResult:
    """The stored weights are those that were trained: right digest, finite, and the reloaded model's validation RMSE is
    the one recorded with them."""
    from triangulation_pipeline.training.verify import fault

    with plain_failures():
        checkpoint = trained_model.read()
        found = fault(checkpoint, validation_split.batch)
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
    check_specs=[
        dg.AssetCheckSpec(check.name, asset="model_evaluation", description=check.description)
        for check in EVALUATION_CHECKS
    ],
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
    """The best epoch on rows it has never seen, beside the Cramér-Rao bound and the classical solvers on the same rows,
    with the same inputs and site biases. Kept in `model_evaluations`."""
    from triangulation_pipeline.evaluation.comparison import compare
    from triangulation_pipeline.evaluation.report import estimator_table, headline
    from triangulation_pipeline.model.predict import locate
    from triangulation_pipeline.plots.evaluation import calibration_curve, error_cdf, error_map
    from triangulation_pipeline.plots.style import png

    reference = trained_model.reference
    checkpoint = trained_model.read()
    network = checkpoint.spec.network
    context.instance.add_run_tags(context.run.run_id, network_tag(network.name, network.digest))
    trained_on = None if checkpoint.dataset is None else checkpoint.dataset.dataset_id
    if len({trained_on, training_split.dataset_id, test_split.dataset_id}) > 1:
        raise ValueError(
            f"trained_model was trained on dataset {trained_on}, training_split is of dataset "
            f"{training_split.dataset_id}, test_split of dataset {test_split.dataset_id}; materialise the "
            "splits and trained_model in one run"
        )
    dataset = get_dataset(storage.engine, test_split.dataset_id)
    scenario = dataset.spec.scenario
    predicted = locate(checkpoint, test_split.batch)
    comparison = compare(
        network,
        scenario,
        test_split.batch,
        training_split.batch,
        predicted,
        TrainingConfig.model_validate(checkpoint.config).max_gdop,
    )
    summary = comparison.summary()
    numbers = headline(summary)
    checks = promotion_checks(summary, config.max_rmse_m)
    pictures = {
        "error_cdf": png(error_cdf(comparison)),
        "calibration_curve": png(calibration_curve(comparison)),
        "error_map": png(error_map(network, comparison)),
    }
    stored = {
        name: storage.objects.put(f"evaluations/{reference.job_id}/{reference.sha256[:12]}/{name}.png", content)
        for name, content in pictures.items()
    }
    promoted, reason = promotion_verdict(summary, checks)
    evaluation_id = record_evaluation(
        storage.engine,
        training_job_id=reference.job_id,
        epoch=checkpoint.epoch,
        checkpoint_sha256=reference.sha256,
        weights_digest=checkpoint.weights_digest,
        synthetic_dataset_id=test_split.dataset_id,
        metrics=Evaluation(
            **dict(summary),
            headline=numbers,
            max_rmse_m=config.max_rmse_m,
            promoted=promoted,
            promotion_reason=reason,
        ).document(),
        visualization_paths={name: picture.location for name, picture in stored.items()},
    )
    log.info("model_evaluation: %s", printable(reason))
    found = [checkpoint.weights_digest, dataset.sha256, config.max_rmse_m, summary.document()]
    return dg.MaterializeResult(
        value=EvaluationReference(evaluation_id=evaluation_id),
        metadata={
            **{name: picture(content, name.replace("_", " ")) for name, content in pictures.items()},
            "promoted": promoted,
            "promotion_reason": reason,
            "estimators_good_geometry": table([rounded(row) for row in estimator_table(summary, Subset.good_geometry)]),
            "estimators_all": table([rounded(row) for row in estimator_table(summary, Subset.all)]),
            **rounded(drop_none(plotted(numbers))),
            "evaluation_id": evaluation_id,
            "summary": dg.MetadataValue.json(summary.document()),
        },
        data_version=dg.DataVersion(hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()),
        check_results=[
            dg.AssetCheckResult(
                check_name=check.name,
                passed=check.passed,
                severity=dg.AssetCheckSeverity.WARN,
                description=check.description,
                metadata=check.numbers,
            )
            for check in checks
        ],
    )
