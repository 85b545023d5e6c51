"""The training."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import dagster as dg

from triangulation_pipeline.defs.config import TrainedModelConfig
from triangulation_pipeline.defs.dagster_private import DagsterExecutionInterruptedError
from triangulation_pipeline.defs.failures import plain_failures
from triangulation_pipeline.defs.io_managers import CheckpointReference, StoredSplit, same_dataset
from triangulation_pipeline.defs.jobs import TRAINING_POOL
from triangulation_pipeline.defs.metadata import drop_none, epoch_table, picture
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import network_tag
from triangulation_pipeline.defs.step import end_if_terminated, step
from triangulation_pipeline.jobs.continuation import begin_job, with_parent_id
from triangulation_pipeline.jobs.liveness import Heartbeat
from triangulation_pipeline.jobs.record import read_history
from triangulation_pipeline.jobs.states import (
    RUN_TERMINATED,
    JobRecord,
    cancel_job,
    complete_job,
    fail_job,
    get_job,
    pause_job,
)
from triangulation_pipeline.model.spec import LOCATOR_VERSION
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.storage.datasets import get_dataset
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import StoredObject
from triangulation_pipeline.storage.tables import JobStatus, Stop
from triangulation_pipeline.training.config import TRAINING_VERSION, TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics

if TYPE_CHECKING:
    from triangulation_pipeline.training.trainer import Trainer

# A run observes about so many epochs: each is an event for good, and its picture weighs 20 kB and takes a fifth of a
# second. The database has every epoch.
OBSERVED_EPOCHS = 20
# Of the best epoch: what Dagster draws from run to run.
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
    """The locator of the best epoch: `checkpoints/{job}/best_model.pth`. The metrics of each epoch appear while it
    trains: as `curves` among this asset's events, in `training_metrics` and in `training_jobs`."""
    from triangulation_pipeline.jobs.worker import parent_checkpoint, publish, restored_trainer, train
    from triangulation_pipeline.training.trainer import TrainingStopped

    engine, objects, run = storage.engine, storage.objects, context.run
    settings = TrainingConfig.model_validate(config.model_dump())
    dataset_id = same_dataset(training_split=training_split.dataset_id, validation_split=validation_split.dataset_id)
    dataset = get_dataset(engine, dataset_id)
    context.instance.add_run_tags(run.run_id, network_tag(dataset.network_name, dataset.network_digest))
    settings = with_parent_id(engine, run, settings)
    parent = parent_checkpoint(engine, objects, settings)
    job = begin_job(
        engine,
        run,
        settings,
        dataset.id,
        find_run=context.instance.get_run_by_id,
        unseen_run_ids=_unseen_run_ids(context),
    )
    splits = training_split.batch, validation_split.batch
    restored = partial(restored_trainer, objects, job, settings, dataset, *splits, parent)
    if job.status is JobStatus.completed:
        trainer = restored()
        return _result(storage, job, trainer, publish(objects, job, trainer))
    heartbeat = Heartbeat(engine, job)
    try:
        with plain_failures(), heartbeat:
            trainer = restored()
            observe = partial(_observe, context, trainer)
            stored = train(engine, objects, job, trainer, lambda: heartbeat.should_stop, observe)
            result = _result(storage, job, trainer, stored | publish(objects, job, trainer))
            complete_job(engine, job)
    except TrainingStopped:
        raise _stopped(storage, job, heartbeat) from None
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        with suppress(StorageError):
            cancel_job(engine, job, RUN_TERMINATED)
        raise
    except BaseException as error:
        # If the database itself is at fault, the first error is the one to show.
        with suppress(StorageError):
            fail_job(engine, job, _cause(error))
        raise
    return result


def _unseen_run_ids(context: dg.AssetExecutionContext) -> Iterator[str]:
    """This run and those that it re-executes, one by one, up to the first of which Dagster has seen this step end."""
    run, step = context.run, context.op_execution_context.op.name
    yield run.run_id
    while run.parent_run_id is not None:
        ended = context.instance.all_logs(run.parent_run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
        parent = context.instance.get_run_by_id(run.parent_run_id)
        if parent is None or step in {event.step_key for event in ended}:
            return
        run = parent
        yield run.run_id


def _observe(context: dg.AssetExecutionContext, trainer: "Trainer", metrics: EpochMetrics) -> None:
    """Shows some of the epochs among the asset's events, the first and the last with them; ends a run that was
    terminated."""
    if metrics.epoch == 1 or metrics.epoch % ceil(trainer.config.epochs / OBSERVED_EPOCHS) == 0 or trainer.finished:
        curves = _curves(trainer.history, trainer.limit_m, trainer.limit_p50_m)
        shown = {"curves": curves, "metrics": dg.MetadataValue.json(asdict(metrics))}
        context.log_event(dg.AssetObservation(asset_key=context.asset_key, metadata=shown))
    end_if_terminated(context)


def _result(
    storage: Storage, job: JobRecord, trainer: "Trainer", stored: dict[str, StoredObject]
) -> dg.MaterializeResult[CheckpointReference]:
    history = read_history(storage.engine, job.id)
    best, checkpoint = stored["best_model"], trainer.best_checkpoint()
    return dg.MaterializeResult(
        value=CheckpointReference(job_id=job.id, location=best.location, sha256=best.sha256),
        metadata={
            "curves": _curves(history, trainer.limit_m, trainer.limit_p50_m),
            **drop_none({f"best_{name}": checkpoint.metrics[name] for name in PLOTTED}),
            "best_epoch": trainer.best_epoch,
            "epochs_run": trainer.epoch,
            "best_metrics": dg.MetadataValue.json(checkpoint.metrics),
            "checkpoint": dg.MetadataValue.path(best.location),
            "sha256": best.sha256,
            "weights_digest": checkpoint.weights_digest,
            "objects": dg.MetadataValue.json(
                {name: {"location": found.location, "sha256": found.sha256} for name, found in stored.items()}
            ),
            "dataset_id": job.synthetic_dataset_id,
            "job_id": job.id,
            **epoch_table([asdict(metrics) for metrics in history]),
        },
        # Not of the file, which holds the seconds of each epoch: after an equal training, later steps stay in sync.
        data_version=dg.DataVersion(checkpoint.weights_digest),
    )


def _stopped(storage: Storage, job: JobRecord, heartbeat: Heartbeat) -> dg.Failure:
    """Writes down that the job stopped as it was asked to; gives the failure that its run ends with."""
    if heartbeat.lost is not None:
        return dg.Failure(description=f"stopped: {heartbeat.lost}")
    where = f"at epoch {get_job(storage.engine, job.id).current_epoch} of {job.total_epochs}"
    if heartbeat.asked is Stop.pause:
        stopped = pause_job(storage.engine, job)
    else:
        stopped = cancel_job(storage.engine, job, f"cancelled {where}")
    return dg.Failure(
        description=f"{stopped.status} {where}; `triangulation resume {job.id}` goes on from there",
        metadata={"outcome": stopped.status.value, "job_id": job.id, "epoch": stopped.current_epoch},
    )


def _curves(history: Sequence[EpochMetrics], *limits_m: float | None) -> dg.MarkdownMetadataValue:
    from triangulation_pipeline.plots.style import png
    from triangulation_pipeline.plots.training import training_curves

    return picture(png(training_curves(history, *limits_m)), "training curves")


def _cause(error: BaseException) -> str:
    if isinstance(error, dg.Failure) and error.description:
        return error.description
    return f"{type(error).__name__}: {error}"
