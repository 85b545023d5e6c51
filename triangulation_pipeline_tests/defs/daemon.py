"""A daemon with a code server of its own, as a test starts and kills it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from triangulation_pipeline_tests.conftest import ROOT

DEADLINE_S = 150.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Or fails, saying what did not come about."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE_S:.0f} s"
        time.sleep(0.25)


class Daemon:
    """The daemon with its code server, in a process group of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instance = dg.DagsterInstance.get()
        self.start()

    def start(self) -> None:
        """Again, after it was killed."""
        with (self.folder / "daemon.log").open("a") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("dagster-daemon"), "run", "-w", ROOT / "workspace.yaml"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Without a chance to finish what it does; its code server too."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def turn_on(self, kind: str, name: str) -> None:
        """A ``sensor`` or a ``schedule``, as a person does it."""
        command = [sys.executable, "-m", "dagster", kind, "start", name, "-w", str(ROOT / "workspace.yaml")]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def ticks(self, name: str) -> list[InstigatorTick]:
        """Those that have ended, the newest first; none of them badly."""
        (state,) = (found for found in self.instance.all_instigator_state() if found.instigator_name == name)
        ticks = self.instance.get_ticks(state.instigator_origin_id, state.selector_id)
        assert not [tick.error for tick in ticks if tick.error]
        return [tick for tick in ticks if tick.status is not TickStatus.STARTED]

    def wait_for_tick(self, *names: str) -> None:
        """One of each that begins from now on, to its end."""
        now = time.time()
        for name in names:
            wait_for(lambda name=name: any(tick.timestamp >= now for tick in self.ticks(name)), f"a tick of {name}")

    def runs(self) -> list[dg.DagsterRun]:
        """All, the newest last."""
        return list(self.instance.get_runs(ascending=True))


@contextmanager
def running_daemon(folder: Path) -> Iterator[Daemon]:
    """On the instance of ``folder``, which is DAGSTER_HOME."""
    daemon = Daemon(folder)
    try:
        yield daemon
    finally:
        daemon.kill()
        daemon.instance.dispose()
