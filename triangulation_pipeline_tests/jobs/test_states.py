import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import Engine

from triangulation_pipeline.jobs.continuation import requeue_job
from triangulation_pipeline.jobs.liveness import send_heartbeat
from triangulation_pipeline.jobs.record import read_metrics
from triangulation_pipeline.jobs.states import (
    JobRecord,
    cancel_job,
    complete_job,
    fail_job,
    find_job_of_run,
    get_job,
    list_jobs,
    pause_job,
    request_stop,
)
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.tables import JobStatus, Stop
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.jobs.helpers import (
    EARLIER,
    ENDED_EARLY,
    LATER,
    NEW_RUN,
    MakeJob,
    again,
    config_of,
    record,
    set_row,
    with_a_past,
)


def test_a_job_from_start_to_end(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    assert (job.status, job.current_epoch, job.progress_percent) == (JobStatus.running, 0, 0.0)
    assert config_of(job) == TrainingConfig(job_name="test", description="a job of the tests", epochs=4)
    assert (job.job_name, job.description, job.total_epochs) == ("test", "a job of the tests", 4)
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


ENDED = {"finished_at": LATER, "stop_requested": None}
NOT_ENDED = {"finished_at": None, "stop_requested": None}
RUNNING = {JobStatus.running}
UNFINISHED = {JobStatus.pending, JobStatus.queued, JobStatus.running}
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
        lambda engine, job: record(engine, job, 4, val_loss=0.25, best_epoch=4, best_val_loss=0.25),
        RUNNING,
        JobStatus.running,
        {
            "current_epoch": 4,
            "progress_percent": 100.0,
            "best_epoch": 4,
            "best_val_loss": 0.25,
            "train_loss": 4.0,
            "val_loss": 0.25,
            "val_rmse_m": 4.1875,
            "state_location": "/store/4",
            "state_sha256": "4" * 64,
        },
    ),
    "beat": (send_heartbeat, RUNNING, JobStatus.running, {"heartbeats": 8}),
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


@pytest.mark.parametrize("stop", Stop)
def test_asking_a_job_to_stop(engine: Engine, make_job: MakeJob, stop: Stop) -> None:
    job, other = make_job(), make_job()
    for status in JobStatus:
        before = set_row(engine, with_a_past(engine, job, status), stop_requested=None)
        if status is JobStatus.running:
            assert send_heartbeat(engine, before) is None
            assert request_stop(engine, before.id, stop) == replace(before, stop_requested=stop, heartbeats=8)
            assert send_heartbeat(engine, before) is stop
            record(engine, before, 4)  # an epoch that was nearly done does not take the wish back
            assert send_heartbeat(engine, before) is stop
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
    fail_job(engine, job, "no heartbeat")
    for status in ("failed", "running"):
        for act in (send_heartbeat, complete_job, pause_job, cancel_job):
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
    assert send_heartbeat(engine, taken_over) is None
    assert get_job(engine, job.id).current_epoch == 1


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


def test_a_failed_job_says_why_until_it_runs_again(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    record(engine, job, 1)
    failed = fail_job(engine, job, "out of\0memory")
    assert failed.error_message == "out of\N{REPLACEMENT CHARACTER}memory"
    assert failed.finished_at is not None
    running = again(engine, job)
    assert running.error_message is running.finished_at is None
    assert running.state_location == "/store/1"


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


def test_unknown_jobs(engine: Engine, make_job: MakeJob) -> None:
    unknown = str(uuid.uuid4())
    for function in (get_job, read_metrics):
        with pytest.raises(StorageError, match=f"there is no training job {unknown}"):
            function(engine, unknown)
    with pytest.raises(StorageError, match=f"there is no training job {unknown}"):
        complete_job(engine, replace(make_job(), id=unknown))
