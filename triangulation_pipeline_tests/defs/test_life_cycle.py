"""Jobs that are paused, cancelled, resumed, retried, fine-tuned, and whose workers die."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from dagster._core.storage.event_log import SqliteEventLogStorage
from sqlalchemy import Engine, delete, update

from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.jobs import liveness, worker
from triangulation_pipeline.jobs.continuation import requeue_job
from triangulation_pipeline.jobs.record import load_checkpoint, read_metrics, record_epoch
from triangulation_pipeline.jobs.states import (
    JobRecord,
    complete_job,
    fail_job,
    find_job_of_run,
    get_job,
    list_jobs,
    request_stop,
)
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.registry import (
    NewModel,
    find_production_model,
    find_referred_model,
    get_model_of_job,
    register_model,
)
from triangulation_pipeline.storage.tables import JobStatus, Stop, models, training_jobs
from triangulation_pipeline_tests.conftest import make_home
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.storage.model_rows import get_model, list_models

pytestmark = pytest.mark.faults


@contextmanager
def when_epochs_are_done(engine: Engine, run_id: str, epochs: int, act: Callable[[], object]) -> Iterator[None]:
    """Acts, once, as soon as the run's job has so many epochs."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            job = find_job_of_run(engine, run_id)
            if job is not None and job.current_epoch >= epochs:
                act()
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    watcher.join()


def resume(run: Run) -> Run:
    """Re-executes a run from its failure, in this process, as the command line does."""
    options = dg.ReexecutionOptions.from_failure(run.run_id, run.instance)
    with dg.execute_job(dg.reconstructable(train_locator_job), run.instance, reexecution_options=options) as result:
        return Run(result, run.instance, run.storage)


def weights(run: Run, job: JobRecord) -> dict[str, torch.Tensor]:
    """Those of the job's registered model."""
    model = get_model_of_job(run.engine, job.id)
    return load_checkpoint(run.storage.objects, model.pytorch_model_location, model.sha256).weights


def timeless(run: Run, job: JobRecord) -> list[dict[str, Any]]:
    return read_metrics(run.engine, job.id).drop(columns="epoch_seconds").to_dict("records")


LONG = settings(
    synthetic_dataset={"num_samples": 1000}, trained_model={"epochs": 9, "early_stop_patience": 0, "batch_size": 64}
)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The same training, left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(make_home(tmp_path_factory.mktemp("whole") / "home")))
        run = execute(LONG)
        assert run.result.success
        run.storage.open()
    yield run
    run.storage.close()
    run.instance.dispose()


@pytest.mark.parametrize("stop", Stop)
def test_a_stopped_job_is_resumed_as_if_it_had_never_stopped(
    never_stopped: Run, home: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop
) -> None:
    monkeypatch.setattr(liveness, "HEARTBEAT_S", 0.02)
    engine, run_id = Storage().engine, str(uuid.uuid4())
    with when_epochs_are_done(engine, run_id, 3, lambda: request_stop(engine, run_id, stop)):
        run = execute(LONG, run_id=run_id)
    job = get_job(engine, run_id)
    assert 3 <= job.current_epoch < 9
    done = f"{'paused' if stop is Stop.pause else 'cancelled'} at epoch {job.current_epoch} of 9"
    assert run.failed_step() == "trained_model"
    assert run.failure().startswith(done)
    assert job.status is (JobStatus.paused if stop is Stop.pause else JobStatus.cancelled)
    assert job.stop_requested is None
    assert job.error_message == (None if stop is Stop.pause else done)
    (event,) = (e for e in run.result.all_events if e.is_step_failure)
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert {name: value.value for name, value in failure.metadata.items()} == {
        "outcome": job.status,
        "job_id": run_id,
        "epoch": job.current_epoch,
    }
    assert list_models(engine) == []

    again = resume(run)
    assert again.result.success
    resumed = get_job(engine, run_id)
    assert (resumed.status, resumed.run_id, resumed.current_epoch) == (JobStatus.completed, again.run_id, 9)
    assert resumed.error_message is None
    assert [row.id for row in list_jobs(engine)] == [run_id]

    other = get_job(never_stopped.engine, never_stopped.run_id)
    assert timeless(again, resumed) == timeless(never_stopped, other)
    mine, its = weights(again, resumed), weights(never_stopped, other)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.parametrize("when", ["a step begins", "it trains"])
def test_a_terminated_run_that_missed_its_interrupt_ends(
    home: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Its status says so; the exception that Dagster raises in it can be lost in some C code."""
    instance, run_id = dg.DagsterInstance.get(), str(uuid.uuid4())

    def terminated() -> None:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.report_run_canceling(run)

    engine = Storage().engine
    if when == "a step begins":
        place = "triangulation_pipeline.defs.assets.synthetic_dataset.check_memory"
        monkeypatch.setattr(place, lambda *counts: terminated())
        execute(LONG, instance=instance, run_id=run_id)
        assert list_jobs(engine) == []
    else:
        with when_epochs_are_done(engine, run_id, 2, terminated):
            execute(LONG, instance=instance, run_id=run_id)
        job = get_job(engine, run_id)
        assert (job.status, job.error_message) == (JobStatus.cancelled, "the run was terminated")
        assert 2 <= job.current_epoch < 9
    ended = instance.get_run_by_id(run_id)
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.CANCELED


def test_a_job_that_was_taken_for_dead_stops(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "HEARTBEAT_S", 0.02)
    engine, run_id = Storage().engine, str(uuid.uuid4())
    with when_epochs_are_done(engine, run_id, 1, lambda: fail_job(engine, get_job(engine, run_id), "no heartbeat")):
        run = execute(LONG, run_id=run_id)
    assert run.failure().endswith(f"job {run_id} is failed in run {run_id}, and no longer running in run {run_id}")
    job = get_job(engine, run_id)
    assert (job.status, job.error_message) == (JobStatus.failed, "no heartbeat")


def test_a_terminated_run_leaves_a_cancelled_job(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "record_epoch", terminated)
    run = execute(settings())
    assert not run.result.success
    job = get_job(run.engine, run.run_id)
    assert (job.status, job.error_message) == (JobStatus.cancelled, "the run was terminated")


def test_a_retry_takes_over_from_a_worker_that_died(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row still says running: nobody came to write down that the worker was killed."""
    from triangulation_pipeline.defs.assets import trained_model as asset

    class Killed(BaseException):
        pass

    def recorded_until_2(engine: Engine, objects: Any, job: JobRecord, metrics: Any, *rest: Any, **best: Any) -> None:
        if metrics.epoch == 3:
            raise Killed
        record_epoch(engine, objects, job, metrics, *rest, **best)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "record_epoch", recorded_until_2)
        patch.setattr(asset, "fail_job", lambda *_: None)
        instance, run_id = dg.DagsterInstance.get(), str(uuid.uuid4())
        assert not execute(settings(), instance=instance, run_id=run_id).result.success
    storage = Storage()
    assert get_job(storage.engine, run_id).status is JobStatus.running
    options = dg.ReexecutionOptions.from_failure(run_id, instance)
    with dg.execute_job(dg.reconstructable(train_locator_job), instance, reexecution_options=options) as result:
        assert result.success
    job = get_job(storage.engine, run_id)
    assert (job.status, job.current_epoch, job.run_id) == (JobStatus.completed, 4, result.run_id)
    assert read_metrics(storage.engine, run_id)["epoch"].tolist() == [1, 2, 3, 4]


class Killed(BaseException):
    """Nothing is written down after it."""


def killed_when_it_completed_the_job(patch: pytest.MonkeyPatch) -> None:
    from triangulation_pipeline.defs.assets import trained_model as asset

    def completed_and_killed(engine: Engine, job: JobRecord) -> None:
        complete_job(engine, job)
        raise Killed

    patch.setattr(asset, "complete_job", completed_and_killed)


def killed_when_its_result_was_stored(patch: pytest.MonkeyPatch) -> None:
    """The asset is materialised, but the step has not ended yet."""
    store = SqliteEventLogStorage.store_event

    def stored_or_killed(self: SqliteEventLogStorage, event: dg.EventLogEntry) -> None:
        if event.dagster_event_type is dg.DagsterEventType.STEP_SUCCESS and event.step_key == "trained_model":
            raise Killed
        store(self, event)

    patch.setattr(SqliteEventLogStorage, "store_event", stored_or_killed)


@pytest.mark.parametrize("killed", [killed_when_it_completed_the_job, killed_when_its_result_was_stored])
def test_a_job_that_was_completed_right_before_its_worker_died(
    home: Path, monkeypatch: pytest.MonkeyPatch, killed: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Dagster has not seen the step end; the job is not trained again, and stays as it is."""
    with monkeypatch.context() as patch:
        killed(patch)
        run = execute(settings())
        assert not run.result.success
    before = get_job(run.engine, run.run_id)
    assert before.status is JobStatus.completed
    again = resume(run)
    assert again.result.success
    assert list_jobs(run.engine) == [before]
    model = get_model_of_job(run.engine, run.run_id)
    assert (model.version, model.sha256) == (1, again.metadata("trained_model")["sha256"])
    # One more, of the run that succeeded, is a new training.
    third = execute(settings(), instance=run.instance)
    assert third.result.success
    assert len(list_jobs(run.engine)) == 2


def test_a_job_is_not_trained_again_where_the_run_that_looked_at_it_died_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_when_it_completed_the_job(patch)
        run = execute(settings())
    with monkeypatch.context() as patch:
        killed_when_its_result_was_stored(patch)
        again = resume(run)
        assert not again.result.success
    assert resume(again).result.success
    (job,) = list_jobs(run.engine)
    assert (job.id, job.run_id) == (run.run_id, run.run_id)


def test_a_job_that_cannot_be_resumed_with_these_settings_says_so(home: Path) -> None:
    run = execute(settings(), run_id=str(uuid.uuid4()))
    instance, engine = run.instance, run.engine
    with writing(engine) as connection:
        connection.execute(update(training_jobs).values(status="failed", config={"epochs": 1}))
        connection.execute(delete(models))
    requeue_job(engine, get_job(engine, run.run_id))
    options = dg.ReexecutionOptions(parent_run_id=run.run_id)
    with dg.execute_job(dg.reconstructable(train_locator_job), instance, reexecution_options=options) as result:
        again = Run(result, instance, run.storage)
        assert "was begun with other settings or another dataset" in again.failure()
    (job,) = list_jobs(engine)
    assert job.status is JobStatus.failed
    assert "was begun with other settings" in str(job.error_message)


def test_fine_tuning_begins_where_the_parent_ended(whole_run: Run) -> None:
    parent = get_model_of_job(whole_run.engine, whole_run.run_id)
    tuned = {"epochs": 2, "parent_model_id": parent.id, "learning_rate": 1e-4}
    run = execute(settings(trained_model=tuned), instance=whole_run.instance)
    assert run.result.success
    model = get_model_of_job(run.engine, run.run_id)
    assert (model.parent_model_id, model.version) == (parent.id, parent.version + 1)
    first = read_metrics(run.engine, run.run_id)["val_loss"][0]
    assert first < read_metrics(run.engine, whole_run.run_id)["val_loss"][0]

    other = execute(settings(trained_model=tuned | {"model_architecture": "regression"}), instance=whole_run.instance)
    assert other.failure() == (
        "parent_model_id: that model's architecture is 'triangulation', and must be this training's, 'regression'"
    )
    unknown = str(uuid.uuid4())
    missing = execute(settings(trained_model={"parent_model_id": unknown}), instance=whole_run.instance)
    assert (missing.failed_step(), missing.failure()) == (
        "receiver_network",
        f"there is no model {unknown} in the registry",
    )


def test_a_parent_that_is_named_stays_the_same_when_the_training_goes_on(
    whole_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job keeps the id of what the name meant when it began; a newer version does not change it."""
    monkeypatch.setattr(liveness, "HEARTBEAT_S", 0.02)
    engine, run_id = whole_run.engine, str(uuid.uuid4())
    parent = get_model(engine, "rf-triangulation")
    tuned = {"epochs": 9, "early_stop_patience": 0, "batch_size": 64, "parent_model_id": "rf-triangulation"}
    config = settings(trained_model=tuned)
    with when_epochs_are_done(engine, run_id, 2, lambda: request_stop(engine, run_id, Stop.pause)):
        run = execute(config, instance=whole_run.instance, run_id=run_id)
    assert get_job(engine, run_id).config["parent_model_id"] == parent.id
    same = {name: getattr(parent, name) for name in ("network_name", "network_digest", "hyperparameters", "metrics")}
    champion = find_production_model(engine, "rf-triangulation")
    newer = register_model(
        engine,
        NewModel(
            model_name="rf-triangulation",
            model_architecture=parent.model_architecture,
            pytorch_model_location="/nowhere",
            sha256="f" * 64,
            weights_digest="f" * 64,
            epoch=1,
            trained_by_job_id=parent.trained_by_job_id,
            synthetic_dataset_id=parent.synthetic_dataset_id,
            passed=True,
            promotion_reason="It cannot even be read.",
            **same,
        ),
        champion_id=champion and champion.id,
    ).model
    assert find_referred_model(engine, "rf-triangulation").id == newer.id
    assert resume(run).result.success
    job = get_job(engine, run_id)
    assert (job.status, job.config["parent_model_id"]) == (JobStatus.completed, parent.id)
    assert get_model_of_job(engine, run_id).parent_model_id == parent.id

    tuned["parent_model_id"] = "rf-triangulation/99"
    missing = execute(settings(trained_model=tuned), instance=whole_run.instance)
    assert (missing.failed_step(), missing.failure()) == (
        "receiver_network",
        "there is no model 'rf-triangulation/99' in the registry",
    )
