"""The training."""

import hashlib
import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from triangulation_pipeline.defs.config import TrainedModelConfig
from triangulation_pipeline.defs.io_managers import CheckpointReference, StoredSplit
from triangulation_pipeline.defs.metadata import epoch_table, known, picture, records
from triangulation_pipeline.defs.resources import Storage, preflight, refusals
from triangulation_pipeline.model.spec import LocatorSpec
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.storage.datasets import DatasetRecord, get_dataset
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.jobs import (
    JobRecord,
    complete_job,
    fail_job,
    find_job,
    goes_on,
    read_metrics,
    record_epoch,
    start_job,
)
from triangulation_pipeline.storage.objects import StoredObject
from triangulation_pipeline.training.config import TrainingConfig

if TYPE_CHECKING:
    from triangulation_pipeline.training.trainer import Metrics, Trainer

log = logging.getLogger(__name__)

# Dagster plots the last hundred events of an asset, so a run observes about this many; the database has every epoch.
OBSERVED_EPOCHS = 60


@dg.asset(io_manager_key="checkpoints", kinds={"pytorch"})
def trained_model(
    context: dg.AssetExecutionContext,
    config: TrainedModelConfig,
    storage: Storage,
    training_split: StoredSplit,
    validation_split: StoredSplit,
) -> dg.MaterializeResult[CheckpointReference]:
    """The locator of the best epoch with calibrated covariances: `checkpoints/{job}/best_model.pth`. The metrics of
    each epoch appear while it trains: in this asset's plots, in `training_metrics` and in `training_jobs`."""
    preflight(context, storage)
    settings = TrainingConfig.model_validate(config.model_dump())
    with refusals():
        dataset = _dataset_of(storage, training_split, validation_split)
        job = _start(context, storage, settings, dataset)
    try:
        with refusals():
            trainer, stored = _train(context, storage, settings, dataset, job, training_split, validation_split)
            result = _result(storage, job, dataset, trainer, stored)
            complete_job(storage.engine, job.id)
    except BaseException as error:
        # Where the database itself is at fault, the first error is the one to be seen.
        with suppress(StorageError):
            fail_job(storage.engine, job.id, _cause(error))
        raise
    return result


def _result(
    storage: Storage, job: JobRecord, dataset: DatasetRecord, trainer: "Trainer", stored: dict[str, StoredObject]
) -> dg.MaterializeResult[CheckpointReference]:
    from triangulation_pipeline.evaluation import plots

    history = records(read_metrics(storage.engine, job.id))
    best = stored["best_model"]
    return dg.MaterializeResult(
        value=CheckpointReference(job_id=job.id, location=best.location, sha256=best.sha256),
        metadata={
            "curves": picture(plots.png(plots.training_curves(history, trainer.limit_m)), "training curves"),
            "best_epoch": trainer.best_epoch,
            "best_val_loss": trainer.best_val_loss,
            "epochs_run": trainer.epoch,
            "covariance_scale": trainer.covariance_scale,
            "best_metrics": dg.MetadataValue.json(trainer.best_checkpoint().metrics),
            "checkpoint": dg.MetadataValue.path(best.location),
            "sha256": best.sha256,
            "objects": dg.MetadataValue.json(
                {name: {"location": found.location, "sha256": found.sha256} for name, found in stored.items()}
            ),
            "dataset_id": dataset.id,
            "job_id": job.id,
            **epoch_table(history),
        },
        data_version=dg.DataVersion(best.sha256),
    )


def _start(
    context: dg.AssetExecutionContext, storage: Storage, settings: TrainingConfig, dataset: DatasetRecord
) -> JobRecord:
    """This run's job; a re-execution goes on with its root run's job where that ended early with equal settings."""
    config, root = settings.model_dump(mode="json"), context.run.root_run_id
    earlier = None if root is None else find_job(storage.engine, root)
    same = earlier is not None and goes_on(earlier, config, dataset.id)
    return start_job(
        storage.engine,
        job_id=earlier.id if earlier is not None and same else context.run.run_id,
        run_id=context.run.run_id,
        parent_job_id=None if earlier is None or same else earlier.id,
        job_name=settings.job_name,
        description=settings.description,
        config=config,
        synthetic_dataset_id=dataset.id,
        total_epochs=settings.epochs,
    )


def _train(
    context: dg.AssetExecutionContext,
    storage: Storage,
    settings: TrainingConfig,
    dataset: DatasetRecord,
    job: JobRecord,
    training_split: StoredSplit,
    validation_split: StoredSplit,
) -> tuple["Trainer", dict[str, StoredObject]]:
    """Trains, recording each epoch before it begins the next: objects, then rows, then the state before deleted."""
    from triangulation_pipeline.training.checkpoint import write_checkpoint
    from triangulation_pipeline.training.trainer import Trainer

    objects = storage.objects
    folder = f"checkpoints/{job.id}"
    trainer = Trainer(
        _spec(dataset, settings),
        settings,
        training_split.batch,
        validation_split.batch,
        {"id": dataset.id, "sha256": dataset.sha256},
    )
    if job.state_location is not None and job.state_sha256 is not None:
        trainer.restore(objects.get(objects.key(job.state_location), job.state_sha256))
        log.info("trained_model: job %s goes on after epoch %d", job.id, trainer.epoch)
    every = math.ceil(settings.epochs / OBSERVED_EPOCHS)
    stored: dict[str, StoredObject] = {}
    for metrics in trainer.epochs():
        epoch, content = trainer.epoch, trainer.state()
        if epoch % settings.checkpoint_every == 0:
            name = f"epoch_{epoch}"
            stored[name] = objects.put(f"{folder}/{name}.pth", write_checkpoint(trainer.last_checkpoint()))
        state = objects.put(f"{folder}/state/{epoch}-{hashlib.sha256(content).hexdigest()[:8]}.pth", content)
        before = record_epoch(
            storage.engine,
            job.id,
            metrics,
            best_epoch=trainer.best_epoch,
            best_val_loss=trainer.best_val_loss,
            total_epochs=settings.epochs,
            state_location=state.location,
            state_sha256=state.sha256,
        )
        if before is not None:
            objects.delete(objects.key(before))
        if epoch == 1 or epoch % every == 0 or trainer.finished:
            context.log_event(dg.AssetObservation(asset_key=context.asset_key, metadata=known(metrics)))
        log.info(_epoch_line(metrics, settings), extra={"epochs_done": epoch, "epochs_total": settings.epochs})
    stored["final_model"] = objects.put(f"{folder}/final_model.pth", write_checkpoint(trainer.last_checkpoint()))
    trainer.calibrate()
    stored["best_model"] = objects.put(f"{folder}/best_model.pth", write_checkpoint(trainer.best_checkpoint()))
    return trainer, stored


def _dataset_of(storage: Storage, *splits: StoredSplit) -> DatasetRecord:
    ids = sorted({split.dataset_id for split in splits})
    if len(ids) > 1:
        raise ValueError(f"the splits are of different datasets, {' and '.join(ids)}; materialise them in one run")
    return get_dataset(storage.engine, ids[0])


def _spec(dataset: DatasetRecord, settings: TrainingConfig) -> LocatorSpec:
    scenario = Scenario.model_validate(dataset.config["scenario"])
    return LocatorSpec(
        architecture=settings.model_architecture,
        network=ReceiverNetwork.model_validate(dataset.config["network"]),
        tx_height_m=scenario.tx_height_m,
        area_margin_m=scenario.area_margin_m,
        dropout_rate=settings.dropout_rate,
    )


def _epoch_line(metrics: "Metrics", settings: TrainingConfig) -> str:
    good_m = metrics["val_rmse_good_geom_m"]
    good = "no such rows" if good_m is None else f"{good_m:,.1f} m"
    return (
        f"epoch {metrics['epoch']}/{settings.epochs}: train_loss {metrics['train_loss']:.4f}, "
        f"val_loss {metrics['val_loss']:.4f}, val RMSE {metrics['val_rmse_m']:,.0f} m, "
        f"with GDOP < {settings.max_gdop:g} {good}, {metrics['epoch_seconds']:.1f} s"
    )


def _cause(error: BaseException) -> str:
    if isinstance(error, dg.Failure) and error.description:
        return error.description
    if isinstance(error, KeyboardInterrupt | DagsterExecutionInterruptedError):
        return "interrupted: the run was terminated"
    return f"{type(error).__name__}: {error}"
