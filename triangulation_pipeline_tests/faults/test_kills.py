"""SIGKILL at random moments of a run's life: nothing torn, nothing lost but the epoch at work, and in the end the very
weights of a training that was left alone."""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from triangulation_pipeline.model.checkpoint import read_checkpoint
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.settings import read_settings
from triangulation_pipeline.storage.tables import JobStatus
from triangulation_pipeline_tests.conftest import make_home
from triangulation_pipeline_tests.faults.conftest import finish, jobs_of_a_sound_home, kill, worker, write_config
from triangulation_pipeline_tests.storage.model_rows import list_models

pytestmark = pytest.mark.faults

# In all; the long target has a hundred.
KILLS = int(os.environ.get("TRIANGULATION_TEST_KILLS", "22"))
KILLS_OF_A_TRAINING = KILLS // 3 + 1
# Between two kills lie at most so many epochs, and those of the half second that follows them.
EPOCHS_BETWEEN_KILLS = 7
# It must not end before the kills do: 60 are enough for the default's eight, and each further kill has room of its own.
EPOCHS = 60 + 12 * max(0, KILLS_OF_A_TRAINING - 8)
SETTINGS = {
    "synthetic_dataset": {"num_samples": 2000},
    "trained_model": {"epochs": EPOCHS, "early_stop_patience": 0, "batch_size": 256, "checkpoint_every": 7},
}


def weights_of_the_model() -> dict[str, torch.Tensor]:
    engine = open_database(read_settings().database_url)
    (model,) = list_models(engine)
    engine.dispose()
    return read_checkpoint(Path(model.pytorch_model_location).read_bytes()).weights


def epochs_done() -> int:
    return max((job.current_epoch for job in jobs_of_a_sound_home()), default=0)


def kill_after(process: subprocess.Popen[str], says: str, times: int, seconds: float) -> None:
    """SIGKILL so long after the worker has said something so often; it may have ended by then."""
    assert process.stdout is not None
    for line in process.stdout:
        times -= line.startswith(says)
        if times <= 0:
            break
    time.sleep(seconds)
    kill(process)


@pytest.fixture
def never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights of the same training in a home of its own, left alone."""
    with monkeypatch.context() as patch:
        folder = make_home(tmp_path / "alone")
        patch.setenv("DAGSTER_HOME", str(folder))
        finish(worker("run", "--config", str(write_config(folder, **SETTINGS))))
        return weights_of_the_model()


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(never_killed: dict[str, torch.Tensor], home: Path, seed: int) -> None:
    moments = random.Random(seed)
    config = write_config(home, **SETTINGS)
    before = 0
    for number in range(KILLS_OF_A_TRAINING):
        jobs = jobs_of_a_sound_home()
        process = worker("run", *(["--resume", jobs[0].id] if jobs else ["--config", str(config)]))
        if number == 0:
            kill_after(process, "", 1, moments.uniform(0, 0.5))  # the dataset is there, or nearly
        else:
            kill_after(process, "epoch", moments.randint(1, EPOCHS_BETWEEN_KILLS), moments.uniform(0, 0.5))
        after = epochs_done()
        assert after >= before, "an epoch that was recorded is gone"
        before = after
    assert KILLS_OF_A_TRAINING <= before < EPOCHS
    (job,) = jobs_of_a_sound_home()
    assert job.status is JobStatus.running  # nobody wrote down that its worker died
    finish(worker("run", "--resume", job.id))
    (job,) = jobs_of_a_sound_home()
    assert (job.status, job.current_epoch) == (JobStatus.completed, EPOCHS)
    mine = weights_of_the_model()
    assert mine.keys() == never_killed.keys()
    assert all(torch.equal(mine[name], never_killed[name]) for name in never_killed)


def test_killed_while_it_ends(home: Path) -> None:
    """After the last epoch: calibration, checks, evaluation, registration."""
    moments = random.Random(3)
    for number in range(KILLS // 3):
        # Other weights each time: equal ones are one version.
        training = {"epochs": 2, "seed": number}
        config = write_config(home, synthetic_dataset={"num_samples": 2000}, trained_model=training)
        process = worker("run", "--config", str(config))
        kill_after(process, "epoch", 2, moments.uniform(0, 3))
        job = jobs_of_a_sound_home()[0]
        if process.returncode:
            resumed = worker("run", "--resume", job.id)
            printed = resumed.communicate(timeout=300)[0]
            assert resumed.returncode == 0 or "its run has succeeded" in printed  # killed when all was done
        jobs = jobs_of_a_sound_home()
        assert len(jobs) == number + 1
        assert {job.status for job in jobs} <= {JobStatus.completed}
        engine = open_database(read_settings().database_url)
        models = list_models(engine)
        engine.dispose()
        assert [model.version for model in models] == list(range(number + 1, 0, -1))
        assert len({model.trained_by_job_id for model in models}) == number + 1
        assert sum(model.is_active for model in models) == 1
