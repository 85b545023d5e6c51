"""Which job a run trains: its own, the one of the run that it re-executes, or a new one; and how a job ends."""

import uuid
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.api import execute_run

from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.config import settings_of
from triangulation_pipeline.jobs import worker
from triangulation_pipeline.jobs.continuation import announce_job, assign_run, requeue_job, start_job
from triangulation_pipeline.jobs.states import JobRecord, complete_job, fail_job, find_job, get_job, list_jobs
from triangulation_pipeline.plots import dataset, style, training
from triangulation_pipeline.storage.tables import JobStatus
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.conftest import make_home
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings

SPLITS = ["receiver_network", "synthetic_dataset", "training_split", "validation_split", "test_split"]
SHORT = settings(synthetic_dataset={"num_samples": 1000}, trained_model={"epochs": 1, "warmup_epochs": 0})
CONFIG = TrainingConfig.model_validate(settings_of(SHORT).trained_model.model_dump())
OTHER = CONFIG.model_copy(update={"seed": 7})
ALONE = frozenset({dg.AssetKey("trained_model")})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A home with the splits of a small dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(make_home(tmp_path_factory.mktemp("splits") / "home")))
        patch.delenv("TRIANGULATION_DATABASE_URL", raising=False)
        patch.delenv("TRIANGULATION_OBJECT_STORE", raising=False)
        # Nobody looks at these pictures, which take longer than the epoch.
        for name in ("dataset_map", "dataset_histograms"):
            patch.setattr(dataset, name, lambda *_: None)
        patch.setattr(training, "training_curves", lambda *_: None)
        patch.setattr(style, "png", lambda _: b"a picture")
        run = execute(SHORT, SPLITS)
        assert run.result.success
        yield run
        run.storage.close()
        run.instance.dispose()


def new_run(made: Run, parent: dg.DagsterRun | None = None, **more: Any) -> dg.DagsterRun:
    """A run that will train, or one that goes on from another as `Re-execute` in the UI makes it."""
    before = None if parent is None else parent.run_id
    return made.instance.create_run_for_job(
        train_locator_job(),
        run_config=SHORT,
        asset_selection=ALONE,
        parent_run_id=before,
        root_run_id=None if parent is None else parent.root_run_id or before,
        **more,
    )


def train(made: Run, run: dg.DagsterRun) -> dg.DagsterRun:
    """The run, after it has ended."""
    execute_run(dg.reconstructable(train_locator_job), run, made.instance)
    found = made.instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def begun(made: Run, run_id: str, job_id: str | None = None, config: TrainingConfig = CONFIG) -> JobRecord:
    """The running job of a run with the settings of all runs here."""
    return start_job(
        made.engine,
        job_id=job_id or run_id,
        run_id=run_id,
        config=config,
        synthetic_dataset_id=made.metadata("synthetic_dataset")["dataset_id"],
    )


def assert_has_job_of_its_own(made: Run, run: dg.DagsterRun, after: JobRecord | None) -> None:
    """And it is completed."""
    assert run.is_success
    job = get_job(made.engine, run.run_id)
    assert (job.status, job.run_id, job.current_epoch) == (JobStatus.completed, run.run_id, 1)
    assert job.parent_job_id == (None if after is None else after.id)
    assert job.config == CONFIG.model_dump(mode="json")


def test_a_job_is_never_taken_from_a_worker_that_lives(made: Run) -> None:
    """Though the settings are the same, a run that is re-executed while it runs keeps its job."""
    living = new_run(made, status=dg.DagsterRunStatus.STARTED)
    job = begun(made, living.run_id)
    again = train(made, new_run(made, living))
    assert get_job(made.engine, job.id) == job
    assert_has_job_of_its_own(made, again, job)


def test_a_job_whose_run_nobody_knows_is_taken_from_no_one(made: Run) -> None:
    """Nor is it known that its worker has ended."""
    first = new_run(made, status=dg.DagsterRunStatus.FAILURE)
    job = begun(made, str(uuid.uuid4()), job_id=first.run_id)
    again = train(made, new_run(made, first))
    assert get_job(made.engine, job.id) == job
    assert_has_job_of_its_own(made, again, job)


def test_a_job_is_taken_from_a_worker_that_died(made: Run) -> None:
    """At second hand too, where the run between did not come to train."""
    dead = new_run(made, status=dg.DagsterRunStatus.FAILURE)
    job = begun(made, dead.run_id)
    between = new_run(made, dead, status=dg.DagsterRunStatus.FAILURE)
    again = train(made, new_run(made, between))
    assert again.is_success
    taken = get_job(made.engine, job.id)
    assert (taken.status, taken.run_id, taken.error_message) == (JobStatus.completed, again.run_id, None)
    assert find_job(made.engine, again.run_id) is None


def test_a_resumed_job_goes_on_in_the_run_that_it_was_given_to(made: Run) -> None:
    """Though the first run of all had another job, of other settings."""
    first = new_run(made, status=dg.DagsterRunStatus.FAILURE)
    other = fail_job(made.engine, begun(made, first.run_id, config=OTHER), "it broke")
    second = new_run(made, first, status=dg.DagsterRunStatus.FAILURE)
    job = requeue_job(made.engine, fail_job(made.engine, begun(made, second.run_id), "it broke too"))
    third = new_run(made, second)
    assign_run(made.engine, job, third.run_id)
    assert train(made, third).is_success
    resumed = get_job(made.engine, job.id)
    assert (resumed.status, resumed.run_id) == (JobStatus.completed, third.run_id)
    assert get_job(made.engine, other.id) == other


@pytest.mark.parametrize("status", [JobStatus.failed, JobStatus.completed])
def test_a_job_with_other_settings_stays_as_it_was_left(made: Run, status: JobStatus) -> None:
    before = new_run(made, status=dg.DagsterRunStatus.FAILURE)
    running = begun(made, before.run_id, config=OTHER)
    is_done = status is JobStatus.completed
    job = complete_job(made.engine, running) if is_done else fail_job(made.engine, running, "it broke")
    again = train(made, new_run(made, before))
    assert get_job(made.engine, job.id) == job
    assert_has_job_of_its_own(made, again, job)


def test_a_training_that_was_seen_to_end_is_trained_again_where_somebody_asks_for_it(made: Run) -> None:
    first = train(made, new_run(made))
    assert_has_job_of_its_own(made, first, None)
    job = get_job(made.engine, first.run_id)
    again = train(made, new_run(made, first))
    assert get_job(made.engine, job.id) == job
    assert_has_job_of_its_own(made, again, job)


def test_a_job_that_was_announced_for_the_run_is_its_job(made: Run) -> None:
    """With what only the run knows: the settings as they are, the dataset."""
    run, count = new_run(made), len(list_jobs(made.engine))
    announced = TrainingConfig(job_name="announced", description="before", epochs=9)
    announce_job(made.engine, job_id=run.run_id, status=JobStatus.queued, config=announced)
    assert_has_job_of_its_own(made, train(made, run), None)
    job = get_job(made.engine, run.run_id)
    assert (job.job_name, job.description, job.total_epochs) == ("training", "", 1)
    assert job.synthetic_dataset_id == made.metadata("synthetic_dataset")["dataset_id"]
    assert len(list_jobs(made.engine)) == count + 1


def test_a_fault_of_ours_leaves_a_failed_job_that_names_it(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the roof fell in")

    monkeypatch.setattr(worker, "record_epoch", broken)
    run = train(made, new_run(made))
    job = get_job(made.engine, run.run_id)
    assert (job.status, job.error_message) == (JobStatus.failed, "RuntimeError: the roof fell in")
    assert run.tags["triangulation/outcome"] == "failed"
    assert run.tags["triangulation/outcome_reason"] == "trained_model: RuntimeError: the roof fell in"
