"""What launches by itself, with a daemon and a code server of its own: each once, also over a daemon killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from triangulation_pipeline.defs.resources import OpenStorage
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline_tests.conftest import ROOT, make_home
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.defs.test_automation import OTHER, add_dataset, write_network

pytestmark = pytest.mark.stack

DEADLINE_S = 150.0


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline_s:.0f} s"
        time.sleep(0.25)


class Daemon:
    """The daemon with its code server, in a process group of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instance = dg.DagsterInstance.get()
        self.start()

    def start(self) -> None:
        with (self.folder / "daemon.log").open("a") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("dagster-daemon"), "run", "-w", ROOT / "workspace.yaml"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def turn_on(self, kind: str, name: str) -> None:
        command = [sys.executable, "-m", "dagster", kind, "start", name, "-w", str(ROOT / "workspace.yaml")]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def ticks(self, name: str) -> list[str]:
        """Statuses of the ticks that have ended, the newest first."""
        (state,) = (s for s in self.instance.all_instigator_state() if s.instigator_name == name)
        found = self.instance.get_ticks(state.instigator_origin_id, state.selector_id)
        assert not [tick.error for tick in found if tick.error]
        return [tick.status.value for tick in found if tick.status.value != "STARTED"]

    def wait_for_ticks(self, count: int, *names: str) -> None:
        """So many more of each."""
        wanted = {name: len(self.ticks(name)) + count for name in names}
        for name, ticks in wanted.items():
            wait_for(lambda name=name, ticks=ticks: len(self.ticks(name)) >= ticks, f"{count} ticks of {name}")

    def runs(self) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs(ascending=True))

    def wait_for_queued(self, count: int) -> dg.DagsterRun:
        """The run that is the ``count``-th, once it is queued."""
        wait_for(
            lambda: len(self.runs()) == count and self.runs()[-1].status is dg.DagsterRunStatus.QUEUED,
            f"run {count} in the queue",
        )
        return self.runs()[-1]


def launcher(run: dg.DagsterRun) -> str:
    return run.tags.get("dagster/sensor_name") or run.tags["dagster/schedule_name"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_home(tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    for name in ("DATABASE_URL", "OBJECT_STORE", "RETRAIN_TIMEZONE"):
        monkeypatch.delenv(f"TRIANGULATION_{name}", raising=False)
    monkeypatch.setenv("TRIANGULATION_NETWORK_FILE", "sites.yaml")
    monkeypatch.setenv("TRIANGULATION_RETRAIN_CRON", "* * * * *")
    write_network(folder / "sites.yaml", NORTH_WEST_ITALY)
    return folder


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    daemon = Daemon(folder)
    yield daemon
    daemon.kill()
    daemon.instance.dispose()


@pytest.fixture
def never_dequeues(folder: Path) -> None:
    """What is launched stays queued, so that a test of what is launched trains nothing."""
    settings = (folder / "dagster.yaml").read_text()
    (folder / "dagster.yaml").write_text(settings.replace("run_queue:\n", "run_queue:\n  max_concurrent_runs: 0\n"))


@pytest.mark.usefixtures("never_dequeues")
def test_each_launches_once_also_over_a_killed_daemon(folder: Path, daemon: Daemon) -> None:
    sensors = ("new_dataset", "network_file_changed")
    storage = OpenStorage()
    old = add_dataset(storage.engine)
    for name in sensors:
        daemon.turn_on("sensor", name)
    daemon.wait_for_ticks(1, *sensors)
    assert daemon.runs() == []

    # A dataset of the new network, and the network's file: each is a reason to train, one after the other.
    write_network(folder / "sites.yaml", OTHER)
    new = add_dataset(storage.engine, OTHER)
    storage.close()
    for count in (1, 2):
        run = daemon.wait_for_queued(count)
        if count == 1:
            daemon.wait_for_ticks(1, *sensors)  # the other waits for it
            assert len(daemon.runs()) == 1
        daemon.instance.report_run_canceled(run)
    daemon.kill()
    keys = {launcher(run): run.tags["dagster/run_key"] for run in daemon.runs()}
    assert set(keys) == set(sensors)
    assert keys["new_dataset"] == f"dataset:{new.id}" != f"dataset:{old.id}"
    assert keys["network_file_changed"].startswith(f"network:{OTHER.digest}:")

    daemon.start()
    daemon.wait_for_ticks(1, *sensors)
    assert len(daemon.runs()) == 2

    daemon.turn_on("schedule", "periodic_retraining")
    assert launcher(daemon.wait_for_queued(3)) == "periodic_retraining"
    daemon.kill()
    daemon.start()
    daemon.wait_for_ticks(1, "periodic_retraining")  # the next minute's, which leaves it at that
    assert daemon.ticks("periodic_retraining")[0] == "SKIPPED"
    assert len(daemon.runs()) == 3


def test_model_trained_alone_is_evaluated_and_registered_once(folder: Path, daemon: Daemon) -> None:
    daemon.turn_on("sensor", "evaluate_and_register")
    daemon.wait_for_ticks(1, "evaluate_and_register")

    def made(selection: list[str] | None, **steps: dict[str, object]) -> Run:
        run = execute(settings(**steps), selection, daemon.instance)
        assert run.result.success
        return run

    made(None)
    daemon.wait_for_ticks(2, "evaluate_and_register")
    assert len(daemon.runs()) == 1, "a run of the whole graph has evaluated and registered"

    trained = made(["trained_model"], trained_model={"seed": 5})
    wait_for(lambda: len(daemon.runs()) == 3, "the run that evaluates and registers")
    run = daemon.runs()[-1]
    assert run.asset_selection == {dg.AssetKey("model_evaluation"), dg.AssetKey("registered_model")}
    wait_for(lambda: daemon.runs()[-1].is_finished, "its end")
    assert daemon.runs()[-1].status is dg.DagsterRunStatus.SUCCESS
    latest = daemon.instance.get_latest_materialization_event(dg.AssetKey("registered_model"))
    assert latest is not None
    assert latest.asset_materialization is not None
    metadata = latest.asset_materialization.metadata
    assert metadata["sha256"].value == trained.metadata("trained_model")["sha256"]
    assert metadata["version"].value == 2
    daemon.kill()
    daemon.start()

    # A new dataset alone leaves the models alone.
    made(["receiver_network", "synthetic_dataset", "training_split", "validation_split", "test_split"])
    daemon.wait_for_ticks(2, "evaluate_and_register")
    assert len(daemon.runs()) == 4
