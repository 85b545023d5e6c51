"""The work on a job, from the state that its last epoch left to the weights that it publishes. It imports PyTorch."""

import logging
from collections.abc import Callable

from sqlalchemy import Engine

from triangulation_pipeline.jobs.record import job_folder, load_checkpoint, read_state, record_epoch
from triangulation_pipeline.jobs.states import JobRecord
from triangulation_pipeline.model.checkpoint import Checkpoint, DatasetReference, write_checkpoint
from triangulation_pipeline.model.spec import UNIVERSAL
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.storage.datasets import DatasetRecord
from triangulation_pipeline.storage.objects import ObjectStore, StoredObject
from triangulation_pipeline.storage.registry import get_model_by_id
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics
from triangulation_pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


def parent_checkpoint(engine: Engine, objects: ObjectStore, config: TrainingConfig) -> Checkpoint | None:
    """The checkpoint of the model that the training begins from, None if it begins from random weights. The config
    names a registered model by its id. Raises StorageError and ValueError if the checkpoint cannot be read."""
    if config.parent_model_id == UNIVERSAL:
        return universal_model()
    if config.registered_parent is None:
        return None
    model = get_model_by_id(engine, config.registered_parent)
    return load_checkpoint(objects, model.pytorch_model_location, model.sha256)


def restored_trainer(
    objects: ObjectStore,
    job: JobRecord,
    config: TrainingConfig,
    dataset: DatasetRecord,
    training: Samples,
    validation: Samples,
    parent: Checkpoint | None,
) -> Trainer:
    """The trainer of a job, in the state that its last epoch left, if there was one. Raises what ``Trainer`` and its
    ``restore`` raise, and StorageError if the state cannot be read."""
    reference = DatasetReference(dataset_id=dataset.id, sha256=dataset.sha256)
    spec = config.locator_spec(dataset.spec)
    trainer = Trainer(spec, config, dataset.spec, training, validation, reference, parent)
    if (state := read_state(objects, job)) is not None:
        trainer.restore(state)
        log.info("trained_model: job %s goes on after epoch %d", job.id, trainer.epoch)
    return trainer


def train(
    engine: Engine,
    objects: ObjectStore,
    job: JobRecord,
    trainer: Trainer,
    should_stop: Callable[[], bool],
    observe: Callable[[EpochMetrics], None],
) -> dict[str, StoredObject]:
    """Trains to the end and records each epoch before it begins the next. Gives the checkpoints of every n-th epoch by
    name; they are stored before the epoch is recorded, and ``observe`` is called after it.

    Raises what ``Trainer.epochs`` and ``record_epoch`` raise.
    """
    stored: dict[str, StoredObject] = {}
    for metrics in trainer.epochs(should_stop):
        if metrics.epoch % trainer.config.checkpoint_every == 0:
            name = f"epoch_{metrics.epoch}"
            stored[name] = _put(objects, job, name, trainer.last_checkpoint())
        record_epoch(
            engine,
            objects,
            job,
            metrics,
            trainer.state(),
            best_epoch=trainer.best_epoch,
            best_val_loss=trainer.best_val_loss,
        )
        progress = {"current_epoch": metrics.epoch, "total_epochs": job.total_epochs}
        log.info(_epoch_line(metrics, trainer.config), extra=progress)
        observe(metrics)
    return stored


def publish(objects: ObjectStore, job: JobRecord, trainer: Trainer) -> dict[str, StoredObject]:
    """Stores the weights of the last epoch and of the best one."""
    return {
        "final_model": _put(objects, job, "final_model", trainer.last_checkpoint()),
        "best_model": _put(objects, job, "best_model", trainer.best_checkpoint()),
    }


def _put(objects: ObjectStore, job: JobRecord, name: str, checkpoint: Checkpoint) -> StoredObject:
    return objects.put(f"{job_folder(job)}/{name}.pth", write_checkpoint(checkpoint))


def _epoch_line(metrics: EpochMetrics, config: TrainingConfig) -> str:
    """The epoch in one line of a terminal, 80 characters."""
    good_m = metrics.val_rmse_good_geom_m
    good = "no such rows" if good_m is None else f"{good_m:,.1f} m"
    return (
        f"epoch {metrics.epoch}/{config.epochs}: loss {metrics.train_loss:.3f}, "
        f"val loss {metrics.val_loss:.3f}, RMSE {metrics.val_rmse_m:,.0f} m, "
        f"GDOP < {config.max_gdop:g}: {good}, {metrics.epoch_seconds:.1f} s"
    )
