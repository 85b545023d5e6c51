"""`triangulation run` as a person sees it in a terminal, stops it and lets it go on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from triangulation_pipeline_tests.terminal import on_a_terminal
from triangulation_pipeline_tests.test_cli import small_run, triangulation

# Its steps print, to standard output and error, as libraries may.
PRINTING = """
import sys
from triangulation_pipeline.jobs import worker as place
real = place.record_epoch
def printing(*arguments, **options):
    print("printed by a step")
    print("warned by a step", file=sys.stderr)
    return real(*arguments, **options)
place.record_epoch = printing
from triangulation_pipeline.cli import main
main(prog_name="triangulation")
"""
# It gets a signal as soon as it comes to a function of a step.
SIGNALLED = """
import os, signal
from triangulation_pipeline.defs.assets import {module} as place
real = place.{function}
def signalled(*arguments, **options):
    os.kill(os.getpid(), signal.{signal})
    return real(*arguments, **options)
place.{function} = signalled
from triangulation_pipeline.cli import main
main(prog_name="triangulation")
"""
EPOCHS = 30

# Each begins several runs in terminals of their own, and interrupts them.
pytestmark = pytest.mark.faults


def long_run(home: Path) -> str:
    steps = {"epochs": EPOCHS, "early_stop_patience": 0}
    return small_run(home, synthetic_dataset={"num_samples": 1000}, trained_model=steps)


def words(lines: list[str]) -> str:
    """Without the line breaks of a narrow terminal."""
    return " ".join(" ".join(lines).split())


def epochs_of(lines: list[str]) -> list[int]:
    """Of the lines of epochs, each of which is a whole line of its own."""
    found = [line for line in lines if "epoch " in line and "loss" in line]
    shape = rf"epoch (\d+)/{EPOCHS}: loss \S+, val loss \S+, RMSE [\d,]+ m, GDOP < 5: [\d,.]+ m, \S+ s"
    matched = [re.fullmatch(shape, line) for line in found]
    return [int(match[1]) for match in matched if match is not None or pytest.fail(f"{found}")]


def test_a_run_in_a_terminal_is_stopped_by_ctrl_c_and_goes_on(home: Path) -> None:
    """At 80 columns, then at 160: lines and progress bar keep apart, no traceback is seen, and what steps print is in
    the compute logs."""
    run = [sys.executable, "-c", PRINTING, "run"]
    code, lines = on_a_terminal([*run, "--config", long_run(home)], 80, interrupted_at=f"epoch 3/{EPOCHS}")
    assert code == 130, lines
    done = epochs_of(lines)
    stopped = re.search(
        rf"stopped at epoch (\d+) of {EPOCHS}; `triangulation run --resume (\w{{8}})` goes on from there",
        "".join(lines),
    )
    assert stopped is not None, lines
    assert done == list(range(1, int(stopped[1]) + 1))
    assert 3 <= len(done) < EPOCHS
    seen = words(lines)
    for unwanted in ("Traceback", "KeyboardInterrupt", "by a step", "working"):
        assert unwanted not in seen
    (row,) = json.loads(triangulation("jobs", "--json").stdout)
    assert (row["status"], row["current_epoch"]) == ("cancelled", len(done))

    code, lines = on_a_terminal([*run, "--resume", stopped[2]], 160)
    assert code == 0, lines
    assert done + epochs_of(lines) == list(range(1, EPOCHS + 1))
    assert "rf-triangulation/1" in lines
    assert "by a step" not in words(lines)
    (row,) = json.loads(triangulation("jobs", "--json").stdout)
    assert (row["status"], row["current_epoch"]) == ("completed", EPOCHS)
    logs = list((home / ".dagster" / "compute_logs").rglob("*.out"))
    assert len(logs) == 2
    assert sum(log.read_text().count("printed by a step") for log in logs) == EPOCHS
    assert sum(log.with_suffix(".err").read_text().count("warned by a step") for log in logs) == EPOCHS


def signalled(module: str, function: str, signal: str, *arguments: str) -> str:
    """What is said by a process that got a signal in a step; its exit code is 130."""
    program = SIGNALLED.format(module=module, function=function, signal=signal)
    done = subprocess.run(
        [sys.executable, "-c", program, "run", *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 130, done.stderr
    (sentence,) = done.stderr.splitlines()
    return sentence


def test_a_run_is_stopped_before_and_after_its_training(home: Path) -> None:
    """By SIGINT and by SIGTERM."""
    config = small_run(home, synthetic_dataset={"num_samples": 1000})
    assert (
        signalled("synthetic_dataset", "write_dataset", "SIGTERM", "--config", config)
        == "stopped before it trained; the same command begins again"
    )
    assert triangulation("jobs", "--json").stdout == "[]\n"

    told = signalled("trained_model", "complete_job", "SIGTERM", "--config", config)
    (job,) = json.loads(triangulation("jobs", "--json").stdout)
    short = job["job_id"][:8]
    assert told == f"stopped at epoch 4 of 4; `triangulation run --resume {short}` goes on from there"
    assert signalled("trained_model", "get_dataset", "SIGINT", "--resume", short) == told
    (job,) = json.loads(triangulation("jobs", "--json").stdout)
    assert job["status"] == "cancelled"

    assert (
        signalled("model_evaluation", "record_evaluation", "SIGINT", "--resume", short)
        == f"stopped after the training; `triangulation run --resume {short}` goes on with the evaluation"
    )
    assert triangulation("models", "--json").stdout == "[]\n"
    assert triangulation("run", "--resume", short).returncode == 0
    (model,) = json.loads(triangulation("models", "--json").stdout)
    assert model["job_id"] == job["job_id"]
