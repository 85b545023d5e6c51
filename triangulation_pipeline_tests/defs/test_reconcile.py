"""Jobs held against their runs: what is announced, what is ended, what is left alone, and in which words."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from sqlalchemy import Engine

from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.reconcile import job_reconciler, reconcile
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.jobs.continuation import announce_job, requeue_job
from triangulation_pipeline.jobs.liveness import SILENT_LOOKS, send_heartbeat
from triangulation_pipeline.jobs.states import JobRecord, complete_job, fail_job, find_job, get_job, list_jobs
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.tables import JobStatus
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.defs.conftest import settings
from triangulation_pipeline_tests.storage.conftest import running_job

Waiting = tuple[dg.DagsterInstance, Engine]


@pytest.fixture
def waiting(home: Path) -> Iterator[Waiting]:
    storage = Storage()
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance, storage.engine
    storage.close()


def new_run(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, run_config: Any = None, **more: Any
) -> dg.DagsterRun:
    config = settings() if run_config is None else run_config
    return instance.create_run_for_job(train_locator_job(), status=status, run_config=config, **more)


def submitted_run(instance: dg.DagsterInstance, run_config: Any = None) -> dg.DagsterRun:
    """One that the webserver has made, and has not put into the queue yet."""
    code_location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    origin = RemoteJobOrigin(code_location, train_locator_job().name)
    return new_run(instance, dg.DagsterRunStatus.NOT_STARTED, run_config, remote_job_origin=origin)


def put_into_the_queue(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    event = dg.DagsterEvent(dg.DagsterEventType.RUN_ENQUEUED.value, run.job_name)
    instance.report_dagster_event(event, run.run_id)


def found(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    """The run as Dagster has it now."""
    again = instance.get_run_by_id(run.run_id)
    assert again is not None
    return again


def outcome(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dict[str, str]:
    """The tags that say how a run ended."""
    tags = found(instance, run).tags
    return {name: value for name, value in tags.items() if name.startswith("triangulation/outcome")}


def job_of(engine: Engine, run: dg.DagsterRun | None) -> JobRecord:
    """A running job of that run, or of one that Dagster does not know."""
    return running_job(engine, str(uuid.uuid4()) if run is None else run.run_id, total_epochs=3)


def looks(instance: dg.DagsterInstance, engine: Engine, count: int, seen: Any = None) -> tuple[Any, list[str]]:
    """So many looks one after the other; what they did, together."""
    seen, done = {} if seen is None else seen, []
    for _ in range(count):
        seen, now_done = reconcile(instance, engine, seen)
        done += now_done
    return seen, done


def test_runs_that_wait_are_announced(waiting: Waiting) -> None:
    instance, engine = waiting
    named = settings(trained_model={"job_name": "night", "description": "of the north"})
    queued = submitted_run(instance, named)
    put_into_the_queue(instance, queued)
    starting = new_run(instance, dg.DagsterRunStatus.STARTING)
    fresh = new_run(instance, dg.DagsterRunStatus.NOT_STARTED)
    new_run(instance, dg.DagsterRunStatus.STARTING, asset_selection=frozenset({dg.AssetKey("receiver_network")}))
    for status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE):
        new_run(instance, status)
    wrong = new_run(instance, dg.DagsterRunStatus.STARTING, settings(trained_model={"epochs": 0}))
    _, done = reconcile(instance, engine, {})
    assert sorted(done) == sorted(
        [f"job {queued.run_id} is queued", f"job {starting.run_id} is queued", f"job {fresh.run_id} is pending"]
    )
    jobs = {job.id: job for job in list_jobs(engine)}
    assert {job.id: job.status for job in jobs.values()} == {
        queued.run_id: JobStatus.queued,
        starting.run_id: JobStatus.queued,
        fresh.run_id: JobStatus.pending,
    }
    job = jobs[queued.run_id]
    assert (job.job_name, job.description, job.run_id) == ("night", "of the north", queued.run_id)
    assert (job.total_epochs, job.config["checkpoint_every"]) == (4, 2)
    assert find_job(engine, wrong.run_id) is None
    assert reconcile(instance, engine, {})[1] == []


def test_a_run_that_comes_into_the_queue_later_has_its_job_queued(waiting: Waiting) -> None:
    instance, engine = waiting
    run = submitted_run(instance)
    assert reconcile(instance, engine, {})[1] == [f"job {run.run_id} is pending"]
    put_into_the_queue(instance, run)
    assert reconcile(instance, engine, {})[1] == [f"job {run.run_id} is queued"]
    assert get_job(engine, run.run_id).status is JobStatus.queued
    assert reconcile(instance, engine, {})[1] == []


def test_a_reexecution_that_waits_has_the_job_of_the_run_before_it(waiting: Waiting) -> None:
    instance, engine = waiting
    before = str(uuid.uuid4())
    new_run(instance, dg.DagsterRunStatus.STARTING, parent_run_id=before, root_run_id=before)
    assert reconcile(instance, engine, {})[1] == []
    assert list_jobs(engine) == []


@pytest.mark.parametrize(
    ("status", "becomes", "told"),
    [
        (dg.DagsterRunStatus.FAILURE, JobStatus.failed, "run {} ended without updating the job: its worker died"),
        (dg.DagsterRunStatus.SUCCESS, JobStatus.failed, "run {} ended without updating the job: its worker died"),
        (dg.DagsterRunStatus.CANCELED, JobStatus.cancelled, "the run was terminated"),
        (dg.DagsterRunStatus.STARTED, JobStatus.running, None),
        (dg.DagsterRunStatus.CANCELING, JobStatus.running, None),
    ],
)
def test_jobs_end_with_their_runs(
    waiting: Waiting, status: dg.DagsterRunStatus, becomes: JobStatus, told: str | None
) -> None:
    instance, engine = waiting
    run = new_run(instance, status)
    job = job_of(engine, run)
    seen, done = reconcile(instance, engine, {})
    ended = get_job(engine, job.id)
    assert ended.status is becomes
    assert ended.error_message == (None if told is None else told.format(run.run_id))
    assert done == {
        JobStatus.failed: [f"job {job.id} failed: {ended.error_message}"],
        JobStatus.cancelled: [f"job {job.id} was cancelled with its run"],
        JobStatus.running: [],
    }.get(becomes)
    assert found(instance, run).status is status, "Dagster has seen it end itself"
    # Of what has ended nothing is remembered.
    assert set(reconcile(instance, engine, seen)[0]) == ({job.id} if becomes is JobStatus.running else set())


@pytest.mark.parametrize(
    ("status", "tagged", "expected"),
    [
        (dg.DagsterRunStatus.FAILURE, {}, "failed"),
        (dg.DagsterRunStatus.FAILURE, {"triangulation/outcome": "resumed"}, "failed"),
        (dg.DagsterRunStatus.FAILURE, {"triangulation/outcome": "paused"}, "paused"),
        (dg.DagsterRunStatus.SUCCESS, {}, None),
        (dg.DagsterRunStatus.CANCELED, {}, None),
    ],
)
def test_a_run_whose_worker_died_is_tagged_with_what_it_could_not_say(
    waiting: Waiting, status: dg.DagsterRunStatus, tagged: dict[str, str], expected: str | None
) -> None:
    instance, engine = waiting
    run = new_run(instance, status, tags=tagged)
    job = job_of(engine, run)
    reconcile(instance, engine, {})
    tags = outcome(instance, run)
    assert tags.get("triangulation/outcome") == expected
    said = get_job(engine, job.id).error_message if expected == "failed" else None
    assert tags.get("triangulation/outcome_reason") == said


def test_one_job_that_ends_meanwhile_keeps_no_other_from_its_end(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after it was listed, and before it is looked at."""
    instance, engine = waiting
    jobs = [job_of(engine, new_run(instance, dg.DagsterRunStatus.FAILURE)) for _ in range(3)]
    middle = list_jobs(engine)[1]
    look_up = instance.get_run_by_id

    def meanwhile(run_id: str) -> dg.DagsterRun | None:
        if run_id == middle.run_id:
            complete_job(engine, middle)
        return look_up(run_id)

    monkeypatch.setattr(instance, "get_run_by_id", meanwhile)
    _, done = reconcile(instance, engine, {})
    assert len(done) == 2
    becomes = {job.id: JobStatus.failed for job in jobs} | {middle.id: JobStatus.completed}
    assert {job.id: job.status for job in list_jobs(engine)} == becomes


def test_queued_jobs_end_when_nothing_comes_of_them(waiting: Waiting) -> None:
    """At once where the run failed before it trained; after a while where it is gone, or a resuming one never came."""
    instance, engine = waiting
    announced = new_run(instance, dg.DagsterRunStatus.STARTING)
    reconcile(instance, engine, {})
    instance.report_run_failed(announced)
    _, done = reconcile(instance, engine, {})
    assert done == [f"job {announced.run_id} failed: run {announced.run_id} ended before it trained"]

    job = job_of(engine, new_run(instance, dg.DagsterRunStatus.CANCELED))
    config = TrainingConfig(job_name="gone")
    gone = announce_job(engine, job_id=str(uuid.uuid4()), status=JobStatus.queued, config=config)
    requeue_job(engine, fail_job(engine, job, "broke"))
    seen: Any = {}
    for _ in range(SILENT_LOOKS):
        seen, done = reconcile(instance, engine, seen)
        assert done == []
    reconcile(instance, engine, seen)
    assert get_job(engine, job.id).status is JobStatus.cancelled
    assert get_job(engine, gone.id).error_message == f"Dagster does not know run {gone.id} any more"


def test_a_run_waits_in_the_queue_for_as_long_as_it_takes(waiting: Waiting) -> None:
    instance, engine = waiting
    run = submitted_run(instance)
    put_into_the_queue(instance, run)
    _, done = looks(instance, engine, 3 * SILENT_LOOKS)
    assert done == [f"job {run.run_id} is queued"]
    assert get_job(engine, run.run_id).status is JobStatus.queued


@pytest.mark.parametrize("is_known", [True, False])
def test_a_silent_worker_is_dead(waiting: Waiting, is_known: bool) -> None:
    instance, engine = waiting
    run = new_run(instance, dg.DagsterRunStatus.STARTED) if is_known else None
    job = job_of(engine, run)
    seen: Any = {}
    for _ in range(SILENT_LOOKS + 2):
        send_heartbeat(engine, job)
        seen, done = reconcile(instance, engine, seen)
        assert done == []
    for _ in range(4):
        assert get_job(engine, job.id).status is JobStatus.running
        seen, done = reconcile(instance, engine, seen)
    assert done == [f"job {job.id} failed: its worker sent no heartbeat for 120 s"]
    assert get_job(engine, job.id).status is JobStatus.failed
    if run is not None:
        assert found(instance, run).status is dg.DagsterRunStatus.FAILURE
        assert outcome(instance, run) == {
            "triangulation/outcome": "failed",
            "triangulation/outcome_reason": "its worker sent no heartbeat for 120 s",
        }
        told = [entry.message for entry in instance.all_logs(run.run_id)]
        assert any(f"job {job.id}: its worker sent no heartbeat for 120 s" in line for line in told)


def test_a_worker_that_beats_now_and_then_is_alive(waiting: Waiting) -> None:
    instance, engine = waiting
    job = job_of(engine, None)
    seen: Any = {}
    for _ in range(3):
        seen, done = looks(instance, engine, SILENT_LOOKS, seen)
        assert done == []
        send_heartbeat(engine, job)


def test_a_look_counts_only_when_a_worker_could_have_beaten(waiting: Waiting) -> None:
    """While another process holds the lock of an SQLite file, none can: the look waits for it, as they do."""
    instance, engine = waiting
    job = job_of(engine, None)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with writing(engine):
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    looked: list[Any] = []
    look = threading.Thread(target=lambda: looked.append(reconcile(instance, engine, {})))
    look.start()
    time.sleep(0.3)
    assert looked == []
    release.set()
    holder.join()
    look.join()
    assert looked == [({job.id: (0, 0)}, [])]


def sensor_tick(instance: dg.DagsterInstance, cursor: str | None = None) -> tuple[str, str | None]:
    """What the sensor says, and its cursor afterwards."""
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"storage": Storage()}) as context:
        told = job_reconciler(context)
        assert isinstance(told, dg.SkipReason)
        return str(told.skip_message), context.cursor


def test_the_sensor_remembers_what_it_saw(waiting: Waiting) -> None:
    instance, engine = waiting
    assert sensor_tick(instance) == ("every job agrees with its run", "{}")
    job = job_of(engine, None)
    cursor = None
    for count in range(5):
        told, cursor = sensor_tick(instance, cursor)
        assert json.loads(str(cursor)) == {job.id: [0, count]}
    assert get_job(engine, job.id).status is JobStatus.failed
    assert told == f"job {job.id} failed: its worker sent no heartbeat for 120 s"
    assert sensor_tick(instance, cursor) == ("every job agrees with its run", "{}")


def test_the_sensor_looks_every_half_minute_and_says_all_it_did(waiting: Waiting) -> None:
    instance, engine = waiting
    assert job_reconciler.minimum_interval_seconds == 30
    jobs = [job_of(engine, new_run(instance, dg.DagsterRunStatus.CANCELED)) for _ in range(2)]
    told, _ = sensor_tick(instance)
    assert sorted(told.split("; ")) == sorted(f"job {job.id} was cancelled with its run" for job in jobs)


def test_a_database_that_is_away_is_told_and_what_was_seen_is_kept(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance, _ = waiting
    cursor = json.dumps({str(uuid.uuid4()): [3, 2]})
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", f"sqlite:///{tmp_path}/file/below.db")
    told, after = sensor_tick(instance, cursor)
    assert "cannot be opened" in told
    assert after == cursor
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", "mysql://here/there")
    told, after = sensor_tick(instance, cursor)
    assert told.startswith("TRIANGULATION_DATABASE_URL: the database URL must begin with")
    assert after == cursor
