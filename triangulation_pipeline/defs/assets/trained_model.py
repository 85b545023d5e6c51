"""The training."""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg

from triangulation_pipeline.defs.config import TrainedModelConfig
from triangulation_pipeline.defs.dagster_private import DagsterExecutionInterruptedError
from triangulation_pipeline.defs.failures import plain_failures
from triangulation_pipeline.defs.io_managers import CheckpointReference, StoredSplit
from triangulation_pipeline.defs.jobs import TRAINING_POOL
from triangulation_pipeline.defs.metadata import drop_none, epoch_table, picture, records
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import network_tag
from triangulation_pipeline.defs.step import end_if_terminated, step
from triangulation_pipeline.jobs.continuation import continues, start_job
from triangulation_pipeline.jobs.liveness import Heartbeat
from triangulation_pipeline.jobs.record import read_metrics, record_epoch
from triangulation_pipeline.jobs.states import (
    JobRecord,
    cancel_job,
    complete_job,
    fail_job,
    find_job,
    find_job_of_run,
    get_job,
    pause_job,
)
from triangulation_pipeline.model.spec import LOCATOR_VERSION
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.storage.datasets import DatasetRecord, get_dataset
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.objects import StoredObject
from triangulation_pipeline.storage.registry import find_referred_model, get_model_by_id
from triangulation_pipeline.storage.tables import JobStatus, Stop
from triangulation_pipeline.training.config import TRAINING_VERSION, TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics

if TYPE_CHECKING:
    from triangulation_pipeline.model.checkpoint import Checkpoint
    from triangulation_pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)

# A run observes about so many epochs: each is an event for good, and its picture weighs 20 kB and takes a fifth of a
# second. The database has every epoch.
OBSERVED_EPOCHS = 20
# Of the best epoch, with calibrated covariances: what Dagster draws from run to run.
PLOTTED = ("val_loss", "val_rmse_good_geom_m", "val_distance_p50_m", "val_coverage_95")


@dg.asset(
    group_name="model",
    io_manager_key="checkpoints",
    kinds={"pytorch"},
    pool=TRAINING_POOL,
    code_version=f"training {TRAINING_VERSION}, locator {LOCATOR_VERSION}, solvers {SOLVERS_VERSION}",
)
@step
def trained_model(
    context: dg.AssetExecutionContext,
    config: TrainedModelConfig,
    storage: Storage,
    training_split: StoredSplit,
    validation_split: StoredSplit,
) -> dg.MaterializeResult[CheckpointReference]:
    """The locator of the best epoch with calibrated covariances: `checkpoints/{job}/best_model.pth`. The metrics of
    each epoch appear while it trains: as `curves` among this asset's events, in `training_metrics` and in
    `training_jobs`."""
    from triangulation_pipeline.training.trainer import TrainingStopped

    settings = TrainingConfig.model_validate(config.model_dump())
    dataset = _dataset_of(storage, training_split, validation_split)
    context.instance.add_run_tags(context.run.run_id, network_tag(dataset.network_name, dataset.network_digest))
    settings = _with_parent_id(context, storage, settings)
    parent = _parent(storage, settings)
    if (job := _completed_unseen(context, storage, settings, dataset)) is not None:
        trainer = _trainer(storage, settings, dataset, training_split, validation_split, parent)
        _restore(storage, job, trainer)
        return _result(storage, job, dataset, trainer, _publish(storage, job, trainer))
    job = _start(context, storage, settings, dataset)
    heartbeat = Heartbeat(storage.engine, job)
    try:
        with plain_failures(), heartbeat:
            trainer = _trainer(storage, settings, dataset, training_split, validation_split, parent)
            _restore(storage, job, trainer)
            stored = _train(context, storage, settings, job, trainer, lambda: heartbeat.should_stop)
            result = _result(storage, job, dataset, trainer, stored | _publish(storage, job, trainer))
            complete_job(storage.engine, job)
    except TrainingStopped:
        raise _stopped(storage, job, heartbeat) from None
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        with suppress(StorageError):
            cancel_job(storage.engine, job, "the run was terminated")
        raise
    except BaseException as error:
        # Where the database itself is at fault, the first error is the one to be seen.
        with suppress(StorageError):
            fail_job(storage.engine, job, _cause(error))
        raise
    return result


def _result(
    storage: Storage, job: JobRecord, dataset: DatasetRecord, trainer: "Trainer", stored: dict[str, StoredObject]
) -> dg.MaterializeResult[CheckpointReference]:
    history = records(read_metrics(storage.engine, job.id))
    best, checkpoint = stored["best_model"], trainer.best_checkpoint()
    return dg.MaterializeResult(
        value=CheckpointReference(job_id=job.id, location=best.location, sha256=best.sha256),
        metadata={
            "curves": _curves(history, trainer.limit_m, trainer.limit_p50_m),
            **drop_none({f"best_{name}": checkpoint.metrics[name] for name in PLOTTED}),
            "best_epoch": trainer.best_epoch,
            "epochs_run": trainer.epoch,
            "covariance_scale": trainer.covariance_scale,
            "calibrated_metrics": dg.MetadataValue.json(checkpoint.metrics),
            "checkpoint": dg.MetadataValue.path(best.location),
            "sha256": best.sha256,
            "weights_digest": checkpoint.weights_digest,
            "objects": dg.MetadataValue.json(
                {name: {"location": found.location, "sha256": found.sha256} for name, found in stored.items()}
            ),
            "dataset_id": dataset.id,
            "job_id": job.id,
            **epoch_table(history),
        },
        # Not of the file, which holds the seconds each epoch took: an equal training leaves what follows in sync.
        data_version=dg.DataVersion(checkpoint.weights_digest),
    )


def _curves(history: Sequence[Mapping[str, Any]], *limits_m: float | None) -> dg.MarkdownMetadataValue:
    from triangulation_pipeline.plots.style import png
    from triangulation_pipeline.plots.training import training_curves

    return picture(png(training_curves(history, *limits_m)), "training curves")


def _start(
    context: dg.AssetExecutionContext, storage: Storage, settings: TrainingConfig, dataset: DatasetRecord
) -> JobRecord:
    """This run's job: the one announced for it, or the one that the run it re-executes left behind, where that is the
    same training; else a new one. Raises ValueError where it was queued to be resumed, and is another training."""
    config, run, engine = settings.model_dump(mode="json"), context.run, storage.engine
    earlier = _earlier(context, storage)
    if earlier is not None and earlier.status is JobStatus.running and _has_ended(context.instance, earlier.run_id):
        with suppress(IllegalTransition):  # the sensor was faster
            fail_job(engine, earlier, "its worker died")
        earlier = get_job(engine, earlier.id)
    same = earlier is not None and continues(earlier, config, dataset.id)
    if earlier is not None and earlier.status is JobStatus.queued and not same:
        told = f"job {earlier.id} was begun with other settings or another dataset, and cannot be resumed with these"
        fail_job(engine, earlier, told)
        raise ValueError(f"{told}; launch a new run")
    return start_job(
        engine,
        job_id=earlier.id if earlier is not None and same else run.run_id,
        run_id=run.run_id,
        parent_job_id=None if earlier is None or same else earlier.id,
        job_name=settings.job_name,
        description=settings.description,
        config=config,
        synthetic_dataset_id=dataset.id,
        total_epochs=settings.epochs,
    )


def _earlier(context: dg.AssetExecutionContext, storage: Storage) -> JobRecord | None:
    """The job announced for this run, or that of the run it re-executes."""
    run, engine = context.run, storage.engine
    if (announced := find_job_of_run(engine, run.run_id)) is not None:
        return announced
    if run.parent_run_id is None or run.root_run_id is None:
        return None
    return find_job_of_run(engine, run.parent_run_id) or find_job(engine, run.root_run_id)


def _completed_unseen(
    context: dg.AssetExecutionContext, storage: Storage, settings: TrainingConfig, dataset: DatasetRecord
) -> JobRecord | None:
    """The job that a run completed right before it died, where this run re-executes that one, at first or second hand,
    and Dagster has seen none of them end this step."""
    job, run, step = _earlier(context, storage), context.run, context.op_execution_context.op.name
    if job is None or job.status is not JobStatus.completed:
        return None
    if (job.config, job.synthetic_dataset_id) != (settings.model_dump(mode="json"), dataset.id):
        return None
    while run.parent_run_id is not None and run.run_id != job.run_id:
        ended = context.instance.all_logs(run.parent_run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
        parent = context.instance.get_run_by_id(run.parent_run_id)
        if parent is None or step in {event.step_key for event in ended}:
            return None
        run = parent
    return job if run.run_id == job.run_id else None


def _has_ended(instance: dg.DagsterInstance, run_id: str | None) -> bool:
    run = None if run_id is None else instance.get_run_by_id(run_id)
    return run is not None and run.is_finished


def _stopped(storage: Storage, job: JobRecord, heartbeat: Heartbeat) -> dg.Failure:
    """Writes down that the job stopped as it was asked to; the sentence that its run ends with."""
    if heartbeat.lost is not None:
        return dg.Failure(description=f"stopped: {heartbeat.lost}")
    epoch = get_job(storage.engine, job.id).current_epoch
    where = f"at epoch {epoch} of {job.total_epochs}"
    if heartbeat.asked is Stop.pause:
        pause_job(storage.engine, job)
        outcome, told = "paused", f"paused {where}; `triangulation resume {job.id}` goes on from there"
    else:
        cancel_job(storage.engine, job, f"cancelled {where}")
        outcome, told = "cancelled", f"cancelled {where}; `triangulation resume {job.id}` goes on from there"
    return dg.Failure(description=told, metadata={"outcome": outcome, "job_id": job.id, "epoch": epoch})


def _with_parent_id(context: dg.AssetExecutionContext, storage: Storage, settings: TrainingConfig) -> TrainingConfig:
    """The settings with the id of the model that they refer to: of the one that this training was begun from, where it
    goes on."""
    if settings.parent_model_id is None:
        return settings
    earlier = _earlier(context, storage)
    before_id = (
        earlier.config.get("parent_model_id") if earlier is not None and earlier.started_at is not None else None
    )
    model = find_referred_model(storage.engine, settings.parent_model_id, before_id)
    return settings.model_copy(update={"parent_model_id": model.id})


def _parent(storage: Storage, settings: TrainingConfig) -> "Checkpoint | None":
    """The checkpoint of the model that the training begins from."""
    if settings.parent_model_id is None:
        return None
    from triangulation_pipeline.model.checkpoint import read_checkpoint

    model = get_model_by_id(storage.engine, settings.parent_model_id)
    return read_checkpoint(storage.objects.get(storage.objects.key(model.pytorch_model_location), model.sha256))


def _trainer(
    storage: Storage,
    settings: TrainingConfig,
    dataset: DatasetRecord,
    training_split: StoredSplit,
    validation_split: StoredSplit,
    parent: "Checkpoint | None",
) -> "Trainer":
    from triangulation_pipeline.model.checkpoint import DatasetReference
    from triangulation_pipeline.training.trainer import Trainer

    return Trainer(
        settings.locator_spec(
            ReceiverNetwork.model_validate(dataset.config["network"]),
            Scenario.model_validate(dataset.config["scenario"]),
        ),
        settings,
        training_split.batch,
        validation_split.batch,
        DatasetReference(dataset_id=dataset.id, sha256=dataset.sha256),
        parent,
    )


def _train(
    context: dg.AssetExecutionContext,
    storage: Storage,
    settings: TrainingConfig,
    job: JobRecord,
    trainer: "Trainer",
    should_stop: Callable[[], bool],
) -> dict[str, StoredObject]:
    """Trains, recording each epoch before it begins the next: objects, then rows, then the state before deleted."""
    from triangulation_pipeline.model.checkpoint import write_checkpoint

    objects = storage.objects
    folder = f"checkpoints/{job.id}"
    every = math.ceil(settings.epochs / OBSERVED_EPOCHS)
    limits_m = trainer.limit_m, trainer.limit_p50_m
    stored: dict[str, StoredObject] = {}
    for metrics in trainer.epochs(should_stop):
        epoch, content = trainer.epoch, trainer.state()
        if epoch % settings.checkpoint_every == 0:
            name = f"epoch_{epoch}"
            stored[name] = objects.put(f"{folder}/{name}.pth", write_checkpoint(trainer.last_checkpoint()))
        state = objects.put(f"{folder}/state/{epoch}-{hashlib.sha256(content).hexdigest()[:8]}.pth", content)
        before = record_epoch(
            storage.engine,
            job,
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
            history = [asdict(each) for each in trainer.history]
            seen = {"curves": _curves(history, *limits_m), "metrics": dg.MetadataValue.json(asdict(metrics))}
            context.log_event(dg.AssetObservation(asset_key=context.asset_key, metadata=seen))
        log.info(_epoch_line(metrics, settings), extra={"epochs_done": epoch, "epochs_total": settings.epochs})
        end_if_terminated(context)
    return stored


def _restore(storage: Storage, job: JobRecord, trainer: "Trainer") -> None:
    """Back to the state that the job's last epoch left, if there was one."""
    if job.state_location is not None and job.state_sha256 is not None:
        trainer.restore(storage.objects.get(storage.objects.key(job.state_location), job.state_sha256))
        log.info("trained_model: job %s goes on after epoch %d", job.id, trainer.epoch)


def _publish(storage: Storage, job: JobRecord, trainer: "Trainer") -> dict[str, StoredObject]:
    """Stores the weights of the last epoch, and the calibrated ones of the best epoch."""
    from triangulation_pipeline.model.checkpoint import write_checkpoint

    folder = f"checkpoints/{job.id}"
    best, last = trainer.finish()
    return {
        "final_model": storage.objects.put(f"{folder}/final_model.pth", write_checkpoint(last)),
        "best_model": storage.objects.put(f"{folder}/best_model.pth", write_checkpoint(best)),
    }


def _dataset_of(storage: Storage, training_split: StoredSplit, validation_split: StoredSplit) -> DatasetRecord:
    if training_split.dataset_id != validation_split.dataset_id:
        raise ValueError(
            f"training_split is of dataset {training_split.dataset_id}, validation_split of dataset "
            f"{validation_split.dataset_id}; materialise both in one run"
        )
    return get_dataset(storage.engine, training_split.dataset_id)


def _epoch_line(metrics: EpochMetrics, settings: TrainingConfig) -> str:
    good_m = metrics.val_rmse_good_geom_m
    good = "no such rows" if good_m is None else f"{good_m:,.1f} m"
    return (
        # As long as a line of a terminal, 80 characters.
        f"epoch {metrics.epoch}/{settings.epochs}: loss {metrics.train_loss:.3f}, "
        f"val loss {metrics.val_loss:.3f}, RMSE {metrics.val_rmse_m:,.0f} m, "
        f"GDOP < {settings.max_gdop:g}: {good}, {metrics.epoch_seconds:.1f} s"
    )


def _cause(error: BaseException) -> str:
    if isinstance(error, dg.Failure) and error.description:
        return error.description
    return f"{type(error).__name__}: {error}"
