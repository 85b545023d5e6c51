import math
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import Engine, event, update

from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.jobs import (
    WAITING,
    JobRecord,
    announce_job,
    assign_run,
    beat,
    cancel_job,
    complete_job,
    fail_job,
    find_job_of_run,
    get_job,
    goes_on,
    list_jobs,
    pause_job,
    read_metrics,
    record_epoch,
    request_stop,
    requeue_job,
    start_job,
)
from triangulation_pipeline.storage.tables import METRIC_COLUMNS, JobStatus, Stop, training_jobs

MakeJob = Callable[[], JobRecord]


def metrics(epoch: int, /, **changes: float | None) -> dict[str, float | None]:
    return {"epoch": epoch, **{name: epoch + i / 16 for i, name in enumerate(METRIC_COLUMNS)}, **changes}


def record(engine: Engine, job: JobRecord, epoch: int, /, **changes: float | None) -> str | None:
    return record_epoch(
        engine,
        job,
        metrics(epoch, **changes),
        best_epoch=1,
        best_val_loss=0.5,
        total_epochs=4,
        state_location=f"/store/{epoch}",
        state_sha256=f"{epoch}" * 64,
    )


def again(engine: Engine, job: JobRecord, **changes) -> JobRecord:
    """Starts the same job once more."""
    names = ("job_name", "description", "config", "synthetic_dataset_id", "total_epochs")
    same = {"job_id": job.id, **{name: getattr(job, name) for name in names}}
    return start_job(engine, **{**same, "run_id": str(uuid.uuid4()), **changes})


def set_status(engine: Engine, job: JobRecord, status: JobStatus) -> None:
    with writing(engine) as connection:
        connection.execute(update(training_jobs).where(training_jobs.c.id == job.id).values(status=status))


def test_a_job_from_start_to_end(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    assert (job.status, job.current_epoch, job.progress_percent) == (JobStatus.running, 0, 0.0)
    assert job.config == {"learning_rate": 0.003, "layers": [1, 2]}
    assert job.best_epoch is job.val_loss is job.finished_at is job.state_location is None
    assert job.started_at is not None
    assert job.started_at.utcoffset() is not None

    assert record(engine, job, 1) is None
    assert record(engine, job, 2, val_rmse_good_geom_m=None) == "/store/1"
    now = get_job(engine, job.id)
    assert (now.current_epoch, now.progress_percent, now.best_epoch, now.best_val_loss) == (2, 50.0, 1, 0.5)
    assert (now.train_loss, now.val_loss, now.val_rmse_m) == (2.0, 2.0625, 2.1875)
    assert (now.state_location, now.state_sha256) == ("/store/2", "2" * 64)

    done = complete_job(engine, job)
    assert (done.status, done.progress_percent) == (JobStatus.completed, 100.0)
    assert done.finished_at is not None
    assert done.finished_at >= job.started_at
    assert list_jobs(engine) == [done]


def test_metrics_as_a_table(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    assert list(read_metrics(engine, job.id).columns) == ["epoch", *METRIC_COLUMNS]
    record(engine, job, 1, val_rmse_good_geom_m=None)
    record(engine, job, 2)
    record(engine, make_job(), 1)
    table = read_metrics(engine, job.id)
    assert table["epoch"].tolist() == [1, 2]
    assert table["epoch"].dtype == np.int64
    assert (table[list(METRIC_COLUMNS)].dtypes == np.float64).all()
    assert math.isnan(table["val_rmse_good_geom_m"][0])
    assert table["epoch_seconds"][1] == metrics(2)["epoch_seconds"]


def test_an_epoch_trained_again_leaves_one_row(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    record(engine, job, 1)
    assert record(engine, job, 1, train_loss=9.0) is None  # the same state: it must not be deleted
    record(engine, job, 2)
    record(engine, job, 3)
    fail_job(engine, job, "out of memory")
    job = again(engine, job)
    assert record(engine, job, 2, train_loss=7.0) == "/store/3"
    table = read_metrics(engine, job.id)
    assert table["epoch"].tolist() == [1, 2]
    assert table["train_loss"].tolist() == [9.0, 7.0]


def test_writers_of_one_epoch_leave_one_row(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: record(engine, job, 1), range(8)))
    assert read_metrics(engine, job.id)["epoch"].tolist() == [1]


def test_a_refused_row_leaves_the_job_as_it_was(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    record(engine, job, 1)
    before = get_job(engine, job.id)

    def refuse(_connection, _cursor, statement: str, _parameters, _context, _many) -> None:
        if statement.startswith("INSERT INTO training_metrics"):
            raise RuntimeError("refused")

    event.listen(engine, "before_cursor_execute", refuse)
    with pytest.raises(RuntimeError, match="refused"):
        record(engine, job, 2)
    assert get_job(engine, job.id) == before
    assert read_metrics(engine, job.id)["epoch"].tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_loss": math.nan}, r"metrics\.val_loss must be a finite number, got nan"),
        ({"val_loss": None}, r"metrics\.val_loss must be a finite number, got None"),
        ({"val_rmse_good_geom_m": math.inf}, r"metrics\.val_rmse_good_geom_m must be a finite number, got inf"),
        ({"accuracy": 1.0}, "missing or unknown: accuracy"),
        ({"epoch": 0}, r"metrics\.epoch must be a whole number from 1 to 4, got 0"),
        ({"epoch": 5}, r"metrics\.epoch must be a whole number from 1 to 4, got 5"),
        ({"epoch": math.nan}, r"metrics\.epoch must be a whole number"),
    ],
)
def test_bad_metrics_are_refused(engine: Engine, make_job: MakeJob, changes: dict, says: str) -> None:
    job = make_job()
    with pytest.raises(ValueError, match=says):
        record(engine, job, 1, **changes)
    assert get_job(engine, job.id) == job


LEGAL = {
    "start": {JobStatus.pending, JobStatus.queued, JobStatus.failed, JobStatus.cancelled, JobStatus.paused},
    "complete": {JobStatus.running},
    "fail": {JobStatus.pending, JobStatus.queued, JobStatus.running},
    "cancel": {JobStatus.pending, JobStatus.queued, JobStatus.running},
    "pause": {JobStatus.running},
    "requeue": {JobStatus.pending, JobStatus.failed, JobStatus.cancelled, JobStatus.paused},
    "record": {JobStatus.running},
}


@pytest.mark.parametrize("action", LEGAL)
@pytest.mark.parametrize("status", JobStatus)
def test_transitions(engine: Engine, make_job: MakeJob, action: str, status: JobStatus) -> None:
    job = make_job()
    set_status(engine, job, status)
    act, wanted = {
        "start": (lambda: again(engine, job), JobStatus.running),
        "complete": (lambda: complete_job(engine, job), JobStatus.completed),
        "fail": (lambda: fail_job(engine, job, "it broke"), JobStatus.failed),
        "cancel": (lambda: cancel_job(engine, job), JobStatus.cancelled),
        "pause": (lambda: pause_job(engine, job), JobStatus.paused),
        "requeue": (lambda: requeue_job(engine, job), JobStatus.queued),
        "record": (lambda: record(engine, job, 1), JobStatus.running),
    }[action]
    if status in LEGAL[action]:
        act()
        assert get_job(engine, job.id).status is wanted
    else:
        before = get_job(engine, job.id)
        with pytest.raises(IllegalTransition, match=f"job {job.id} is {status}.* {wanted}"):
            act()
        assert get_job(engine, job.id) == before


@pytest.mark.parametrize("status", JobStatus)
@pytest.mark.parametrize("stop", Stop)
def test_asking_a_job_to_stop(engine: Engine, make_job: MakeJob, stop: Stop, status: JobStatus) -> None:
    job = make_job()
    set_status(engine, job, status)
    if status is JobStatus.running:
        assert beat(engine, job) is None
        assert request_stop(engine, job.id, stop).status is JobStatus.running
        assert beat(engine, job) is stop
        assert get_job(engine, job.id).heartbeats == 2
        record(engine, job, 1)  # an epoch that was nearly done does not take the wish back
        assert beat(engine, job) is stop
        ended = (pause_job if stop is Stop.pause else cancel_job)(engine, job)
        assert ended.stop_requested is None
        assert ended.finished_at is not None
        assert ended.state_location == "/store/1"
    elif stop is Stop.cancel and status in WAITING:
        assert request_stop(engine, job.id, stop).status is JobStatus.cancelled
    else:
        with pytest.raises(IllegalTransition, match=f"job {job.id} is {status} and cannot become"):
            request_stop(engine, job.id, stop)
        assert get_job(engine, job.id).status is status


def test_a_worker_that_was_taken_for_dead_learns_it(engine: Engine, make_job: MakeJob) -> None:
    """Before another run takes over, and after: it cannot beat, record, or end what is not its own any more."""
    job = make_job()
    record(engine, job, 1)
    fail_job(engine, job, "no sign of life")
    for status in ("failed", "running"):
        for act in (beat, complete_job, pause_job, cancel_job):
            with pytest.raises(IllegalTransition, match=f"job {job.id} is {status}"):
                act(engine, job)
        with pytest.raises(IllegalTransition, match=f"job {job.id} is {status}"):
            fail_job(engine, job, "it broke")
        with pytest.raises(
            IllegalTransition, match=f"is {status} in run .*, and no longer running in run {job.run_id}"
        ):
            record(engine, job, 2)
        if status == "failed":
            taken_over = again(engine, job)
    assert beat(engine, taken_over) is None
    assert get_job(engine, job.id).current_epoch == 1


def test_a_resumed_job_that_is_cancelled_before_its_run_is_known(engine: Engine, make_job: MakeJob) -> None:
    job, run_id = make_job(), str(uuid.uuid4())
    fail_job(engine, job, "broke")
    queued = requeue_job(engine, job)
    request_stop(engine, job.id, Stop.cancel)
    assert assign_run(engine, queued, run_id).run_id == run_id
    with pytest.raises(IllegalTransition, match=f"was cancelled before run {run_id} began to train"):
        again(engine, job, run_id=run_id)
    assert assign_run(engine, queued, str(uuid.uuid4())).run_id == run_id  # it has a run already


def announce(engine: Engine, job_id: str, status: JobStatus = JobStatus.queued) -> JobRecord:
    return announce_job(
        engine, job_id=job_id, status=status, job_name="test", description="", config={"seed": 1}, total_epochs=2
    )


def test_an_announced_job_takes_what_its_run_brings(engine: Engine, make_job: MakeJob) -> None:
    other, job_id = make_job(), str(uuid.uuid4())
    assert announce(engine, job_id, JobStatus.pending).status is JobStatus.pending
    queued = announce(engine, job_id)
    assert (queued.status, queued.run_id, queued.synthetic_dataset_id) == (JobStatus.queued, job_id, None)
    assert announce(engine, job_id) == announce(engine, job_id, JobStatus.pending) == queued
    assert goes_on(queued, {"seed": 2}, other.synthetic_dataset_id or "")
    running = again(engine, other, job_id=job_id, run_id=job_id)
    assert (running.status, running.config, running.total_epochs) == (JobStatus.running, other.config, 4)
    assert running.synthetic_dataset_id == other.synthetic_dataset_id
    assert announce(engine, job_id) == running
    assert find_job_of_run(engine, job_id) == running
    with pytest.raises(ValueError, match="pending or queued, got failed"):
        announce(engine, str(uuid.uuid4()), JobStatus.failed)


def test_a_job_cancelled_before_its_run_began_does_not_run(engine: Engine, make_job: MakeJob) -> None:
    other, job_id = make_job(), str(uuid.uuid4())
    announce(engine, job_id)
    request_stop(engine, job_id, Stop.cancel)
    with pytest.raises(IllegalTransition, match=f"job {job_id} was cancelled before run {job_id} began to train"):
        again(engine, other, job_id=job_id, run_id=job_id)
    resumed = again(engine, other, job_id=job_id)
    assert resumed.status is JobStatus.running
    assert resumed.run_id != job_id
    assert find_job_of_run(engine, str(resumed.run_id)) == resumed
    assert find_job_of_run(engine, job_id) is None


def test_of_two_that_end_a_job_one_wins(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()

    def end(function: Callable[[], JobRecord]) -> bool:
        try:
            function()
        except IllegalTransition:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(end, [lambda: complete_job(engine, job), lambda: fail_job(engine, job, "broke")]))
    assert sum(won) == 1
    assert get_job(engine, job.id).status is (JobStatus.completed if won[0] else JobStatus.failed)


def test_of_two_that_start_a_job_one_is_refused(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    job_id = str(uuid.uuid4())
    both = threading.Barrier(2)

    def start(_: int) -> bool:
        both.wait()
        try:
            again(engine, job, job_id=job_id)
        except IllegalTransition:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(start, range(2))) == 1


def test_a_failed_job_says_why_until_it_runs_again(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    record(engine, job, 1)
    failed = fail_job(engine, job, "out of\0memory")
    assert failed.error_message == "out of\N{REPLACEMENT CHARACTER}memory"
    assert failed.finished_at is not None
    running = again(engine, job)
    assert running.error_message is running.finished_at is None
    assert running.state_location == "/store/1"


def test_a_retry_with_another_configuration_is_refused(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    fail_job(engine, job, "broke")
    with pytest.raises(ValueError, match="another configuration or dataset"):
        again(engine, job, config={"learning_rate": 1.0})
    assert get_job(engine, job.id).status is JobStatus.failed


def test_parents_and_datasets_must_exist(engine: Engine, make_job: MakeJob) -> None:
    job, unknown = make_job(), str(uuid.uuid4())
    child = again(engine, job, job_id=str(uuid.uuid4()), parent_job_id=job.id)
    assert child.parent_job_id == job.id
    with pytest.raises(StorageError, match=f"there is no training job {unknown}"):
        again(engine, job, job_id=str(uuid.uuid4()), parent_job_id=unknown)
    with pytest.raises(StorageError, match=f"there is no dataset {unknown}"):
        again(engine, job, job_id=str(uuid.uuid4()), synthetic_dataset_id=unknown)


def test_unknown_jobs(engine: Engine, make_job: MakeJob) -> None:
    unknown = str(uuid.uuid4())
    for function in (get_job, read_metrics):
        with pytest.raises(StorageError, match=f"there is no training job {unknown}"):
            function(engine, unknown)
    with pytest.raises(StorageError, match=f"there is no training job {unknown}"):
        complete_job(engine, replace(make_job(), id=unknown))
