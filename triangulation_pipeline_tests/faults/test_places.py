"""Full disks, damaged and poisoned objects, clocks that go back, rows that go away, runs side by side."""

import hashlib
import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, update
from sqlalchemy.exc import IntegrityError

from triangulation_pipeline.jobs.states import JobRecord
from triangulation_pipeline.storage.engine import open_database, writing
from triangulation_pipeline.storage.settings import read_settings
from triangulation_pipeline.storage.tables import (
    JobStatus,
    synthetic_datasets,
    synthetic_training_samples,
    training_jobs,
)
from triangulation_pipeline_tests.conftest import cannot_run
from triangulation_pipeline_tests.faults.conftest import finish, jobs_of_a_sound_home, kill, worker, write_config
from triangulation_pipeline_tests.storage.model_rows import list_models

pytestmark = pytest.mark.faults

DATASET = {"num_samples": 2000}
TRAINING = {"epochs": 6, "early_stop_patience": 0, "batch_size": 256}


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Callable[[int], None]]:
    """A disk of so many KiB; what it gives resizes it."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        cannot_run(f"a small disk can be mounted by root alone: {done.stderr.strip()}")
    try:
        yield lambda kib: subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def refused(*arguments: str) -> str:
    """The sentence, and nothing else, that a command ends with."""
    process = worker(*arguments)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1, printed
    assert "Traceback" not in printed
    return printed.strip().splitlines()[-1]


@contextmanager
def database() -> Iterator[Engine]:
    engine = open_database(read_settings().database_url)
    yield engine
    engine.dispose()


def test_a_full_disk_under_the_objects(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(home, synthetic_dataset=DATASET, trained_model=TRAINING | {"checkpoint_every": 1})
    with small_disk(home / "objects", 768) as resize:
        monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", str(home / "objects"))
        assert "cannot be stored" in (told := refused("run", "--config", str(config)))
        assert "No space left on device" in told
        (job,) = jobs_of_a_sound_home()
        assert job.status is JobStatus.failed
        assert 1 <= job.current_epoch < 6
        assert "No space left on device" in str(job.error_message)
        assert not list((home / "objects").rglob(".*.tmp"))
        resize(65_536)
        finish(worker("run", "--resume", job.id))
        (job,) = jobs_of_a_sound_home()
        assert (job.status, job.current_epoch) == (JobStatus.completed, 6)


def test_a_full_disk_under_the_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(home, synthetic_dataset={"num_samples": 20_000}, trained_model={"epochs": 2})
    with small_disk(home / "disk", 2048) as resize:
        monkeypatch.setenv("TRIANGULATION_DATABASE_URL", f"sqlite:///{home}/disk/some.db")
        told = refused("run", "--config", str(config))
        assert "cannot be written: " in told
        assert "full" in told
        assert jobs_of_a_sound_home() == []
        with database() as engine, engine.connect() as connection:
            assert connection.execute(synthetic_datasets.select()).all() == []
            assert connection.execute(synthetic_training_samples.select()).all() == []
        resize(262_144)
        finish(worker("run", "--config", str(config)))
        (job,) = jobs_of_a_sound_home()
        assert job.status is JobStatus.completed


@pytest.fixture
def interrupted(home: Path) -> JobRecord:
    """A job whose worker was killed after its second epoch."""
    config = write_config(home, synthetic_dataset=DATASET, trained_model=TRAINING)
    process = worker("run", "--config", str(config))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    kill(process)
    (job,) = jobs_of_a_sound_home()
    return job


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("damage", ["truncated", "one bit", "poisoned", "poisoned, digest and all"])
def test_a_damaged_state_is_refused_and_never_executed(home: Path, interrupted: JobRecord, damage: str) -> None:
    path, trap = Path(str(interrupted.state_location)), home / "executed"
    content = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            content = content[: len(content) // 2]
        case "one bit":
            content[len(content) // 3] ^= 4
        case _:
            content = bytearray(pickle.dumps(Payload(trap)))
    path.write_bytes(content)
    if damage == "poisoned, digest and all":
        digest = hashlib.sha256(content).hexdigest()
        with database() as engine, writing(engine) as connection:
            connection.execute(update(training_jobs).values(state_sha256=digest))
    told = refused("run", "--resume", interrupted.id)
    assert ("not a readable checkpoint" if "digest" in damage else "is damaged: its digest is") in told
    assert not trap.exists()
    with database() as engine, engine.connect() as connection:
        row = connection.execute(training_jobs.select()).one()
        assert (row.status, row.current_epoch) == ("failed", interrupted.current_epoch)
        assert list_models(engine) == []


# Every process of Python that finds this shows the time of a clock that is so many seconds off as the file says.
SITECUSTOMIZE = """
import datetime, os, pathlib, threading, time_machine
clock = pathlib.Path(os.environ["TEST_CLOCK"])
shown = float(clock.read_text())
travel = time_machine.travel(datetime.datetime.now() + datetime.timedelta(seconds=shown), tick=True)
traveller = travel.start()
def follow():
    global shown
    while True:
        threading.Event().wait(0.02)
        wanted = float(clock.read_text() or shown)
        traveller.shift(wanted - shown)
        shown = wanted
threading.Thread(target=follow, daemon=True).start()
"""


def test_a_clock_that_goes_back(home: Path) -> None:
    """By an hour in the middle of the training, by a day before the job is resumed, and by one more before the next."""
    (home / "sitecustomize.py").write_text(SITECUSTOMIZE)
    clock = home / "clock"
    environment = {**os.environ, "PYTHONPATH": str(home), "TEST_CLOCK": str(clock)}
    config = write_config(home, synthetic_dataset=DATASET, trained_model=TRAINING)
    clock.write_text("0")
    process = worker("run", "--config", str(config), env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1"):
            clock.write_text("-3600")
        if line.startswith("epoch 4"):
            break
    kill(process)
    (job,) = jobs_of_a_sound_home()
    clock.write_text("-86400")
    finish(worker("run", "--resume", job.id, env=environment))
    (job,) = jobs_of_a_sound_home()
    assert (job.status, job.current_epoch) == (JobStatus.completed, 6)
    assert job.finished_at is not None
    assert job.finished_at < job.created_at  # the clock did go back
    clock.write_text("-172800")
    config = write_config(home, synthetic_dataset=DATASET, trained_model=TRAINING | {"seed": 1})  # other weights
    finish(worker("run", "--config", str(config), env=environment))
    with database() as engine:
        assert [(model.version, model.is_active) for model in list_models(engine)] == [(2, True), (1, False)]


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0)], ids=["other weights", "equal weights"])
def test_two_runs_at_once_on_one_dataset_and_name(home: Path, seeds: tuple[int, int]) -> None:
    running = []
    for number, seed in enumerate(seeds):
        training = TRAINING | {"seed": seed}
        config = write_config(home, f"run {number}.yaml", synthetic_dataset=DATASET, trained_model=training)
        running.append(worker("run", "--config", str(config)))
    for process in running:
        finish(process)
    jobs = jobs_of_a_sound_home()
    assert [job.status for job in jobs] == [JobStatus.completed] * 2
    assert len({job.synthetic_dataset_id for job in jobs}) == 1
    with database() as engine:
        models = list_models(engine)
        if len(set(seeds)) == 2:
            assert [model.version for model in models] == [2, 1]
            assert {model.trained_by_job_id for model in models} == {job.id for job in jobs}
        else:
            assert [model.version for model in models] == [1]
            assert models[0].trained_by_job_id in {job.id for job in jobs}
        assert sum(model.is_production for model in models) <= 1


def test_a_dataset_deleted_while_training_on_it(home: Path) -> None:
    """The dataset is kept while a job refers to it. A run whose samples are deleted by force goes on with the rows that
    it has read; the next one misses them with one sentence."""
    config = write_config(home, synthetic_dataset=DATASET, trained_model=TRAINING)
    process = worker("run", "--config", str(config))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1"):
            with database() as engine:
                with pytest.raises(IntegrityError), writing(engine) as connection:
                    connection.execute(delete(synthetic_datasets))
                with writing(engine) as connection:
                    connection.execute(delete(synthetic_training_samples))
            break
    printed = process.communicate(timeout=300)[0]
    assert (process.returncode, "Traceback" in printed) == (0, False)
    with database() as engine:
        (model,) = list_models(engine)
    following = worker("run", "--config", str(config))
    printed = following.communicate(timeout=300)[0]
    assert (following.returncode, "Traceback" in printed) == (1, False)
    assert f"dataset {model.synthetic_dataset_id} " in printed
    assert "was changed after it was written" in printed
    with database() as engine:
        assert list_models(engine) == [model]


def test_a_worker_that_is_asked_to_end_ends_well(home: Path) -> None:
    """SIGTERM, as a machine that shuts down sends it: the job is cancelled, and can be resumed."""
    config = write_config(home, synthetic_dataset=DATASET, trained_model=TRAINING | {"epochs": 50})
    process = worker("run", "--config", str(config))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2"):
            process.terminate()
            break
    printed = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert "Traceback" not in printed
    (job,) = jobs_of_a_sound_home()
    assert (job.status, job.error_message) == (JobStatus.cancelled, "the run was terminated")
