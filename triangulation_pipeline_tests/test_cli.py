"""The command line as a person uses it: other processes, what they print and how they exit."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from triangulation_pipeline.cli import load_command, main
from triangulation_pipeline.cli.job_argument import JOB_IS
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.defs.conftest import settings

COMMAND = [sys.executable, "-m", "triangulation_pipeline.cli"]


def triangulation(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, timeout=240)


def small_run(folder: Path, **steps: dict[str, Any]) -> str:
    path = folder / f"run-{len(list(folder.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump({"ops": settings(**steps)["ops"]}))
    return str(path)


def test_page_for_people(home: Path, tmp_path: Path) -> None:
    """From another folder, with the settings as they are shipped: everything lands in DAGSTER_HOME."""
    shutil.copy(ROOT / "dagster.yaml", home)
    done = triangulation("run", "--config", small_run(home), cwd=tmp_path)
    assert (home / ".dagster" / "history").is_dir()
    assert not (tmp_path / ".dagster").exists()
    assert done.returncode == 0, done.stderr
    for expected in (
        "rf-triangulation/1",
        "Cramér-Rao bound",
        "Huber Gauss-Newton",
        "regions of 50 / 68.3 / 90 / 95 / 99 %",
        "best_model.pth",
    ):
        assert expected in done.stdout
    assert done.stderr == ""
    # Nothing but lines, each for itself.
    assert "\x1b" not in done.stdout
    assert re.findall(r"(?m)^epoch (\d)/4: .* s$", done.stdout) == ["1", "2", "3", "4"]
    table = triangulation("models").stdout
    assert "rf-triangulation" in table


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("ops: [", "not valid YAML: line 1, column 7"),
        ("just words", "must hold Dagster run config"),
        ("opps: {}", 'Received unexpected config entry "opps"'),
        ("ops: {trained_model: {config: {epochz: 3}}}", 'Received unexpected config entry "epochz"'),
        ("ops: {trained_model: {config: {epochs: many}}}", "epochs"),
        (
            "ops: {trained_model: {config: {epochs: 0}}}",
            "trained_model: epochs: Input should be greater than or equal to 1",
        ),
        ("ops: {synthetic_dataset: {config: {preset: hills}}}", "preset"),
        ("ops: 7", "ops"),
        ("ops:", "ops"),
        ("ops: {trained_model: {config: }}", "trained_model"),
        ("ops: {trained_model: {config: {epochs: {env: NO_SUCH_VARIABLE}}}}", "{env: 'NO_SUCH_VARIABLE'} is not taken"),
        ("ops: {trained_model: 7}", "trained_model"),
        ("ops: {trained_model: {config: 7}}", "trained_model"),
    ],
)
def test_bad_run_files_are_refused_in_one_sentence(
    home: Path, content: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: the graph is loaded once for all of them."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (home / "run.yaml").write_text(content)
    done = CliRunner().invoke(main, ["run", "--config", str(home / "run.yaml")])
    assert done.exit_code == 1
    assert_one_sentence(done.stderr, sentence)


def assert_one_sentence(stderr: str, sentence: str) -> None:
    assert stderr.startswith("Error: ")
    assert sentence in stderr
    assert "Traceback" not in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert len(stderr) < 400


def test_a_bad_run_file_is_refused_by_the_process_too(home: Path) -> None:
    (home / "run.yaml").write_text("opps: {}")
    done = triangulation("run", "--config", str(home / "run.yaml"))
    assert done.returncode == 1
    assert_one_sentence(done.stderr, 'Received unexpected config entry "opps"')


def test_bad_environment_is_refused_in_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", "mysql://me:hunter2@there/db")
    done = triangulation("run")
    assert done.returncode == 1
    assert "TRIANGULATION_DATABASE_URL" in done.stderr
    assert "hunter2" not in done.stderr


def test_away_from_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    for command in (["models"], ["status", "--url", "http://localhost:9"]):
        done = triangulation(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: DAGSTER_HOME is not set and the current folder has no dagster.yaml; ")
        assert "this command reads the database" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert len(done.stderr) < 360


def test_a_home_that_is_none_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, it would be another folder for each process."""
    monkeypatch.chdir(home.parent)
    for wrong in (home.name, str(home / "nowhere"), str(home / "dagster.yaml")):
        monkeypatch.setenv("DAGSTER_HOME", wrong)
        done = CliRunner().invoke(main, ["models"])
        assert done.exit_code == 1
        assert done.stderr == f"Error: DAGSTER_HOME must be the absolute path of a folder, got {wrong!r}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_behind_standard_output_is_told_in_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "network", "--check", str(ROOT / "docker/networks/north-west-italy.yaml"), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: standard output cannot be written: No space left on device\n",
    )


def test_status_fails_where_the_webserver_is_away(home: Path) -> None:
    """Also where no job is at work: it was not asked what Dagster knows."""
    done = triangulation("status", "--url", "http://localhost:9")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: the webserver at http://localhost:9 cannot be reached")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_is_whole_sentences(name: str) -> None:
    """Also in the list of all commands, which shows the first, and cuts it where it is long."""
    command = load_command(name)
    assert command.help is not None
    text = " ".join(command.help.split())
    assert text[0].isupper()
    assert text.endswith(".")
    assert not command.get_short_help_str().endswith("...")
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help is not None
            assert option.help.endswith(".")
    takes_a_job = any(argument.name == "job" for argument in command.params) or name == "run"
    assert command.epilog == (JOB_IS if takes_a_job else None)


def test_unknown_job(home: Path) -> None:
    done = triangulation("metrics", "00000000-0000-4000-8000-000000000000")
    assert done.returncode == 1
    assert "00000000-0000-4000-8000-000000000000" in done.stderr
    assert "Traceback" not in done.stderr


def test_network_prints_a_file_that_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "network.yaml"
    path.write_text(triangulation("network").stdout)
    assert read_network(path) == NORTH_WEST_ITALY
    path.write_text(triangulation("network", "--random-sites", "9", "--seed", "4").stdout)
    assert len(read_network(path).sites) == 9
