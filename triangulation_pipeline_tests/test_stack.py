"""Runs operated from outside, on a webserver, a daemon and a code server of their own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from triangulation_pipeline.client import Webserver, WebserverError
from triangulation_pipeline.documents import parse_yaml
from triangulation_pipeline.jobs.continuation import announce_job
from triangulation_pipeline.jobs.states import fail_job
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.settings import read_settings
from triangulation_pipeline.storage.tables import JobStatus
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.conftest import ROOT, cannot_run, make_home
from triangulation_pipeline_tests.defs.conftest import settings
from triangulation_pipeline_tests.test_cli import COMMAND
from triangulation_pipeline_tests.test_cli_operate import refusal, resumed, said

pytestmark = pytest.mark.stack

READY_S = 120
PATIENCE_S = 300


@pytest.fixture(scope="module")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    """`make ui` in a home of its own, and the environment of somebody who uses it."""
    home = make_home(tmp_path_factory.mktemp("stack") / "home")
    shutil.copy(ROOT / "workspace.yaml", home)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("DAGSTER_HOME", str(home))
        patch.setenv("TRIANGULATION_WEBSERVER_URL", f"http://127.0.0.1:{port}")
        patch.delenv("TRIANGULATION_DATABASE_URL", raising=False)
        patch.delenv("TRIANGULATION_OBJECT_STORE", raising=False)
        dagster = Path(sys.executable).parent / "dagster"
        subprocess.run([dagster, "instance", "concurrency", "set", "training", "1"], check=True, capture_output=True)
        with (home / "log").open("w") as log:
            stack = subprocess.Popen(
                [*COMMAND, "ui", "-p", str(port)],
                cwd=home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Runs are terminated by the signal that pytest may have been told to ignore.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        found = Webserver()
        try:
            until(lambda: _answers(found.url), READY_S, lambda: (home / "log").read_text())
            yield found
        finally:
            # All at once: asked politely, it would wait for runs that are at work.
            _kill_session(stack.pid)
            stack.wait()


def until(
    is_so: Callable[[], bool], seconds: float = PATIENCE_S, explain: Callable[[], str] = lambda: "waited in vain"
) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.5)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/server_info", timeout=5).ok
    except requests.RequestException:
        return False


def _session(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if os.getsid(int(folder.name)) == session and not is_zombie:
                found.append(int(folder.name))
    return found


def _kill_session(session: int) -> None:
    for process in _session(session):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "before"),
    [(signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_IGN)],
    ids=["in a terminal", "in a script"],
)
def test_the_ui_ends_with_all_its_processes(tmp_path: Path, how: signal.Signals, before: Any) -> None:
    """By Ctrl-C and by SIGTERM, also where a script has started it with `&`: then the interrupt is ignored at first."""
    home = make_home(tmp_path / "home")
    shutil.copy(ROOT / "workspace.yaml", home)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    log = home / "log"
    with log.open("w") as output:
        started = subprocess.Popen(
            [*COMMAND, "ui", "-p", url.rpartition(":")[2]],
            cwd=tmp_path,
            env={**os.environ, "DAGSTER_HOME": str(home)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, before),
        )
    try:
        until(lambda: _answers(url), READY_S, log.read_text)
        assert len(_session(started.pid)) >= 4
        started.send_signal(how)
        assert started.wait(60) == 0, log.read_text()
        # The code server ends last, after runs that may be at work.
        until(lambda: _session(started.pid) == [], 60)
        assert not _answers(url)
        assert "Traceback" not in log.read_text()
    finally:
        _kill_session(started.pid)


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[..., str]:
    """Writes the run config of a small run."""

    def write(num_samples: int = 3000, **trained_model: Any) -> str:
        path = tmp_path / "run.yaml"
        steps = settings(synthetic_dataset={"num_samples": num_samples}, trained_model=trained_model)
        path.write_text(yaml.safe_dump({"ops": steps["ops"]}))
        return str(path)

    return write


def standing(job: str) -> tuple[str, str]:
    row = json.loads(said("status", job, "--json"))
    return row["status"], row["run_status"]


def test_launch_and_watch(webserver: Webserver, run_file: Callable[..., str]) -> None:
    launch = [*COMMAND, "launch", "--watch", "--json", "--config", run_file(job_name="watched")]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    launched = json.loads(done.stdout)
    for expected in ("epoch 4/4: val RMSE", "SUCCESS", "┤", f"run {launched['run_id']} succeeded"):
        assert expected in done.stderr
    assert re.search(r"\nrf-triangulation/1: median [\d.]+ m, .* with good geometry\n.*romoted: ", done.stderr)
    job = launched["job_id"]
    assert standing(job[:8]) == ("completed", "SUCCESS")
    assert [row["epoch"] for row in json.loads(said("metrics", job[:8], "--json"))] == [1, 2, 3, 4]
    assert said("status") == "none"
    # What Dagster knows of it.
    (left,) = webserver.materializations("registered_model")
    assert (left.run_id, left.metadata["version"]) == (launched["run_id"], 1)
    seen = [event.metadata["metrics"]["epoch"] for event in webserver.observations("trained_model")]
    assert seen == [4, 3, 2, 1]
    events = webserver.events(launched["run_id"])
    assert [epoch["epoch"] for epoch in events.epochs] == [1, 2, 3, 4]
    assert webserver.events(launched["run_id"], events.cursor).epochs == []
    # It is done, and nothing can be done about it any more.
    for command in ("pause", "cancel", "resume"):
        assert refusal(command, job).startswith(f"job {job} is completed")


def test_failed_run(webserver: Webserver) -> None:
    """Its sentence is shown, and a job of it is resumed from the step that failed."""
    run = webserver.launch({"ops": {"trained_model": {"config": {"epochs": 0}}}}, {"asked": "for trouble"})
    sentence = refusal("watch", run.run_id)
    assert sentence.startswith("receiver_network: trained_model: epochs: Input should be greater than or equal")

    engine = open_database(read_settings().database_url)
    job = announce_job(engine, job_id=run.run_id, status=JobStatus.queued, config=TrainingConfig(job_name="trouble"))
    fail_job(engine, job, "trouble")
    again = resumed(run.run_id[:8])
    assert webserver.run(again).parent_run_id == run.run_id
    # The run ended before it came to the job; who reconciles them says so.
    until(lambda: standing(run.run_id) == ("failed", "FAILURE"))
    assert webserver.run(again).is_finished
    assert refusal("watch", run.run_id) == sentence
    # As if `triangulation run` had made it, in a process that the webserver does not know.
    (earlier,) = webserver.reexecutions(run.run_id)
    relaunched = webserver.reexecute(replace(webserver.run(run.run_id), is_launched=False))
    assert (relaunched.parent_run_id, relaunched.root_run_id) == (run.run_id, run.run_id)
    assert webserver.reexecutions(run.run_id) == [webserver.run(relaunched.run_id), earlier]
    assert webserver.runs_named(run.run_id[:8]) == [webserver.run(run.run_id)]
    assert json.loads(said("status", relaunched.run_id[:8], "--json"))["job_id"] == run.run_id
    engine.dispose()


def test_cancelled_before_it_trains(webserver: Webserver, run_file: Callable[..., str]) -> None:
    """The run is stopped too, be it the job's first or one that resumes it; watching it leaves it alone."""
    job = said("launch", "--config", run_file(num_samples=500_000))
    watching = subprocess.Popen([*COMMAND, "watch", job], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    assert watching.stdout.readline() == f"run {job}\n"
    until(lambda: webserver.run(job).status == "STARTED")
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (130, f"run {job} continues; `triangulation watch {job}` shows it again\n")
    assert standing(job) == ("queued", "STARTED")
    assert refusal("pause", job) == f"job {job} is queued and cannot become paused"
    said("cancel", "--wait", job[:8])
    assert standing(job) == ("cancelled", "CANCELED")

    again = resumed(job)
    assert refusal("resume", job).startswith(f"job {job} is queued; ")
    (row,) = (row for row in json.loads(said("status", "--json")) if row["job_id"] == job)
    assert (row["run_id"], row["status"]) == (again, "queued")
    said("cancel", "--wait", job)
    assert webserver.run(again).status == "CANCELED"


def worker_of(run_id: str) -> int:
    """The process that a run is in, as its log tells."""
    with dg.DagsterInstance.get() as instance:
        told = [entry.message for entry in instance.all_logs(run_id)]
    return int(next(found[1] for line in told if (found := re.search(r"Started process for run \(pid: (\d+)\)", line))))


def test_training_is_resumed_where_it_was(webserver: Webserver, run_file: Callable[..., str]) -> None:
    """After its worker was killed, by itself; after it was paused and terminated, when asked to."""

    def row() -> dict[str, Any]:
        return json.loads(said("status", job, "--json"))

    def goes_on_in(run_id: str, after: int) -> None:
        until(lambda: row()["current_epoch"] > after)
        assert (row()["status"], row()["run_id"], row()["run_status"]) == ("running", run_id, "STARTED")

    job = said("launch", "--config", run_file(epochs=3000, early_stop_patience=0))
    until(lambda: len(webserver.events(job).epochs) > 1)
    os.kill(worker_of(job), signal.SIGKILL)
    until(lambda: row()["run_id"] != job)
    second = row()
    assert webserver.run(job).status == "FAILURE"
    assert webserver.run(second["run_id"]).parent_run_id == job
    goes_on_in(second["run_id"], second["current_epoch"])

    said("pause", "--wait", job)
    paused = row()
    assert (paused["status"], paused["run_status"], paused["stop_requested"]) == ("paused", "FAILURE", None)
    assert f"paused at epoch {paused['current_epoch']} of 3000" in refusal("watch", job)
    third = resumed(job)
    goes_on_in(third, paused["current_epoch"])

    webserver.terminate(third)
    until(lambda: webserver.run(third).is_finished)
    assert refusal("watch", job) == f"run {third} was cancelled"
    assert row()["status"] == "cancelled"
    epochs = [epoch["epoch"] for epoch in json.loads(said("metrics", job, "--json"))]
    assert epochs == list(range(1, row()["current_epoch"] + 1))


def test_the_launchpad_begins_with_the_settings_a_newcomer_needs(webserver: Webserver) -> None:
    """What it shows before anybody has typed."""
    query = """query {
      runConfigSchemaOrError(mode: "default", selector: {
        pipelineName: "train_locator", repositoryName: "__repository__",
        repositoryLocationName: "triangulation_pipeline"
      }) { ... on RunConfigSchema { rootDefaultYaml } }
    }"""
    answer = requests.post(f"{webserver.url}/graphql", json={"query": query}, timeout=60).json()
    shown = yaml.safe_load(answer["data"]["runConfigSchemaOrError"]["rootDefaultYaml"])["ops"]
    assert shown["receiver_network"]["config"] == {"network_file": ""}
    assert list(shown)[:2] == ["model_evaluation", "receiver_network"]
    assert shown["synthetic_dataset"]["config"].keys() >= {"preset", "num_samples", "seed", "dataset_id"}


def test_the_launchpad_reads_what_a_file_of_the_command_line_says(webserver: Webserver) -> None:
    """The launchpad sends its text as it stands."""
    text = """
    ops:
      synthetic_dataset: {config: {num_samples: 1e3, seed: 0250}}
      trained_model: {config: {epochs: 0012, learning_rate: 1e-3, job_name: no}}
    """
    as_typed: Any = text
    run = webserver.launch(as_typed)
    assert run.run_config["ops"] == parse_yaml(text)["ops"]
    assert run.run_config["ops"]["trained_model"]["config"] == {
        "epochs": 12,
        "learning_rate": 0.001,
        "job_name": "no",
    }
    assert run.run_config["ops"]["synthetic_dataset"]["config"] == {"num_samples": 1000, "seed": 250}
    webserver.terminate(run.run_id)
    twice: Any = "ops: {trained_model: {config: {epochs: 3, epochs: 4}}}"
    with pytest.raises(WebserverError, match="'epochs' is written twice, lines 1 and 1"):
        webserver.launch(twice)


@given(
    wrong=st.dictionaries(
        st.text(max_size=8), st.none() | st.integers(-(2**31), 2**31) | st.text(max_size=8), min_size=1
    ),
    name=st.text(max_size=40),
)
@given_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bad_variables_are_refused_in_one_sentence(webserver: Webserver, wrong: dict[str, Any], name: str) -> None:
    """Run config with fields that are none, and ids that are none."""
    fields = {f"no {field}": value for field, value in wrong.items()}
    for ask in (
        lambda: webserver.launch({"ops": {"trained_model": {"config": fields}}}),
        lambda: webserver.run(name),
        lambda: webserver.events(name),
        lambda: webserver.terminate(name),
    ):
        with pytest.raises(WebserverError) as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)


def test_the_documented_requests(webserver: Webserver) -> None:
    """The page's blocks, run as they stand."""
    if shutil.which("curl") is None or shutil.which("jq") is None:
        cannot_run("curl or jq is not installed")
    folder = ROOT / "docs" / "graphql"
    page = (folder / "README.md").read_text()
    used = set(re.findall(r"ask (\w+)", page))
    assert used == {path.stem for path in folder.glob("*.graphql")}
    script = "\n".join(["set -eu", *re.findall(r"```bash\n(.*?)```", page, re.DOTALL), "echo $RUN >&2"])
    script = script.replace("http://localhost:3000", webserver.url)
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    answers = [next(iter(json.loads(line)["data"].values())) for line in re.split(r"(?<=\})(?=\{\"data)", done.stdout)]
    assert [answer["__typename"] for answer in answers] == [
        "RepositoryConnection",
        "Run",
        "EventConnection",
        "TerminateRunSuccess",
        "LaunchRunSuccess",
        "Runs",
        "Runs",
        "Runs",
        "RunIds",
        "Asset",
        "Asset",
        "Asset",
    ]
    again = answers[4]["run"]["runId"]
    said("cancel", "--wait", again)
    # On a slow machine it may train already; a job that is stopped while it trains ends its run as a failure.
    assert webserver.run(again).status in {"CANCELED", "FAILURE"}
