"""Dagster's webserver behind the gate, alone or in ``dagster dev``: Dagster's own commands, with three parts exchanged.

The only file that reaches into Dagster's programs. Neither has a place to put a gate, so functions of theirs are
exchanged by name: the one that makes the webserver's application, the one that starts the webserver as a process, and
the one that reads the launchpad's text, so that it means there what it means to ``--config``. Dagster's version is
pinned, and tests ask the running webserver.
"""

import fcntl
import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, TextIO

from yaml import YAMLError  # PyYAML's, which Dagster expects

from triangulation_pipeline.documents import parse_yaml
from triangulation_pipeline.gate import gated, read_hosts
from triangulation_pipeline.storage.objects import make_private

# Dagster's timeline, the page it opens on, knows only runs that a webserver or daemon launched.
WHERE_RUNS_ARE = "The page `Runs` lists every run; the timeline leaves out those of `triangulation run`."


def run_webserver(arguments: Sequence[str]) -> None:
    """``dagster-webserver`` with these arguments, behind the gate; ends the process when it is over.

    Raises ValueError where ``TRIANGULATION_WEBSERVER_HOSTS`` is wrong.
    """
    hosts = read_hosts()
    from dagster_webserver import cli

    create = cli.create_app_from_workspace_process_context

    def create_gated(*args: Any, **kwargs: Any) -> Any:
        return gated(create(*args, **kwargs), hosts)

    cli.create_app_from_workspace_process_context = create_gated
    read_run_config_as_yaml_1_2()
    cli.dagster_webserver(list(arguments), prog_name="triangulation webserver", auto_envvar_prefix="DAGSTER_WEBSERVER")


def read_run_config_as_yaml_1_2() -> None:
    """From now on this process reads the launchpad's text as the command line reads a file: Dagster's own reader takes
    YAML 1.1, where ``012`` is 10, ``1e-3`` a text, and of two equal keys the last is taken without a word."""
    from dagster_graphql.schema import runs

    runs.load_run_config_yaml = _run_config  # type: ignore[assignment] # an empty text is None


def _run_config(text: str) -> Any:
    """The run config of a text. Raises YAMLError with one sentence, which the launchpad shows."""
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise YAMLError(f"The run config is refused: {error}") from None


def run_dev(arguments: Sequence[str]) -> None:
    """``dagster dev`` with these arguments, whose webserver is behind the gate; ends the process when it is over.

    Raises ValueError where ``TRIANGULATION_WEBSERVER_HOSTS`` is wrong, or one runs in the current folder, the home.
    """
    read_hosts()
    lock = lock_home(Path.cwd())
    print(WHERE_RUNS_ARE, flush=True)
    # A shell script's `triangulation ui &` ignores the interrupt, and Dagster would ignore SIGTERM with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from dagster import DagsterInstance, SupersessionWarning
    from dagster._cli import dev

    from triangulation_pipeline.defs.dagster_private import begin_retries_here

    with DagsterInstance.get() as instance:
        begin_retries_here(instance)

    # It advises `dg dev`, which starts the webserver without the gate.
    warnings.simplefilter("ignore", SupersessionWarning)
    start = dev.open_ipc_subprocess

    def start_gated(parts: Sequence[str], **kwargs: Any) -> Popen[Any]:
        if list(parts[1:3]) == ["-m", "dagster_webserver"]:
            parts = [parts[0], "-m", "triangulation_pipeline.cli", "webserver", *parts[3:]]
        # Webserver and daemon hold the lock too: they outlive this process where it is killed.
        process = start(parts, **kwargs | {"pass_fds": [*kwargs.get("pass_fds", ()), lock.fileno()]})
        lock.write(f"{process.pid}\n")
        lock.flush()
        return process

    dev.open_ipc_subprocess = start_gated
    dev.dev_command(list(arguments), prog_name="triangulation ui")


def lock_home(home: Path) -> TextIO:
    """The home's lock, which this process holds, and those it hands the file to, until the last of them has ended, in
    whatever way: of two daemons on one home each would launch what is due. The file lists their ids.

    Raises ValueError, naming the processes, where others hold it.
    """
    path = home / ".dagster" / "ui.lock"
    try:
        make_private(path.parent)
        lock = path.open("a+")
    except OSError as error:
        raise ValueError(f"DAGSTER_HOME ({home}) cannot be written: {error.strerror}") from None
    try:
        # The system's own lock: it never outlives its holders, as a file alone would.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        running = ", ".join(line for line in lock.read().split() if _is_running(line))
        lock.close()
        raise ValueError(
            f"Dagster's pages and daemon of {home} are running already (processes {running}); open those, or end them "
            "first, by Ctrl-C where they were started or by `kill`"
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
