"""``triangulation run --resume``: which jobs it takes, and whose it leaves alone."""

import signal
import uuid
from collections.abc import Iterator

import click
import dagster as dg
import pytest
from sqlalchemy import Engine

from triangulation_pipeline.cli import main
from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.jobs.continuation import announce_job, requeue_job
from triangulation_pipeline.jobs.liveness import Heartbeat
from triangulation_pipeline.jobs.states import JobRecord, complete_job, fail_job, get_job
from triangulation_pipeline.storage.tables import JobStatus
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.storage.conftest import running_job


@pytest.fixture(autouse=True)
def _same_signals() -> Iterator[None]:
    """The command sets handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def refusal(job: JobRecord) -> str:
    """What is said to somebody who wants to go on with a job; nothing was launched."""
    with dg.DagsterInstance.get() as instance:
        before = instance.get_runs_count()
        with pytest.raises(click.ClickException) as refused:
            main.main(["run", "--resume", job.id], standalone_mode=False)
        assert instance.get_runs_count() == before
    return refused.value.message


def run_of(job_id: str, status: dg.DagsterRunStatus) -> None:
    """Dagster's run of that id, as if a process of this home had begun it."""
    with dg.DagsterInstance.get() as instance:
        instance.create_run_for_job(train_locator_job(), run_id=job_id, status=status)


def running(engine: Engine) -> JobRecord:
    return running_job(engine, str(uuid.uuid4()))


def test_a_job_whose_worker_lives_is_left_to_it(engine: Engine) -> None:
    job = running(engine)
    run_of(job.id, dg.DagsterRunStatus.STARTED)
    with Heartbeat(engine, job) as heartbeat:
        told = refusal(job)
        assert not heartbeat.should_stop
    assert told == f"job {job.id} is running and its worker is alive; `triangulation pause {job.id}` stops it"
    now = get_job(engine, job.id)
    assert (now.status, now.run_id, now.error_message) == (JobStatus.running, job.id, None)
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(job.id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.STARTED


def test_a_job_that_waits_is_left_to_its_run(engine: Engine) -> None:
    job_id = str(uuid.uuid4())
    job = announce_job(engine, job_id=job_id, status=JobStatus.queued, config=TrainingConfig(job_name="night"))
    run_of(job.id, dg.DagsterRunStatus.STARTING)
    assert refusal(job) == f"job {job.id} is queued, and run {job.id} works on it, or will do so"
    assert get_job(engine, job.id).status is JobStatus.queued


def test_a_job_of_another_home_is_refused(engine: Engine) -> None:
    job = fail_job(engine, running(engine), "it was tired")
    assert refusal(job) == f"job {job.id} was trained by run {job.id}, which this DAGSTER_HOME does not know"
    assert get_job(engine, job.id) == job


def test_a_job_that_is_done_is_refused(engine: Engine) -> None:
    job = complete_job(engine, running(engine))
    run_of(job.id, dg.DagsterRunStatus.SUCCESS)
    assert refusal(job) == f"job {job.id} is completed, and its run has succeeded: there is nothing left to do"


def test_a_job_that_somebody_else_resumes_is_refused(engine: Engine) -> None:
    """He was faster; his run is not there yet."""
    job = requeue_job(engine, fail_job(engine, running(engine), "it was tired"))
    run_of(job.id, dg.DagsterRunStatus.STARTED)
    assert refusal(job) == f"job {job.id} is queued, and run {job.id} works on it, or will do so"
