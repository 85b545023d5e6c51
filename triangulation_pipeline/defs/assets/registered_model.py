"""The registry."""

import logging

import dagster as dg

from triangulation_pipeline.defs.config import RegisteredModelConfig
from triangulation_pipeline.defs.io_managers import EvaluationReference, ModelReference, StoredCheckpoint
from triangulation_pipeline.defs.metadata import epoch_table, known, picture, records
from triangulation_pipeline.defs.resources import Storage, preflight, refusals
from triangulation_pipeline.storage.jobs import read_metrics
from triangulation_pipeline.storage.registry import get_evaluation, register_model

log = logging.getLogger(__name__)


@dg.asset(io_manager_key="references", kinds={"sqlalchemy"})
def registered_model(
    context: dg.AssetExecutionContext,
    config: RegisteredModelConfig,
    storage: Storage,
    trained_model: StoredCheckpoint,
    model_evaluation: EvaluationReference,
) -> dg.MaterializeResult[ModelReference]:
    """A version in `models`: name, digest and place of the weights, the metrics of exactly that epoch, dataset, job and
    network; promoted to production or not, and why."""
    preflight(context, storage)

    from triangulation_pipeline.evaluation import plots

    reference = trained_model.reference
    with refusals():
        checkpoint = trained_model.read()
        network = checkpoint.spec.network
        evaluation = get_evaluation(storage.engine, model_evaluation.evaluation_id)
        if evaluation.checkpoint_sha256 != reference.sha256:
            raise ValueError(
                f"the evaluation is of weights {evaluation.checkpoint_sha256[:12]}, the trained model's are "
                f"{reference.sha256[:12]}; evaluate and register in one run"
            )
        headline = evaluation.metrics["headline"]
        model = register_model(
            storage.engine,
            model_name=config.model_name,
            model_architecture=checkpoint.spec.architecture.value,
            pytorch_model_location=reference.location,
            sha256=reference.sha256,
            epoch=checkpoint.epoch,
            trained_by_job_id=reference.job_id,
            synthetic_dataset_id=checkpoint.dataset["id"],
            network_name=network.name,
            network_digest=network.digest,
            hyperparameters=checkpoint.config,
            metrics={**checkpoint.metrics, **headline},
            promoted=evaluation.metrics["promoted"],
            promotion_reason=evaluation.metrics["promotion_reason"],
            parent_model_id=checkpoint.config["parent_model_id"],
        )
    history = records(read_metrics(storage.engine, reference.job_id))
    log.info("registered_model: %s version %d", model.model_name, model.version)
    return dg.MaterializeResult(
        value=ModelReference(model_id=model.id),
        metadata={
            "model_name": model.model_name,
            "version": model.version,
            "promoted": model.promoted,
            "promotion_reason": model.promotion_reason,
            "curves": picture(plots.png(plots.training_curves(history)), "training curves"),
            **known(headline),
            "epoch": model.epoch,
            "checkpoint": dg.MetadataValue.path(model.pytorch_model_location),
            "sha256": model.sha256,
            "dataset_id": model.synthetic_dataset_id,
            "job_id": model.trained_by_job_id,
            "network_digest": model.network_digest,
            **epoch_table(history),
        },
        data_version=dg.DataVersion(model.sha256),
    )
