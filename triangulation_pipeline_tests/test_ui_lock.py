"""One `triangulation ui` a home: whoever comes second is told, and nobody who died is waited for."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from triangulation_pipeline.ui import lock_home

# Takes the lock, or hands it to a child that outlives it, and says so.
HOLDER = """
import subprocess, sys, time
from pathlib import Path
from triangulation_pipeline.ui import lock_home
lock = lock_home(Path(sys.argv[1]))
if sys.argv[2:] == ["with a child"]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[lock.fileno()])
    lock.write(f"{child.pid}\\n")
    lock.flush()
    print(child.pid, flush=True)
print("locked", flush=True)
time.sleep(600)
"""


@contextmanager
def holder(home: Path, *how: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the home's lock, and the id of its child or of itself."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, home, *how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        first = process.stdout.readline().strip()
        yield process, int(first) if first.isdigit() else process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def refusal(home: Path) -> str:
    with pytest.raises(ValueError, match="are running already") as refused:
        lock_home(home)
    return str(refused.value)


def test_the_second_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        assert refusal(tmp_path) == (
            f"Dagster's pages and daemon of {tmp_path} are running already (processes {process.pid}); open those, or "
            "end them first, by Ctrl-C where they were started or by `kill`"
        )
        other = tmp_path / "other"
        other.mkdir()
        lock_home(other).close()


def test_what_it_makes_is_its_owners_alone(tmp_path: Path) -> None:
    """Events, settings and logs come to lie there."""
    lock_home(tmp_path).close()
    assert stat.S_IMODE((tmp_path / ".dagster").stat().st_mode) == 0o700


def test_one_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lock_home(tmp_path).close()
    # Its file is still there, and is nobody's.
    assert (tmp_path / ".dagster" / "ui.lock").is_file()
    for left in (b"", b"1\n", b"\xff\x00 no number\n"):
        (tmp_path / ".dagster" / "ui.lock").write_bytes(left)
        lock = lock_home(tmp_path)
        assert (tmp_path / ".dagster" / "ui.lock").read_text() == f"{os.getpid()}\n"
        lock.close()


def test_programs_that_outlive_a_killed_one_still_hold_the_home(tmp_path: Path) -> None:
    with holder(tmp_path, "with a child") as (process, child):
        assert f"(processes {process.pid}, {child})" in refusal(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert f"(processes {child})" in refusal(tmp_path)
        os.kill(child, signal.SIGKILL)
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
            pass
        lock_home(tmp_path).close()


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".dagster").write_text("")
    with pytest.raises(ValueError, match=rf"DAGSTER_HOME \({tmp_path}\) cannot be written: "):
        lock_home(tmp_path)
