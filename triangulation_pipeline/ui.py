"""``dagster dev`` with its webserver behind the gate: Dagster's own command, with one part exchanged.

Dagster has no place to put a gate, so the function of ``dagster dev`` that starts the webserver as a process is
exchanged by name. Dagster's version is pinned, and tests ask the running webserver.
"""

import fcntl
import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, TextIO

from dagster import DagsterInstance, SupersessionWarning

from triangulation_pipeline.defs.dagster_private import begin_retries_here, dev
from triangulation_pipeline.gate import read_hosts
from triangulation_pipeline.storage.objects import make_private

# Dagster's timeline, the page it opens on, knows only runs that a webserver or daemon launched.
WHERE_RUNS_ARE = "The page `Runs` lists every run; the timeline leaves out those of `triangulation run`."


def run_dev(arguments: Sequence[str]) -> None:
    """Runs ``dagster dev`` with these arguments, its webserver behind the gate, and ends the process with it.

    Raises ValueError if ``TRIANGULATION_WEBSERVER_HOSTS`` is wrong, or if one runs already in the current folder, which
    is DAGSTER_HOME.
    """
    read_hosts()
    lock = lock_home(Path.cwd())
    print(WHERE_RUNS_ARE, flush=True)
    # A shell script's `triangulation ui &` ignores the interrupt, and Dagster would ignore SIGTERM with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with DagsterInstance.get() as instance:
        begin_retries_here(instance)

    # It advises `dg dev`, which starts the webserver without the gate.
    warnings.simplefilter("ignore", SupersessionWarning)
    start = dev.open_ipc_subprocess

    def start_gated(parts: Sequence[str], **kwargs: Any) -> Popen[Any]:
        if list(parts[1:3]) == ["-m", "dagster_webserver"]:
            parts = [parts[0], "-m", "triangulation_pipeline.cli", "webserver", *parts[3:]]
        # Webserver and daemon hold the lock too: if this process is killed, they go on without it.
        process = start(parts, **kwargs | {"pass_fds": [*kwargs.get("pass_fds", ()), lock.fileno()]})
        lock.write(f"{process.pid}\n")
        lock.flush()
        return process

    dev.open_ipc_subprocess = start_gated
    dev.dev_command(list(arguments), prog_name="triangulation ui")


def lock_home(dagster_home: Path) -> TextIO:
    """Takes the lock of DAGSTER_HOME: with two daemons on one folder, each would launch what is due.

    The lock is held by this process and by those that it hands the file to, until the last of them has ended, in
    whatever way. The file lists their ids. Raises ValueError, which names the processes, if others hold the lock.
    """
    path = dagster_home / ".dagster" / "ui.lock"
    try:
        make_private(path.parent)
        lock = path.open("a+")
    except OSError as error:
        raise ValueError(f"DAGSTER_HOME ({dagster_home}) cannot be written: {error.strerror}") from None
    try:
        # The system's own lock: it never outlives its holders, as a file alone would.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        running = ", ".join(line for line in lock.read().split() if _is_running(line))
        lock.close()
        raise ValueError(
            f"Dagster's pages and daemon of {dagster_home} are running already (processes {running}); open those, or "
            "end them first, by Ctrl-C where they were started or by `kill`"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _is_running(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except PermissionError:
        return True
    except (ValueError, OSError, OverflowError):
        return False
    return True
