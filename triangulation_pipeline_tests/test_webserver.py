"""Dagster's programs with their parts exchanged, seen without starting them."""

import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dagster._cli import dev
from dagster_graphql.schema import runs
from yaml import YAMLError

from triangulation_pipeline.cli import main
from triangulation_pipeline.ui import run_dev
from triangulation_pipeline.webserver import read_run_config_as_yaml_1_2


@pytest.fixture
def launchpad(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How the launchpad's text is read, put back afterwards."""
    monkeypatch.setattr(runs, "load_run_config_yaml", runs.load_run_config_yaml)
    read_run_config_as_yaml_1_2()
    return runs.load_run_config_yaml


def test_the_launchpad_means_what_a_file_means(launchpad: Any) -> None:
    assert launchpad("a: 012\nb: 1e-3\nc: no\n") == {"a": 12, "b": 0.001, "c": "no"}
    assert launchpad("") is None


def test_a_text_that_is_wrong_is_refused_in_one_sentence(launchpad: Any) -> None:
    with pytest.raises(YAMLError) as refused:
        launchpad("a: 1\na: 2\n")
    assert str(refused.value) == "The run config is refused: 'a' is written twice, lines 1 and 2"
    assert refused.value.__suppress_context__


class Started:
    """Stands in for a program that was started."""

    pid = 4321


@pytest.fixture
def started(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[str], dict[str, Any]]]]:
    """What `dagster dev` would have started, and how; it ends at once."""
    asked: list[tuple[list[str], dict[str, Any]]] = []

    def start(parts: Any, **kwargs: Any) -> Any:
        asked.append((list(parts), kwargs))
        return Started()

    def command(arguments: list[str], prog_name: str) -> None:
        assert (arguments, prog_name) == (["-p", "1"], "triangulation ui")
        with pytest.raises(ValueError, match=r"are running already \(processes \d+\)"):
            run_dev(arguments)
        dev.open_ipc_subprocess(["python", "-m", "dagster_webserver", "--port", "1"], env={"A": "b"})
        dev.open_ipc_subprocess(["python", "-m", "dagster._daemon", "run"], pass_fds=(7,))

    monkeypatch.setattr(dev, "open_ipc_subprocess", start)
    monkeypatch.setattr(dev, "dev_command", command)
    monkeypatch.delenv("TRIANGULATION_WEBSERVER_HOSTS", raising=False)
    monkeypatch.chdir(home)
    before = signal.getsignal(signal.SIGINT)
    yield asked
    signal.signal(signal.SIGINT, before)


def test_dagster_dev_starts_its_webserver_behind_the_gate_and_both_hold_the_home(
    home: Path, started: list[tuple[list[str], dict[str, Any]]]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with warnings.catch_warnings():
        done = CliRunner().invoke(main, ["ui", "-p", "1"])
    assert done.exit_code == 0, done.output
    assert "The page `Runs` lists every run" in done.output
    (webserver, its), (daemon, others) = started
    assert webserver == ["python", "-m", "triangulation_pipeline.cli", "webserver", "--port", "1"]
    assert its["env"] == {"A": "b"}
    assert daemon == ["python", "-m", "dagster._daemon", "run"]
    (lock,) = its["pass_fds"]
    assert list(others["pass_fds"]) == [7, lock]
    assert (home / ".dagster" / "ui.lock").read_text().split()[1:] == ["4321", "4321"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "also where a script had it ignored"
