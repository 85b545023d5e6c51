import math
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import time_machine
from sqlalchemy import Engine, event, insert, select, update

from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.jobs import (
    JobRecord,
    announce_job,
    assign_run,
    beat,
    cancel_job,
    complete_job,
    fail_job,
    find_job,
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
from triangulation_pipeline.storage.tables import JobStatus, Stop, training_jobs, training_metrics
from triangulation_pipeline.training.metrics import METRIC_COLUMNS, EpochMetrics

MakeJob = Callable[[], JobRecord]


def metrics(epoch: int, /, **changes: Any) -> EpochMetrics:
    """Those of an epoch, each with a number of its own, but for the changes."""
    return EpochMetrics(**{"epoch": epoch} | {name: epoch + i / 16 for i, name in enumerate(METRIC_COLUMNS)} | changes)


def record(engine: Engine, job: JobRecord, epoch: int, /, **changes: Any) -> str | None:
    """Records an epoch; changes are of its metrics, or of the other arguments."""
    rest = {
        "best_epoch": 1,
        "best_val_loss": 0.5,
        "total_epochs": 4,
        "state_location": f"/store/{epoch}",
        "state_sha256": f"{epoch}" * 64,
    }
    others = {name: changes.pop(name) for name in rest.keys() & changes.keys()}
    return record_epoch(engine, job, metrics(epoch, **changes), **rest | others)


def again(engine: Engine, job: JobRecord, **changes) -> JobRecord:
    """Starts the same job once more."""
    names = ("job_name", "description", "config", "synthetic_dataset_id", "total_epochs")
    same = {"job_id": job.id, **{name: getattr(job, name) for name in names}}
    return start_job(engine, **{**same, "run_id": str(uuid.uuid4()), **changes})


def set_row(engine: Engine, job: JobRecord, **values: Any) -> JobRecord:
    """Writes into the job's row by hand."""
    with writing(engine) as connection:
        connection.execute(update(training_jobs).where(training_jobs.c.id == job.id).values(**values))
    return get_job(engine, job.id)


EARLIER = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = EARLIER + timedelta(days=3)
PAST_RUN, NEW_RUN = str(uuid.uuid4()), str(uuid.uuid4())


def with_a_past(engine: Engine, job: JobRecord, status: JobStatus) -> JobRecord:
    """The job in that state, each of its fields set, as by three epochs of an earlier try."""
    return set_row(
        engine,
        job,
        status=status,
        run_id=PAST_RUN,
        current_epoch=3,
        progress_percent=75.0,
        best_epoch=2,
        best_val_loss=0.5,
        train_loss=3.0,
        val_loss=3.25,
        val_rmse_m=3.5,
        state_location="/store/3",
        state_sha256="3" * 64,
        error_message="broke before",
        created_at=EARLIER,
        started_at=EARLIER,
        finished_at=EARLIER,
        stop_requested=Stop.pause,
        heartbeats=7,
    )


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
    assert table["epoch_seconds"][1] == metrics(2).epoch_seconds


def test_metrics_are_read_in_the_order_of_epochs_whatever_the_order_of_rows(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    for epoch in (3, 1, 2):
        with writing(engine) as connection:
            values = {name: getattr(metrics(epoch), name) for name in METRIC_COLUMNS}
            connection.execute(
                insert(training_metrics).values(training_job_id=job.id, epoch=epoch, timestamp=EARLIER, **values)
            )
    table = read_metrics(engine, job.id)
    assert table.to_dict("records") == [asdict(metrics(epoch)) for epoch in (1, 2, 3)]


def test_an_epoch_is_recorded_at_its_time_and_of_its_job_alone(engine: Engine, make_job: MakeJob) -> None:
    first, second = make_job(), make_job()
    for job, moment in ((first, EARLIER), (second, LATER)):
        with time_machine.travel(moment, tick=False):
            record(engine, job, 1)
    assert get_job(engine, first.id).state_location == "/store/1"
    record(engine, second, 1, state_location="/store/other", state_sha256="f" * 64)
    assert get_job(engine, first.id).state_location == "/store/1"
    rows = select(training_metrics.c.timestamp).where(training_metrics.c.training_job_id == first.id)
    with engine.connect() as connection:
        assert connection.execute(rows).all() == [(EARLIER,)]


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


def test_an_epoch_is_recorded_though_the_end_of_its_transaction_is_lost(
    engine: Engine, make_job: MakeJob, lose_next_commit: Callable[[], None]
) -> None:
    """It leaves the same when it is done twice, which a sign of life or a change of state does not."""
    job = make_job()
    lose_next_commit()
    record(engine, job, 1)
    assert (get_job(engine, job.id).current_epoch, len(read_metrics(engine, job.id))) == (1, 1)
    lose_next_commit()
    with pytest.raises(StorageError, match="whether it was written before is not known"):
        complete_job(engine, job)


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
        ({"epoch": 0}, r"metrics\.epoch must be a whole number from 1 to 4, got 0"),
        ({"epoch": 5}, r"metrics\.epoch must be a whole number from 1 to 4, got 5"),
        ({"epoch": math.nan}, r"metrics\.epoch must be a whole number"),
        ({"epoch": 1.5}, r"metrics\.epoch must be a whole number from 1 to 4, got 1\.5"),
        ({"epoch": None}, r"metrics\.epoch must be a whole number from 1 to 4, got None"),
    ],
)
def test_bad_metrics_are_refused(engine: Engine, make_job: MakeJob, changes: dict, says: str) -> None:
    job = make_job()
    with pytest.raises(ValueError, match=says):
        record(engine, job, 1, **changes)
    assert get_job(engine, job.id) == job


ENDED = {"finished_at": LATER, "stop_requested": None}
NOT_ENDED = {"finished_at": None, "stop_requested": None}
RUNNING = {JobStatus.running}
UNFINISHED = {JobStatus.pending, JobStatus.queued, JobStatus.running}
ENDED_EARLY = {JobStatus.failed, JobStatus.cancelled, JobStatus.paused}

# What is done to a job, in which states it may be done, and all that it writes.
Act = Callable[[Engine, JobRecord], object]
ACTS: dict[str, tuple[Act, set[JobStatus], JobStatus, dict[str, Any]]] = {
    "start": (
        lambda engine, job: again(engine, job, run_id=NEW_RUN),
        {JobStatus.pending, JobStatus.queued, *ENDED_EARLY},
        JobStatus.running,
        {"run_id": NEW_RUN, "started_at": LATER, "error_message": None, **NOT_ENDED},
    ),
    "complete": (complete_job, RUNNING, JobStatus.completed, {"progress_percent": 100.0, **ENDED}),
    "fail": (
        lambda engine, job: fail_job(engine, job, "it broke"),
        UNFINISHED,
        JobStatus.failed,
        {"error_message": "it broke", **ENDED},
    ),
    "cancel": (cancel_job, UNFINISHED, JobStatus.cancelled, {"error_message": None, **ENDED}),
    "cancel and say why": (
        lambda engine, job: cancel_job(engine, job, "not wanted"),
        UNFINISHED,
        JobStatus.cancelled,
        {"error_message": "not wanted", **ENDED},
    ),
    "pause": (pause_job, RUNNING, JobStatus.paused, ENDED),
    "requeue": (requeue_job, {JobStatus.pending, *ENDED_EARLY}, JobStatus.queued, NOT_ENDED),
    "record": (
        lambda engine, job: record(engine, job, 4, val_loss=0.25, total_epochs=5, best_epoch=4, best_val_loss=0.25),
        RUNNING,
        JobStatus.running,
        {
            "current_epoch": 4,
            "total_epochs": 5,
            "progress_percent": 80.0,
            "best_epoch": 4,
            "best_val_loss": 0.25,
            "train_loss": 4.0,
            "val_loss": 0.25,
            "val_rmse_m": 4.1875,
            "state_location": "/store/4",
            "state_sha256": "4" * 64,
        },
    ),
    "beat": (beat, RUNNING, JobStatus.running, {"heartbeats": 8}),
}


@pytest.mark.parametrize("action", ACTS)
def test_a_change_of_state_writes_what_it_says_and_nothing_else(engine: Engine, make_job: MakeJob, action: str) -> None:
    act, legal, wanted, written = ACTS[action]
    job, other = make_job(), make_job()
    for status in JobStatus:
        before = with_a_past(engine, job, status)
        if status in legal:
            with time_machine.travel(LATER, tick=False):
                act(engine, before)
            assert get_job(engine, before.id) == replace(before, status=wanted, **written)
        else:
            with pytest.raises(IllegalTransition, match=f"job {before.id} is {status}.* {wanted}"):
                act(engine, before)
            assert get_job(engine, before.id) == before
    assert get_job(engine, other.id) == other


@pytest.mark.parametrize("action", [action for action in ACTS if action != "start"])
def test_a_run_that_another_took_over_from_changes_nothing(engine: Engine, make_job: MakeJob, action: str) -> None:
    """Whatever state the job is in by now: whoever speaks of an earlier run is refused."""
    job = make_job()
    for status in JobStatus:
        now = with_a_past(engine, job, status)
        with pytest.raises(IllegalTransition, match=f"job {now.id} is {status} in run {now.run_id}"):
            ACTS[action][0](engine, job)
        assert get_job(engine, now.id) == now


def test_a_run_is_assigned_to_a_job_that_waits_or_was_cancelled(engine: Engine, make_job: MakeJob) -> None:
    job, other = make_job(), make_job()
    for status in JobStatus:
        before = with_a_past(engine, job, status)
        assert assign_run(engine, replace(before, run_id=NEW_RUN), str(uuid.uuid4())) == before  # another has it by now
        takes = status in {JobStatus.queued, JobStatus.cancelled}
        assert assign_run(engine, before, NEW_RUN.upper()) == (replace(before, run_id=NEW_RUN) if takes else before)
    assert get_job(engine, other.id) == other


@pytest.mark.parametrize("stop", Stop)
def test_asking_a_job_to_stop(engine: Engine, make_job: MakeJob, stop: Stop) -> None:
    job, other = make_job(), make_job()
    for status in JobStatus:
        before = set_row(engine, with_a_past(engine, job, status), stop_requested=None)
        if status is JobStatus.running:
            assert beat(engine, before) is None
            assert request_stop(engine, before.id, stop) == replace(before, stop_requested=stop, heartbeats=8)
            assert beat(engine, before) is stop
            record(engine, before, 4)  # an epoch that was nearly done does not take the wish back
            assert beat(engine, before) is stop
        elif stop is Stop.cancel and status in {JobStatus.pending, JobStatus.queued}:
            with time_machine.travel(LATER, tick=False):
                cancelled = request_stop(engine, before.id, stop)
            assert cancelled == replace(before, status=JobStatus.cancelled, finished_at=LATER)
        else:
            wanted = "cancelled" if stop is Stop.cancel else "paused"
            with pytest.raises(IllegalTransition, match=f"job {before.id} is {status} and cannot become {wanted}"):
                request_stop(engine, before.id, stop)
            assert get_job(engine, before.id) == before
    assert get_job(engine, other.id) == other


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


NOTHING_YET = dict.fromkeys(
    (
        "synthetic_dataset_id",
        "parent_job_id",
        "best_epoch",
        "best_val_loss",
        "train_loss",
        "val_loss",
        "val_rmse_m",
        "state_location",
        "state_sha256",
        "error_message",
        "started_at",
        "finished_at",
        "stop_requested",
    )
)


def test_a_new_job_has_what_was_said_and_nothing_else(engine: Engine, make_job: MakeJob) -> None:
    """Announced, or begun at once; ids may be written in capitals."""
    parent, job_id, run_id = make_job(), str(uuid.uuid4()), str(uuid.uuid4())
    said: dict[str, Any] = {"job_name": "mine", "description": "why", "config": {"seed": 5}, "total_epochs": 9}
    with time_machine.travel(EARLIER, tick=False):
        announced = announce_job(engine, job_id=NEW_RUN.upper(), status=JobStatus.pending, **said)
        begun = start_job(
            engine,
            job_id=job_id.upper(),
            run_id=run_id.upper(),
            synthetic_dataset_id=str(parent.synthetic_dataset_id).upper(),
            parent_job_id=parent.id.upper(),
            **said,
        )
    new = {**NOTHING_YET, **said, "current_epoch": 0, "progress_percent": 0.0, "heartbeats": 0, "created_at": EARLIER}
    assert announced == JobRecord(**new, id=NEW_RUN, run_id=NEW_RUN, status=JobStatus.pending)
    origin = {"synthetic_dataset_id": parent.synthetic_dataset_id, "parent_job_id": parent.id, "started_at": EARLIER}
    assert begun == JobRecord(**new | origin, id=job_id, run_id=run_id, status=JobStatus.running)
    assert find_job(engine, job_id.upper()) == get_job(engine, job_id.upper()) == begun


def test_an_announced_job_takes_what_its_run_brings(engine: Engine, make_job: MakeJob) -> None:
    other, job_id = make_job(), str(uuid.uuid4())
    pending = announce(engine, job_id, JobStatus.pending)
    queued = announce(engine, job_id)
    assert queued == replace(pending, status=JobStatus.queued)
    assert announce(engine, job_id) == announce(engine, job_id, JobStatus.pending) == queued
    with time_machine.travel(LATER, tick=False):
        running = start_job(
            engine,
            job_id=job_id,
            run_id=NEW_RUN,
            job_name="known now",
            description="known now too",
            config=other.config,
            synthetic_dataset_id=str(other.synthetic_dataset_id),
            parent_job_id=other.id,
            total_epochs=4,
        )
    assert running == replace(
        queued,
        status=JobStatus.running,
        run_id=NEW_RUN,
        started_at=LATER,
        job_name="known now",
        description="known now too",
        config=other.config,
        synthetic_dataset_id=other.synthetic_dataset_id,
        parent_job_id=other.id,
        total_epochs=4,
    )
    assert find_job_of_run(engine, NEW_RUN.upper()) == running
    with pytest.raises(ValueError, match="pending or queued, got failed"):
        announce(engine, str(uuid.uuid4()), JobStatus.failed)


def test_announcing_a_known_job_queues_one_that_is_pending_and_no_other(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    for status in JobStatus:
        before = with_a_past(engine, job, status)
        assert announce(engine, before.id, JobStatus.pending) == before
        wanted = JobStatus.queued if status is JobStatus.pending else status
        assert announce(engine, before.id) == replace(before, status=wanted)


@pytest.mark.parametrize("status", JobStatus)
def test_a_run_goes_on_with_a_job_that_waits_or_ended_early(status: JobStatus) -> None:
    """With the settings and the dataset that it began with, if it has begun."""
    values = {**NOTHING_YET, "job_name": "", "description": "", "total_epochs": 1, "current_epoch": 0, "heartbeats": 0}
    announced = JobRecord(
        **values, id="1", run_id="1", status=status, config={"seed": 1}, progress_percent=0.0, created_at=EARLIER
    )
    begun = replace(announced, started_at=EARLIER, synthetic_dataset_id="a")
    may = status not in {JobStatus.running, JobStatus.completed}
    assert goes_on(announced, {"seed": 2}, "b") is may
    assert goes_on(begun, {"seed": 1}, "a") is may
    assert not goes_on(begun, {"seed": 2}, "a")
    assert not goes_on(begun, {"seed": 1}, "b")


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


def test_a_retry_keeps_what_the_job_was_begun_as(engine: Engine, make_job: MakeJob) -> None:
    job, other = make_job(), make_job()
    failed = fail_job(engine, job, "broke")
    for changes in ({"config": {"learning_rate": 1.0}}, {"synthetic_dataset_id": other.synthetic_dataset_id}):
        with pytest.raises(ValueError, match=f"job {job.id} exists with another configuration or dataset; start a new"):
            again(engine, job, **changes)
        assert get_job(engine, job.id) == failed
    running = again(engine, job, job_name="other", description="other", total_epochs=9, parent_job_id=other.id)
    names = ("job_name", "description", "total_epochs", "parent_job_id", "config", "synthetic_dataset_id")
    assert [getattr(running, name) for name in names] == [getattr(job, name) for name in names]


def test_a_run_that_was_cancelled_before_it_trained_cannot_go_on_by_itself(engine: Engine, make_job: MakeJob) -> None:
    """Another run may."""
    job = make_job()
    for status in ENDED_EARLY:
        ended = with_a_past(engine, job, status)
        with pytest.raises(IllegalTransition, match=f"was {status} before run {ended.run_id} began to train; resume"):
            again(engine, ended, run_id=ended.run_id)
        assert get_job(engine, ended.id) == ended


def test_what_no_job_can_hold_is_refused(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    new = str(uuid.uuid4())
    for changes, says in (
        ({"total_epochs": 0}, "total_epochs must be at least 1, got 0"),
        ({"config": {"learning_rate": math.nan}}, r"config\.learning_rate must be a finite number or null"),
        ({"job_id": "1"}, "job_id must be a UUID of 36 characters, got '1'"),
        ({"run_id": "2"}, "run_id must be a UUID of 36 characters, got '2'"),
        ({"synthetic_dataset_id": "3"}, "synthetic_dataset_id must be a UUID of 36 characters, got '3'"),
        ({"parent_job_id": "4"}, "parent_job_id must be a UUID of 36 characters, got '4'"),
    ):
        with pytest.raises(ValueError, match=says):
            again(engine, job, **{"job_id": new, **changes})
    with pytest.raises(ValueError, match="job_id must be a UUID"):
        announce(engine, "5")
    with pytest.raises(ValueError, match=r"config\.seed must be a finite number"):
        announce_job(
            engine,
            job_id=new,
            status=JobStatus.queued,
            job_name="",
            description="",
            config={"seed": math.inf},
            total_epochs=1,
        )
    for loss in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"best_val_loss must be a finite number, got {loss}"):
            record(engine, job, 1, best_val_loss=loss)
    for act in (find_job, get_job, read_metrics):
        with pytest.raises(ValueError, match="job_id must be a UUID"):
            act(engine, "6")
    with pytest.raises(ValueError, match="job_id must be a UUID"):
        request_stop(engine, "7", Stop.cancel)
    for act_of_run in (find_job_of_run, lambda engine, run_id: assign_run(engine, job, run_id)):
        with pytest.raises(ValueError, match="run_id must be a UUID"):
            act_of_run(engine, "8")
    assert list_jobs(engine) == [job]
    assert again(engine, job, job_id=new, total_epochs=1).total_epochs == 1


def test_jobs_are_listed_the_newest_first_and_by_state(engine: Engine, make_job: MakeJob) -> None:
    """Of the same moment by their id; and the newest is found of those that a run works on."""
    made = ((1, JobStatus.failed), (3, JobStatus.paused), (2, JobStatus.failed), (2, JobStatus.queued))
    jobs = [
        set_row(engine, make_job(), created_at=EARLIER + timedelta(days=day), run_id=NEW_RUN, status=status)
        for day, status in made
    ]
    ordered = [jobs[1], *sorted(jobs[2:], key=lambda job: job.id), jobs[0]]
    assert list_jobs(engine) == ordered
    assert list_jobs(engine, JobStatus.failed) == [jobs[2], jobs[0]]
    assert list_jobs(engine, JobStatus.failed, JobStatus.paused) == [jobs[1], jobs[2], jobs[0]]
    assert list_jobs(engine, JobStatus.running) == []
    assert find_job_of_run(engine, NEW_RUN) == jobs[1]


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
