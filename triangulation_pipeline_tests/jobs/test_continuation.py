import math
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import time_machine
from sqlalchemy import Engine

from triangulation_pipeline.jobs.continuation import (
    announce_job,
    assign_run,
    begin_job,
    continues,
    requeue_job,
    resume_job,
    start_job,
)
from triangulation_pipeline.jobs.record import read_metrics
from triangulation_pipeline.jobs.states import (
    JobRecord,
    complete_job,
    fail_job,
    find_job,
    find_job_of_run,
    get_job,
    list_jobs,
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
    NOTHING_YET,
    MakeJob,
    StandInRun,
    again,
    announce,
    config_of,
    record,
    set_row,
    with_a_past,
)


def test_a_run_is_assigned_to_a_job_that_waits_or_was_cancelled(engine: Engine, make_job: MakeJob) -> None:
    job, other = make_job(), make_job()
    for status in JobStatus:
        before = with_a_past(engine, job, status)
        assert assign_run(engine, replace(before, run_id=NEW_RUN), str(uuid.uuid4())) == before  # another has it by now
        takes = status in {JobStatus.queued, JobStatus.cancelled}
        assert assign_run(engine, before, NEW_RUN.upper()) == (replace(before, run_id=NEW_RUN) if takes else before)
    assert get_job(engine, other.id) == other


def test_a_resumed_job_that_is_cancelled_before_its_run_is_known(engine: Engine, make_job: MakeJob) -> None:
    job, run_id = make_job(), str(uuid.uuid4())
    fail_job(engine, job, "broke")
    queued = requeue_job(engine, job)
    request_stop(engine, job.id, Stop.cancel)
    assert assign_run(engine, queued, run_id).run_id == run_id
    with pytest.raises(IllegalTransition, match=f"was cancelled before run {run_id} began to train"):
        again(engine, job, run_id=run_id)
    assert assign_run(engine, queued, str(uuid.uuid4())).run_id == run_id  # it has a run already


def test_a_new_job_has_what_was_said_and_nothing_else(engine: Engine, make_job: MakeJob) -> None:
    """Announced, or begun at once; ids may be written in capitals."""
    parent, job_id, run_id = make_job(), str(uuid.uuid4()), str(uuid.uuid4())
    config = TrainingConfig(job_name="mine", description="why", seed=5, epochs=9)
    with time_machine.travel(EARLIER, tick=False):
        announced = announce_job(engine, job_id=NEW_RUN.upper(), status=JobStatus.pending, config=config)
        begun = start_job(
            engine,
            job_id=job_id.upper(),
            run_id=run_id.upper(),
            synthetic_dataset_id=str(parent.synthetic_dataset_id).upper(),
            parent_job_id=parent.id.upper(),
            config=config,
        )
    said = {"job_name": "mine", "description": "why", "config": config.model_dump(mode="json"), "total_epochs": 9}
    new: dict[str, Any] = {
        **NOTHING_YET,
        **said,
        "current_epoch": 0,
        "progress_percent": 0.0,
        "heartbeats": 0,
        "created_at": EARLIER,
    }
    assert announced == JobRecord(**new, id=NEW_RUN, run_id=NEW_RUN, status=JobStatus.pending)
    origin = {"synthetic_dataset_id": parent.synthetic_dataset_id, "parent_job_id": parent.id, "started_at": EARLIER}
    assert begun == JobRecord(**new | origin, id=job_id, run_id=run_id, status=JobStatus.running)
    assert find_job(engine, job_id.upper()) == get_job(engine, job_id.upper()) == begun


def test_an_announced_job_takes_what_its_run_brings(engine: Engine, make_job: MakeJob) -> None:
    other, job_id = make_job(), str(uuid.uuid4())
    config = TrainingConfig(job_name="known now", description="known now too", epochs=4)
    pending = announce(engine, job_id, JobStatus.pending)
    queued = announce(engine, job_id)
    assert queued == replace(pending, status=JobStatus.queued)
    assert announce(engine, job_id) == announce(engine, job_id, JobStatus.pending) == queued
    with time_machine.travel(LATER, tick=False):
        running = start_job(
            engine,
            job_id=job_id,
            run_id=NEW_RUN,
            config=config,
            synthetic_dataset_id=str(other.synthetic_dataset_id),
            parent_job_id=other.id,
        )
    assert running == replace(
        queued,
        status=JobStatus.running,
        run_id=NEW_RUN,
        started_at=LATER,
        job_name="known now",
        description="known now too",
        config=config.model_dump(mode="json"),
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
    config, other = TrainingConfig(seed=1), TrainingConfig(seed=2)
    announced = JobRecord(
        **values,
        id="1",
        run_id="1",
        status=status,
        config=config.model_dump(mode="json"),
        progress_percent=0.0,
        created_at=EARLIER,
    )
    begun = replace(announced, started_at=EARLIER, synthetic_dataset_id="a")
    may = status not in {JobStatus.running, JobStatus.completed}
    assert continues(announced, other, "b") is may
    assert continues(begun, config, "a") is may
    assert not continues(begun, other, "a")
    assert not continues(begun, config, "b")


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


def test_a_retry_keeps_what_the_job_was_begun_as(engine: Engine, make_job: MakeJob) -> None:
    job, other = make_job(), make_job()
    failed = fail_job(engine, job, "broke")
    for changes in (
        {"config": TrainingConfig(learning_rate=1.0)},
        {"synthetic_dataset_id": other.synthetic_dataset_id},
    ):
        with pytest.raises(ValueError, match=f"job {job.id} exists with another configuration or dataset; start a new"):
            again(engine, job, **changes)
        assert get_job(engine, job.id) == failed
    running = again(engine, job, parent_job_id=other.id)
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
        ({"job_id": "1"}, "job_id must be a UUID of 36 characters, got '1'"),
        ({"run_id": "2"}, "run_id must be a UUID of 36 characters, got '2'"),
        ({"synthetic_dataset_id": "3"}, "synthetic_dataset_id must be a UUID of 36 characters, got '3'"),
        ({"parent_job_id": "4"}, "parent_job_id must be a UUID of 36 characters, got '4'"),
    ):
        with pytest.raises(ValueError, match=says):
            again(engine, job, **{"job_id": new, **changes})
    with pytest.raises(ValueError, match="job_id must be a UUID"):
        announce(engine, "5")
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
    assert again(engine, job, job_id=new).total_epochs == job.total_epochs


def test_parents_and_datasets_must_exist(engine: Engine, make_job: MakeJob) -> None:
    job, unknown = make_job(), str(uuid.uuid4())
    child = again(engine, job, job_id=str(uuid.uuid4()), parent_job_id=job.id)
    assert child.parent_job_id == job.id
    with pytest.raises(StorageError, match=f"there is no training job {unknown}"):
        again(engine, job, job_id=str(uuid.uuid4()), parent_job_id=unknown)
    with pytest.raises(StorageError, match=f"there is no dataset {unknown}"):
        again(engine, job, job_id=str(uuid.uuid4()), synthetic_dataset_id=unknown)


def begin(
    engine: Engine, run: StandInRun, like: JobRecord, before: StandInRun | None = None, *, is_unseen: bool = False
) -> JobRecord:
    """The job of a run with the settings and the dataset of a job. Dagster knows the run ``before``."""
    unseen = [run.run_id, *([run.parent_run_id] if is_unseen else [])]
    known = {} if before is None else {before.run_id: before}
    dataset_id = str(like.synthetic_dataset_id)
    return begin_job(engine, run, config_of(like), dataset_id, find_run=known.get, unseen_run_ids=iter(unseen))


def a_run(before: str | None = None) -> StandInRun:
    """A run, or one that re-executes the run of that id."""
    return StandInRun(str(uuid.uuid4()), parent_run_id=before, root_run_id=before)


def test_a_run_begins_the_job_that_was_announced_for_it_or_one_of_its_own(engine: Engine, make_job: MakeJob) -> None:
    like, run, other = make_job(), a_run(), a_run()
    announced = announce(engine, run.run_id)
    begun = begin(engine, run, like)
    assert (begun.id, begun.status, begun.created_at) == (run.run_id, JobStatus.running, announced.created_at)
    own = begin(engine, other, like)
    assert (own.id, own.run_id, own.parent_job_id, own.config) == (other.run_id, other.run_id, None, like.config)


@pytest.mark.parametrize(
    ("status", "is_taken"),
    [(status, status in {JobStatus.queued, JobStatus.pending, *ENDED_EARLY}) for status in JobStatus],
)
def test_a_run_takes_the_job_of_the_run_before_it_unless_it_is_at_work_or_done(
    engine: Engine, make_job: MakeJob, status: JobStatus, is_taken: bool
) -> None:
    """Of the run before it, or at second hand of the first of all."""
    for is_first in (False, True):
        job = set_row(engine, make_job(), status=status)
        run = a_run(str(uuid.uuid4()) if is_first else job.run_id)
        run = replace(run, root_run_id=job.id)
        begun = begin(engine, run, job, StandInRun(str(job.run_id)))
        if is_taken:
            assert (begun.id, begun.run_id, begun.parent_job_id) == (job.id, run.run_id, None)
        else:
            assert (begun.id, begun.run_id, begun.parent_job_id) == (run.run_id, run.run_id, job.id)
            assert get_job(engine, job.id) == job


def test_a_run_takes_the_job_of_a_worker_that_died(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    dead, run = StandInRun(str(job.run_id), is_finished=True), a_run(job.run_id)
    begun = begin(engine, run, job, dead)
    assert (begun.id, begun.run_id, begun.error_message) == (job.id, run.run_id, None)

    changed = set_row(engine, make_job(), config={"seed": 7})
    dead, run = StandInRun(str(changed.run_id), is_finished=True), a_run(changed.run_id)
    assert begin(engine, run, job, dead).parent_job_id == changed.id
    ended = get_job(engine, changed.id)
    told = f"run {changed.run_id} ended without updating the job: its worker died"
    assert (ended.status, ended.error_message) == (JobStatus.failed, told)


def test_a_job_that_was_completed_and_not_seen_to_end_is_given_as_it_is(engine: Engine, make_job: MakeJob) -> None:
    job = complete_job(engine, make_job())
    assert begin(engine, a_run(job.run_id), job, is_unseen=True) == job
    seen = a_run(job.run_id)
    assert begin(engine, seen, job).id == seen.run_id
    other = complete_job(engine, make_job())
    run = a_run(other.run_id)
    assert begin(engine, run, job, is_unseen=True).id == run.run_id


def test_a_job_that_was_queued_for_other_settings_fails(engine: Engine, make_job: MakeJob) -> None:
    like, job = make_job(), requeue_job(engine, fail_job(engine, make_job(), "broke"))
    told = f"job {job.id} was begun with other settings or another dataset, and cannot be resumed with these"
    with pytest.raises(ValueError, match=f"{told}; launch a new run"):
        begin(engine, a_run(job.run_id), like)
    ended = get_job(engine, job.id)
    assert (ended.status, ended.error_message) == (JobStatus.failed, told)


def test_a_job_is_resumed_in_the_run_that_was_launched(engine: Engine, make_job: MakeJob) -> None:
    job = fail_job(engine, make_job(), "broke")
    seen = []

    def launch() -> str:
        seen.append(get_job(engine, job.id).status)
        return NEW_RUN

    assert resume_job(engine, job, launch) == NEW_RUN
    assert seen == [JobStatus.queued]
    now = get_job(engine, job.id)
    assert (now.status, now.run_id) == (JobStatus.queued, NEW_RUN)
    with pytest.raises(IllegalTransition):
        resume_job(engine, job, launch)
    assert seen == [JobStatus.queued]


def test_a_job_whose_run_cannot_be_launched_fails(engine: Engine, make_job: MakeJob) -> None:
    job = fail_job(engine, make_job(), "broke")

    def launch() -> str:
        raise RuntimeError("nobody is there")

    with pytest.raises(RuntimeError, match="nobody is there"):
        resume_job(engine, job, launch)
    now = get_job(engine, job.id)
    assert (now.status, now.error_message) == (JobStatus.failed, "resume failed: nobody is there")
