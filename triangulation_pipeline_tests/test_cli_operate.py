"""Operating jobs from the command line, with a stand-in for the webserver (the real one is in ``test_stack.py``)."""

import hashlib
import json
import re
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import torch
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from triangulation_pipeline.cli import main
from triangulation_pipeline.client import Events, Run, RunNotFound, WebserverError
from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.jobs.continuation import announce_job
from triangulation_pipeline.jobs.liveness import send_heartbeat
from triangulation_pipeline.jobs.states import JobRecord, complete_job, fail_job, get_job, pause_job
from triangulation_pipeline.storage.registry import NewModel, find_production_model, register_model
from triangulation_pipeline.storage.tables import JobStatus, Stop
from triangulation_pipeline.storage.views import (
    dataset_overview,
    epoch_overview,
    job_overview,
    model_overview,
)
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.jobs.helpers import record
from triangulation_pipeline_tests.storage.conftest import running_job


def make_run(run_id: str, status: str, parent_run_id: str | None = None, root_run_id: str | None = None) -> Run:
    return Run(run_id, status, "train_locator", parent_run_id, root_run_id, None, None, {}, True)


class StandIn:
    """Answers as the webserver does, and remembers what it was asked to do."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.launched: list[Any] = []
        self.tags: Any = None
        self.terminated: list[str] = []
        self.refusal: str | None = None
        self.is_away = False
        self.story: list[Events] = []

    def __call__(self, url: str | None) -> "StandIn":
        return self

    def run(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise RunNotFound(f"Run {run_id} could not be found.")
        return self.runs[run_id]

    def runs_named(self, beginning: str) -> list[Run]:
        self.check()
        return [run for run_id, run in self.runs.items() if run_id.startswith(beginning)]

    def check(self) -> None:
        if self.is_away:
            raise WebserverError("the webserver is away")

    def reexecutions(self, run_id: str) -> list[Run]:
        return [run for run in reversed(self.runs.values()) if run.parent_run_id == run_id]

    def launch(self, run_config: Any, tags: Any) -> Run:
        self.launched.append(run_config)
        self.tags = tags
        return self._new(None)

    def reexecute(self, run: Run) -> Run:
        return self._new(run)

    def terminate(self, run_id: str) -> None:
        self.terminated.append(run_id)
        self.runs[run_id] = replace(self.run(run_id), status="CANCELED")

    def events(self, run_id: str, after: str | None) -> Events:
        return self.story.pop(0) if self.story else Events([], None, "0")

    def _new(self, parent: Run | None) -> Run:
        if self.refusal is not None:
            raise WebserverError(self.refusal)
        ids = (None, None) if parent is None else (parent.run_id, parent.root_run_id or parent.run_id)
        run = make_run(str(uuid.uuid4()), "QUEUED", *ids)
        self.runs[run.run_id] = run
        return run


@pytest.fixture
def webserver(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr("triangulation_pipeline.client.Webserver", stand_in)
    monkeypatch.setattr("triangulation_pipeline.cli.operate.WAIT_POLL_S", 0.02)
    monkeypatch.setattr("triangulation_pipeline.cli.watch.POLL_S", 0.02)
    return stand_in


def triangulation(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def said(*arguments: str) -> str:
    done = triangulation(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def refusal(*arguments: str) -> str:
    """The one sentence of a command that is refused."""
    done = triangulation(*arguments)
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("Error: ")
    (line,) = done.stderr.strip().splitlines()
    return line.removeprefix("Error: ")


def resumed(job: str) -> str:
    """The id of the run in which a job goes on."""
    return str(json.loads(said("resume", job, "--json"))["run_id"])


def announced(engine: Engine, webserver: StandIn, job_id: str | None = None) -> JobRecord:
    job_id = job_id or str(uuid.uuid4())
    webserver.runs[job_id] = make_run(job_id, "QUEUED")
    config = TrainingConfig(job_name="night", epochs=4)
    return announce_job(engine, job_id=job_id, status=JobStatus.queued, config=config)


def running(engine: Engine, webserver: StandIn) -> JobRecord:
    job = announced(engine, webserver)
    webserver.runs[job.id] = make_run(job.id, "STARTED")
    return running_job(engine, job.id)


@pytest.fixture
def paused(engine: Engine, webserver: StandIn) -> JobRecord:
    job = pause_job(engine, running(engine, webserver))
    webserver.runs[job.id] = make_run(job.id, "FAILURE")
    return job


NAMING = (["watch"], ["pause"], ["cancel"], ["resume"], ["metrics"], ["status"], ["run", "--resume"])


def test_a_job_is_named_by_the_beginning_of_its_id(engine: Engine, webserver: StandIn) -> None:
    ids = [f"{start}-0000-4000-8000-000000000000" for start in ("abcd0000", "abcd1111", "ffff0000")]
    for job_id in ids:
        announced(engine, webserver, job_id)
    assert json.loads(said("status", "ffff", "--json"))["job_id"] == ids[2]
    assert json.loads(said("status", ids[0].upper(), "--json"))["job_id"] == ids[0]
    ambiguous = refusal("status", "abcd")
    assert ambiguous.startswith("abcd is the beginning of 2 ids (abcd")
    assert ambiguous.endswith("); give more characters")
    for command in NAMING:
        told = refusal(*command, "fff")
        assert told == "JOB must be the id of a job or run, or the first 4 or more characters of it, got 'fff'"
        assert refusal(*command, "dddd") == "there is no training job and no run 'dddd'"


def test_any_run_of_a_job_names_it(engine: Engine, webserver: StandIn, paused: JobRecord) -> None:
    """The first run, whose id is the job's, the latest, and one between."""
    second = resumed(paused.id)
    webserver.runs[second] = replace(webserver.runs[second], status="FAILURE")
    fail_job(engine, get_job(engine, paused.id), "once more")
    third = resumed(second[:8])
    assert (webserver.run(third).parent_run_id, webserver.run(third).root_run_id) == (second, paused.id)
    for name in (paused.id, second, third, second[:6].upper()):
        assert json.loads(said("status", name, "--json"))["job_id"] == paused.id
    assert refusal("pause", second[:8]).startswith(f"job {paused.id} is queued")
    assert said("cancel", second[:8]) == f"job {paused.id} is cancelled"
    assert webserver.terminated == [third]
    assert refusal("watch", second[:8]) == f"run {third} was cancelled"

    webserver.is_away = True
    # The database knows the latest itself.
    assert refusal("pause", third[:8]) == f"job {paused.id} is cancelled and cannot become paused"
    told = refusal("pause", second)
    assert told == f"there is no training job '{second}', and runs cannot be looked up: the webserver is away"


def test_a_run_that_was_launched_elsewhere_to_go_on_with_a_job(
    engine: Engine, webserver: StandIn, paused: JobRecord
) -> None:
    """It waits, and nobody has told the job: it can be watched and cancelled, by its id and by the job's."""
    for name in ("its own", paused.id):
        run = webserver.reexecute(webserver.run(paused.id))
        told = said("cancel", "--wait", run.run_id[:8] if name == "its own" else name)
        assert told == f"run {run.run_id} is cancelled"
        assert webserver.run(run.run_id).status == "CANCELED"
    assert get_job(engine, paused.id).status is JobStatus.paused
    assert refusal("cancel", paused.id) == f"job {paused.id} is paused and cannot become cancelled"
    run = webserver.reexecute(webserver.run(paused.id))
    statuses = iter(["QUEUED", "QUEUED", "STARTED", "SUCCESS"])
    webserver.run = lambda run_id: make_run(run_id, next(statuses))  # type: ignore[method-assign]
    assert said("watch", run.run_id[:8]).endswith(f"run {run.run_id} succeeded")


def test_a_run_of_this_home_names_its_job_without_a_webserver(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)
    with dg.DagsterInstance.get() as instance:
        runs = [
            instance.create_run_for_job(train_locator_job(), parent_run_id=parent, root_run_id=parent)
            for parent in (job.id, None)
        ]
    assert said("metrics", runs[0].run_id[:8]) == "none"
    told = refusal("metrics", runs[1].run_id[:8])
    assert told == f"run {runs[1].run_id} has no training job: it has not reached its training"


def test_a_run_without_a_job_is_named_by_the_beginning_of_its_id(engine: Engine, webserver: StandIn) -> None:
    run_ids = [f"{start}-0000-4000-8000-000000000000" for start in ("abcd0000", "abcd1111")]
    webserver.runs = {run_id: make_run(run_id, "STARTED") for run_id in run_ids}
    assert refusal("cancel", "abcd").startswith("abcd is the beginning of 2 ids (abcd")
    assert refusal("pause", "abcd0").startswith(f"run {run_ids[0]} has no training job: ")
    assert said("cancel", "abcd0") == f"run {run_ids[0]} is cancelled"
    assert refusal("watch", "abcd0") == f"run {run_ids[0]} was cancelled"


def test_launch_checks_submits_and_announces(engine: Engine, webserver: StandIn, home: Path) -> None:
    config = {"ops": {"trained_model": {"config": {"epochs": 7, "job_name": "mine", "lr_scheduler": "one_cycle"}}}}
    (home / "run.yaml").write_text(json.dumps(config))
    printed = json.loads(said("launch", "--config", "run.yaml", "--json"))
    assert webserver.launched == [config]
    assert webserver.tags == {
        "triangulation/network": "north-west-italy (491d2d57)",
        "triangulation/model_name": "rf-triangulation",
        "triangulation/job_name": "mine",
    }
    job = get_job(engine, printed["job_id"])
    assert printed["run_id"] == job.id
    assert (job.status, job.job_name, job.total_epochs) == (JobStatus.queued, "mine", 7)
    assert (job.config["lr_scheduler"], job.config["batch_size"]) == ("one_cycle", 1024)
    assert said("launch") in webserver.runs

    (home / "run.yaml").write_text(json.dumps({"ops": {"trained_model": {"config": {"epochs": 0}}}}))
    assert refusal("launch", "--config", "run.yaml").startswith("trained_model: epochs: Input should be greater")
    webserver.refusal = "no code location"
    assert refusal("launch") == "no code location"
    assert len(json.loads(said("jobs", "--json"))) == 2


def with_config(home: Path, step: str, **config: Any) -> str:
    """A run config file that sets something of one step."""
    (home / "run.yaml").write_text(json.dumps({"ops": {step: {"config": config}}}))
    return str(home / "run.yaml")


def test_settings_that_contradict_the_network_are_refused_before_anything_is_launched(
    engine: Engine, webserver: StandIn, home: Path
) -> None:
    told = refusal("launch", "--config", with_config(home, "synthetic_dataset", scenario={"path_loss": "hata"}))
    assert told == "synthetic_dataset: path_loss hata holds for frequency_mhz from 150 to 1500, got 145"
    told = refusal("launch", "--config", with_config(home, "receiver_network", network_file="nowhere.yaml"))
    assert told == f"receiver_network: network file {home}/nowhere.yaml does not exist"
    assert webserver.launched == []
    assert said("jobs") == "none"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_run_that_is_launched_may_use_what_this_machine_lacks(engine: Engine, webserver: StandIn, home: Path) -> None:
    """It is the code server's machine that needs the GPU."""
    config = with_config(home, "trained_model", accelerator="gpu")
    assert said("launch", "--config", config) in webserver.runs
    told = refusal("run", "--config", config)
    assert told.startswith("trained_model: accelerator: gpu was asked for, but PyTorch finds no CUDA device")


def test_a_launch_can_be_watched_to_its_end(engine: Engine, webserver: StandIn) -> None:
    webserver.story = [Events([epoch(1, 90.0)], None, "1")]
    statuses = iter(["STARTED", "SUCCESS"])
    webserver.run = lambda run_id: make_run(run_id, next(statuses))  # type: ignore[method-assign]
    shown = said("launch", "--watch").splitlines()
    (run_id,) = (run.run_id for run in webserver.runs.values())
    assert shown[0] == f"run {run_id}"
    assert "epoch 1/3: val RMSE 90.0 m, val loss 1.0000" in shown
    assert shown[-1] == f"run {run_id} succeeded"

    webserver.story = [Events([epoch(1, 90.0)], None, "1")]
    statuses = iter(["STARTED", "SUCCESS"])
    done = triangulation("launch", "--watch", "--json")
    assert json.loads(done.stdout).keys() == {"run_id", "job_id"}
    assert "epoch 1/3: val RMSE 90.0 m" in done.stderr


def test_status_stands_beside_the_run(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)
    shown = json.loads(said("status", job.id, "--json"))
    assert list(shown) == [*(column.name for column in job_overview.columns), "run_status"]
    assert (shown["status"], shown["run_status"]) == ("running", "STARTED")
    del webserver.runs[job.id]
    (row,) = json.loads(said("status", "--json"))
    assert row["run_status"] is None
    assert job.id[:8] in said("status")
    complete_job(engine, job)
    assert said("status") == "none"
    webserver.is_away = True
    assert refusal("status") == refusal("status", job.id) == "the webserver is away"


def test_brackets_in_a_cell_are_text(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)
    fail_job(engine, job, "[red]x[/y] [link=z] :bug:")
    webserver.runs[job.id] = make_run(job.id, "[FAILURE]")
    shown = said("status", job.id)
    assert "[red]x[/y] [link=z] :bug:" in shown
    assert "[FAILURE]" in shown


@pytest.mark.parametrize(("command", "stop"), [("pause", Stop.pause), ("cancel", Stop.cancel)])
def test_a_running_job_is_asked_to_stop(engine: Engine, webserver: StandIn, command: str, stop: Stop) -> None:
    job = running(engine, webserver)
    assert said(command, job.id[:8]).startswith(f"job {job.id} ")
    assert send_heartbeat(engine, job) is stop
    assert webserver.terminated == []


def test_waits_until_job_and_run_have_stopped(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)

    def work() -> None:
        while send_heartbeat(engine, job) is not Stop.pause:
            time.sleep(0.02)
        pause_job(engine, job)
        time.sleep(0.1)
        webserver.runs[job.id] = make_run(job.id, "FAILURE")

    worker = threading.Thread(target=work)
    worker.start()
    assert said("pause", "--wait", job.id).endswith(f"job {job.id} has stopped")
    assert webserver.run(job.id).is_finished
    worker.join()


def test_ctrl_c_while_it_waits(engine: Engine, webserver: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running(engine, webserver)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    # The module's own name, not the clock of the process: servers of other threads sleep too.
    monkeypatch.setattr("triangulation_pipeline.cli.operate.time", SimpleNamespace(sleep=interrupted))
    done = triangulation("pause", "--wait", job.id)
    assert (done.exit_code, done.stderr) == (130, "stopped\n")
    assert send_heartbeat(engine, job) is Stop.pause


def test_waiting_for_a_pause_that_came_too_late(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)

    def work() -> None:
        while send_heartbeat(engine, job) is None:
            time.sleep(0.02)
        complete_job(engine, job)
        webserver.runs[job.id] = make_run(job.id, "SUCCESS")

    worker = threading.Thread(target=work)
    worker.start()
    assert refusal("pause", "--wait", job.id) == f"job {job.id} is completed, and not paused"
    worker.join()


def test_a_job_that_waits_is_cancelled_with_its_run(engine: Engine, webserver: StandIn) -> None:
    job = announced(engine, webserver)
    assert refusal("pause", job.id) == f"job {job.id} is queued and cannot become paused"
    assert said("cancel", job.id) == f"job {job.id} is cancelled"
    assert get_job(engine, job.id).status is JobStatus.cancelled
    assert webserver.terminated == [job.id]


@pytest.mark.parametrize("named", ["the job", "the run"])
def test_a_job_whose_run_was_cancelled_is_cancelled_with_the_run_that_executes_it_again(
    engine: Engine, webserver: StandIn, named: str
) -> None:
    """Nobody has told the job yet that its first run ended."""
    job = announced(engine, webserver)
    webserver.terminate(job.id)
    again = webserver.reexecute(webserver.run(job.id))
    said("cancel", "--wait", job.id if named == "the job" else again.run_id)
    assert webserver.terminated == [job.id, again.run_id]
    assert get_job(engine, job.id).status is JobStatus.cancelled


def test_a_run_that_cannot_be_stopped_is_told(
    engine: Engine, webserver: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = announced(engine, webserver)

    def refuse(run_id: str) -> None:
        raise WebserverError(f"Run {run_id} could not be terminated")

    monkeypatch.setattr(webserver, "terminate", refuse)
    told = f"job {job.id} is cancelled, but its run was not stopped: Run {job.id} could not be terminated"
    assert refusal("cancel", job.id) == told
    assert get_job(engine, job.id).status is JobStatus.cancelled


def test_a_run_without_a_job_is_cancelled(engine: Engine, webserver: StandIn) -> None:
    run_id = str(uuid.uuid4())
    webserver.runs[run_id] = make_run(run_id, "STARTED")
    assert said("cancel", "--wait", run_id) == f"run {run_id} is cancelled"
    assert webserver.terminated == [run_id]


def test_what_is_asked_for_already_is_no_fault(engine: Engine, webserver: StandIn, paused: JobRecord) -> None:
    assert said("pause", paused.id) == f"job {paused.id} is already paused"
    assert said("pause", "--wait", paused.id).splitlines()[-1] == f"job {paused.id} has stopped"
    again = resumed(paused.id)
    said("cancel", again)
    assert said("cancel", again) == f"job {paused.id} is already cancelled"
    assert webserver.terminated == [again]


def test_resume_says_in_which_run(engine: Engine, webserver: StandIn, paused: JobRecord) -> None:
    told = re.fullmatch(r"job (\w{8}) continues in run (\w{8})", said("resume", paused.id))
    assert told is not None
    assert paused.id.startswith(told[1])
    assert json.loads(said("status", told[2], "--json"))["run_id"].startswith(told[2])


def test_resume_and_cancel_again(engine: Engine, webserver: StandIn, paused: JobRecord) -> None:
    again = resumed(paused.id[:6])
    assert webserver.run(again).parent_run_id == paused.run_id
    assert get_job(engine, paused.id).status is JobStatus.queued
    assert refusal("resume", paused.id).startswith(f"job {paused.id} is queued; ")
    assert json.loads(said("status", paused.id, "--json"))["run_id"] == again
    said("cancel", "--wait", paused.id)
    assert webserver.terminated == [again]


def test_of_two_that_resume_one_launches(engine: Engine, webserver: StandIn, paused: JobRecord) -> None:
    """Both see it paused; the second finds it queued when it changes it."""
    before = webserver.run

    def meanwhile(run_id: str) -> Run:
        webserver.run = before  # type: ignore[method-assign]
        said("resume", paused.id)
        return before(run_id)

    webserver.run = meanwhile  # type: ignore[method-assign]
    assert f"job {paused.id} is already resumed by run " in refusal("resume", paused.id)
    assert len(webserver.reexecutions(paused.id)) == 1


def test_a_resume_that_is_refused_leaves_the_job_resumable(
    engine: Engine, webserver: StandIn, paused: JobRecord
) -> None:
    webserver.refusal = "no code location"
    assert refusal("resume", paused.id) == "no code location"
    job = get_job(engine, paused.id)
    assert (job.status, job.error_message) == (JobStatus.failed, "resume failed: no code location")
    webserver.refusal = None
    said("resume", paused.id)


def test_a_job_whose_run_has_not_ended_is_not_resumed(engine: Engine, webserver: StandIn, paused: JobRecord) -> None:
    webserver.runs[paused.id] = make_run(paused.id, "STARTED")
    assert refusal("resume", paused.id) == f"job {paused.id} is paused, but its run is still STARTED; try again"
    assert get_job(engine, paused.id).status is JobStatus.paused


def epoch(number: int, val_rmse_m: float) -> dict[str, float]:
    return {"epoch": number, "val_rmse_m": val_rmse_m, "val_loss": 1.0}


@pytest.mark.parametrize(
    ("end", "failure", "sentence"),
    [
        ("SUCCESS", None, None),
        ("FAILURE", "trained_model: it diverged", "trained_model: it diverged"),
        ("FAILURE", None, "failed"),
        ("CANCELED", None, "was cancelled"),
    ],
)
def test_watch(engine: Engine, webserver: StandIn, end: str, failure: str | None, sentence: str | None) -> None:
    job = running(engine, webserver)
    webserver.story = [Events([], None, "1"), Events([epoch(1, 900.0), epoch(2, 90.0)], failure, "2")]
    statuses = iter(["STARTED", "STARTED", end])
    webserver.run = lambda run_id: make_run(run_id, next(statuses))  # type: ignore[method-assign]
    done = triangulation("watch", job.id[:8])
    assert "epoch 2/4: val RMSE 90.0 m, val loss 1.0000\n" in done.stdout
    assert "900 ┤" in done.stdout
    assert " 90 ┤" in done.stdout
    if sentence is None:
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout.endswith(f"\nrun {job.id} succeeded\n")
    else:
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: ")
        assert done.stderr.endswith(f"{sentence}\n")


def test_a_resumed_run_is_watched_with_the_whole_curve_and_then_the_verdict(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)
    record(engine, job, 1, val_rmse_m=900.0)
    record(engine, job, 2, val_rmse_m=90.0)
    registered(engine, job, "a", True)
    webserver.story = [Events([epoch(3, 20.0)], None, "1")]
    webserver.runs[job.id] = make_run(job.id, "SUCCESS")
    shown = said("watch", job.id)
    assert "900 ┤" in shown
    assert " 20 ┤" in shown
    assert [line for line in shown.splitlines() if "val loss" in line] == [
        "epoch 3/4: val RMSE 20.0 m, val loss 1.0000"
    ]
    assert shown.splitlines()[-3:] == [
        f"run {job.id} succeeded",
        "locator/1: median 21.0 m, RMSE 64.5 m with good geometry",
        "Promoted.",
    ]
    # Executed again with other weights, it has two; the newest is what became of it.
    registered(engine, job, "b", False)
    assert said("watch", job.id).splitlines()[-2:] == [
        "locator/2: median 21.0 m, RMSE 64.5 m with good geometry",
        "It is worse.",
    ]


def test_listings_are_the_views(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)
    record(engine, job, 1)
    for command, view in (
        (["jobs"], job_overview),
        (["metrics", job.id[:8]], epoch_overview),
        (["datasets"], dataset_overview),
    ):
        (row,) = json.loads(said(*command, "--json"))
        assert list(row) == [column.name for column in view.columns]
        assert said(*command)
    for command in ("models", "evaluations", "calibrations"):
        assert said(command, "--json") == "[]"
        assert said(command) == "none"


def registered(engine: Engine, job: JobRecord, digest: str, passed: bool, network_name: str = "n") -> None:
    """A version of the weights of that digest, for a network whose digest its name gives."""
    champion = find_production_model(engine, "locator")
    register_model(
        engine,
        NewModel(
            model_name="locator",
            model_architecture="triangulation",
            pytorch_model_location="/store/best_model.pth",
            sha256=digest * 64,
            weights_digest=digest * 64,
            epoch=1,
            trained_by_job_id=job.id,
            synthetic_dataset_id=str(job.synthetic_dataset_id),
            network_name=network_name,
            network_digest=hashlib.sha256(network_name.encode()).hexdigest(),
            hyperparameters={},
            metrics={"test_rmse_m": 150.5, "test_rmse_good_geom_m": 64.5, "test_p50_good_geom_m": 21.0},
            passed=passed,
            promotion_reason="Promoted." if passed else "It is worse.",
        ),
        champion_id=champion and champion.id,
    )


def test_promote_and_roll_back(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)
    for digest, passed in (("a", True), ("b", True), ("c", False)):
        registered(engine, job, digest, passed)
    assert said("rollback", "locator") == "locator/1 is in production"
    assert said("promote", "locator/2") == "locator/2 is in production"
    assert refusal("promote", "locator", "3") == "locator/3 cannot go into production. It is worse."
    assert refusal("promote", "other", "1").startswith("there is no model 'other/1'")
    rows = json.loads(said("models", "--json"))
    assert [(row["version"], row["is_production"]) for row in rows] == [(3, False), (2, True), (1, False)]
    assert list(rows[0]) == [column.name for column in model_overview.columns]
    assert "locator" in said("models")


def test_over_another_network_only_by_hand_and_both_are_named(engine: Engine, webserver: StandIn) -> None:
    job = running(engine, webserver)
    italy, melbourne = (f"{name} ({hashlib.sha256(name.encode()).hexdigest()[:8]})" for name in ("italy", "melbourne"))
    registered(engine, job, "a", True, "italy")
    registered(engine, job, "b", True, "melbourne")
    second, first = json.loads(said("models", "--json"))
    assert (first["network"], first["is_production"], first["promoted"]) == (italy, True, True)
    assert (second["network"], second["is_production"], second["promoted"]) == (melbourne, False, False)
    assert "`triangulation promote locator/2`" in second["promotion_reason"]
    table = said("models")
    assert italy in table
    assert melbourne in table
    assert said("promote", "locator", "2") == (
        f"locator/2 is in production, for {melbourne}; it replaces locator/1, for {italy}"
    )
    assert said("promote", "locator/2") == "locator/2 is in production"
    assert said("rollback", "locator") == (
        f"locator/1 is in production, for {italy}; it replaces locator/2, for {melbourne}"
    )
