"""What the client makes of the webserver's answers, and that its requests fit the Dagster that is installed."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from graphql import build_schema, parse, validate

from triangulation_pipeline.client import RunNotFound, Webserver, WebserverError, query
from triangulation_pipeline_tests.conftest import ROOT

REQUESTS = {path.stem for path in (ROOT / "triangulation_pipeline" / "graphql").iterdir()}

RUN_ID = "11111111-2222-4333-8444-555555555555"

Answer = Callable[..., list[Any]]


@pytest.fixture
def answer() -> Iterator[Answer]:
    """A server that answers each request with what it is given; the address, then what it was asked."""
    answers: list[tuple[int, str]] = []
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def give(*bodies: Any, status: int = 200) -> list[Any]:
        answers.extend((status, body if isinstance(body, str) else json.dumps(body)) for body in bodies)
        return [Webserver(f"http://127.0.0.1:{server.server_port}"), asked]

    yield give
    server.shutdown()
    server.server_close()


def data(**found: Any) -> dict[str, Any]:
    return {"data": {"it": found}}


def test_requests_fit_the_installed_dagster() -> None:
    from dagster_graphql.schema import create_schema

    schema = build_schema(str(create_schema()))
    for name in REQUESTS:
        assert validate(schema, parse(query(name))) == [], name


def test_the_documented_requests_are_those_of_the_client() -> None:
    documented = {path.stem: path.read_text() for path in (ROOT / "docs" / "graphql").glob("*.graphql")}
    assert documented == {name: query(name) for name in REQUESTS}


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (200, data(__typename="RunNotFoundError", message="Run x could not be found."), "Run x could not be found."),
        (500, data(__typename="PythonError", message="ValueError: it\n  broke\n"), "ValueError: it broke"),
        (400, {"errors": [{"message": "Syntax Error"}], "data": None}, "the webserver refused run: Syntax Error"),
        (404, "not here", "answered HTTP 404, and not as Dagster's webserver does"),
        (200, {"something": "else"}, "answered HTTP 200, and not as Dagster's webserver does"),
        (200, [], "answered HTTP 200, and not as Dagster's webserver does"),
        (200, {"data": []}, "answered HTTP 200, and not as Dagster's webserver does"),
        (200, {"data": {"it": None}}, "answered HTTP 200, and not as Dagster's webserver does"),
        (200, {"data": {"it": {"__typename": 1}}}, "answered HTTP 200, and not as Dagster's webserver does"),
        (200, {"errors": "none"}, "answered HTTP 200, and not as Dagster's webserver does"),
        (200, {"errors": [{"message": 1}]}, "answered HTTP 200, and not as Dagster's webserver does"),
        (200, "[" * 100_000, "answered HTTP 200, and not as Dagster's webserver does"),
        (200, data(__typename="PythonError", message="\x1b[2J\u202e" + "long " * 1000), "..."),
        (200, data(__typename="InvalidStepError"), "InvalidStepError"),
        (
            200,
            data(
                __typename="RunConfigValidationInvalid",
                errors=[{"message": 'Unknown "a" at root. Expected: "{ a list }".'}, {"message": "And b"}],
            ),
            'Unknown "a" at root; And b',
        ),
    ],
)
def test_refusals_are_one_sentence(answer: Answer, status: int, body: Any, sentence: str) -> None:
    webserver, _ = answer(body, status=status)
    with pytest.raises(WebserverError) as raised:
        webserver.run("x")
    assert str(raised.value).endswith(sentence)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 450
    assert isinstance(raised.value, RunNotFound) == ("could not be found" in sentence)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://me:secret@there", "the webserver's URL must be as in http://localhost:3000, got 'ftp://there'"),
        ("there:3000", "the webserver's URL must be as in http://localhost:3000"),
        ("http://me:secret@127.0.0.1:9/x", "the webserver at http://127.0.0.1:9/x cannot be reached"),
    ],
)
def test_away_and_no_secret_shown(url: str, sentence: str) -> None:
    with pytest.raises(WebserverError) as raised:
        Webserver(url).run("x")
    assert str(raised.value).startswith(sentence)
    assert "secret" not in str(raised.value)


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIANGULATION_WEBSERVER_URL", raising=False)
    assert Webserver().url == "http://localhost:3000"
    monkeypatch.setenv("TRIANGULATION_WEBSERVER_URL", "https://dagster.example/prefix/")
    assert Webserver().url == "https://dagster.example/prefix"
    assert Webserver("http://other:1").url == "http://other:1"


def test_user_and_password_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def send(self: requests.Session, request: requests.PreparedRequest, **_: Any) -> None:
        sent.append((request.url, request.headers["Authorization"]))
        raise requests.ConnectionError

    monkeypatch.setattr(requests.Session, "send", send)
    with pytest.raises(WebserverError):
        Webserver("http://me:p%40%C3%BC@there:1/x").run("x")
    assert sent == [("http://there:1/x/graphql", "Basic " + base64.b64encode("me:p@ü".encode()).decode())]


def entry(label: str, **value: Any) -> dict[str, Any]:
    return {"label": label, **value}


def test_events_are_read_page_by_page(answer: Answer) -> None:
    epochs = [
        {
            "__typename": "ObservationEvent",
            "metadataEntries": [
                entry("epoch", intRepr=str(n)),
                entry("val_rmse_m", floatValue=10.5 / n),
                entry("val_loss", floatValue=-0.5),
            ],
        }
        for n in (1, 2)
    ]
    # As it is now: one entry of JSON.
    metrics = json.dumps({"epoch": 2, "val_rmse_m": 5.25, "val_loss": -0.5, "val_rmse_good_geom_m": None})
    epochs[1]["metadataEntries"] = [entry("metrics", jsonString=metrics)]
    noise = {"__typename": "LogMessageEvent"}
    webserver, asked = answer(
        data(__typename="EventConnection", cursor="1", hasMore=True, events=[noise, epochs[0]]),
        data(__typename="EventConnection", cursor="2", hasMore=False, events=[epochs[1], noise]),
    )
    events = webserver.events("r", "0")
    assert events.epochs == [
        {"epoch": 1, "val_rmse_m": 10.5, "val_loss": -0.5},
        {"epoch": 2, "val_rmse_m": 5.25, "val_loss": -0.5},
    ]
    assert (events.cursor, events.failure) == ("2", None)
    assert [request["variables"]["after"] for request in asked] == ["0", "1"]


def node(location: str, *jobs: str) -> dict[str, Any]:
    return {"location": {"name": location}, "jobs": [{"name": job} for job in jobs]}


def locations(*nodes: dict[str, Any]) -> dict[str, Any]:
    return data(__typename="RepositoryConnection", nodes=list(nodes))


RUN = {
    "runId": RUN_ID,
    "status": "QUEUED",
    "jobName": "train_locator",
    "parentRunId": None,
    "rootRunId": None,
    "startTime": None,
    "endTime": None,
    "runConfig": {},
    "repositoryOrigin": {"id": "x"},
}
LAUNCHED = data(__typename="LaunchRunSuccess", run=RUN)


def a_run(status: str, **fields: Any) -> dict[str, Any]:
    """The answer to a request for a run."""
    return data(__typename="Run", **RUN | {"status": status} | fields)


def test_what_a_run_is(answer: Answer) -> None:
    other = RUN_ID.replace("5", "6")
    webserver, asked = answer(
        a_run("STARTED", parentRunId=other, rootRunId=other, startTime=1.5, endTime=2.5, runConfig={"ops": {}}),
        a_run("FAILURE", repositoryOrigin=None),
    )
    run = webserver.run(RUN_ID)
    assert (run.run_id, run.status, run.job_name) == (RUN_ID, "STARTED", "train_locator")
    assert (run.parent_run_id, run.root_run_id, run.start_time_s, run.end_time_s) == (other, other, 1.5, 2.5)
    assert (run.run_config, run.is_launched, run.is_finished) == ({"ops": {}}, True, False)
    ended = webserver.run(RUN_ID)
    assert (ended.parent_run_id, ended.is_launched, ended.is_finished) == (None, False, True)
    assert asked[0]["variables"] == {"runId": RUN_ID}


@pytest.mark.parametrize(
    ("status", "is_finished"),
    [
        ("QUEUED", False),
        ("NOT_STARTED", False),
        ("STARTING", False),
        ("STARTED", False),
        ("CANCELING", False),
        ("SUCCESS", True),
        ("FAILURE", True),
        ("CANCELED", True),
    ],
)
def test_a_run_has_ended_or_not(answer: Answer, status: str, is_finished: bool) -> None:
    webserver, _ = answer(a_run(status))
    assert webserver.run(RUN_ID).is_finished is is_finished


@pytest.mark.parametrize(("status", "strategy"), [("FAILURE", "FROM_FAILURE"), ("CANCELED", "ALL_STEPS")])
def test_of_a_failed_run_the_rest_is_run_again_and_of_a_cancelled_one_all(
    answer: Answer, status: str, strategy: str
) -> None:
    webserver, asked = answer(a_run(status), LAUNCHED)
    webserver.reexecute(webserver.run(RUN_ID))
    assert "launchRunReexecution" in asked[1]["query"]
    assert asked[1]["variables"] == {"runId": RUN_ID, "strategy": strategy}


@pytest.mark.parametrize("root", [None, RUN_ID.replace("5", "6")])
def test_a_run_that_the_webserver_did_not_launch_is_launched_anew_as_its_child(
    answer: Answer, root: str | None
) -> None:
    config = {"ops": {"trained_model": {"config": {"epochs": 3}}}}
    webserver, asked = answer(
        a_run("FAILURE", repositoryOrigin=None, rootRunId=root, runConfig=config),
        locations(node("triangulation_pipeline", "train_locator")),
        LAUNCHED,
    )
    webserver.reexecute(webserver.run(RUN_ID))
    root = root or RUN_ID
    assert asked[2]["variables"] == {
        "location": "triangulation_pipeline",
        "runConfig": config,
        "parentRunId": RUN_ID,
        "rootRunId": root,
        "tags": [{"key": "dagster/parent_run_id", "value": RUN_ID}, {"key": "dagster/root_run_id", "value": root}],
    }


def test_a_run_that_is_starting_has_to_start_before_it_is_terminated(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster would call it cancelled, and start it all the same."""
    monkeypatch.setattr("triangulation_pipeline.client.STARTING_POLL_S", 0.01)
    done = data(__typename="TerminateRunSuccess", run={"runId": RUN_ID})
    webserver, asked = answer(a_run("STARTING"), a_run("STARTING"), a_run("STARTED"), done)
    webserver.terminate(RUN_ID)
    assert ["terminateRun" in request["query"] for request in asked] == [False, False, False, True]


def test_a_run_that_cannot_be_terminated_is_told(answer: Answer) -> None:
    webserver, _ = answer(a_run("SUCCESS"), data(__typename="TerminateRunFailure", message="it has ended"))
    with pytest.raises(WebserverError, match="it has ended"):
        webserver.terminate(RUN_ID)


def test_runs_by_their_parent_and_by_the_beginning_of_their_ids(answer: Answer) -> None:
    other = RUN_ID.replace("1", "2")
    webserver, asked = answer(data(__typename="Runs", results=[RUN | {"runId": other, "parentRunId": RUN_ID}]))
    (again,) = webserver.reexecutions(RUN_ID)
    assert (again.run_id, again.parent_run_id) == (other, RUN_ID)
    assert asked[0]["variables"] == {"filter": {"tags": [{"key": "dagster/parent_run_id", "value": RUN_ID}]}}
    answer(data(__typename="RunIds", results=[other, RUN_ID]), a_run("QUEUED"))
    assert [run.run_id for run in webserver.runs_named("1111")] == [RUN_ID]


def test_the_tags_of_a_launch_reach_the_webserver(answer: Answer) -> None:
    webserver, asked = answer(locations(node("triangulation_pipeline", "train_locator")), LAUNCHED)
    webserver.launch({"ops": {}}, {"network": "here"})
    assert asked[1]["variables"] == {
        "location": "triangulation_pipeline",
        "runConfig": {"ops": {}},
        "tags": [{"key": "network", "value": "here"}],
    }


@pytest.mark.parametrize(
    "wrong",
    [{"epoch": 0}, {"val_rmse_m": 0.0}, {"val_rmse_m": -3.0}, {"val_loss": float("nan")}, {"val_loss": 1e31}],
    ids=str,
)
def test_numbers_that_no_training_has_are_refused(answer: Answer, wrong: dict[str, float]) -> None:
    metrics = json.dumps({"epoch": 1, "val_rmse_m": 5.25, "val_loss": -0.5} | wrong)
    event = {"__typename": "ObservationEvent", "metadataEntries": [entry("metrics", jsonString=metrics)]}
    webserver, _ = answer(data(__typename="EventConnection", cursor="1", hasMore=False, events=[event]))
    with pytest.raises(WebserverError, match="not as Dagster's webserver does"):
        webserver.events("r")


def test_the_first_failure_of_a_run_is_its_sentence(answer: Answer) -> None:
    """Also where the pages after it have more."""
    pages = [[step_failure("First.")], [step_failure("Second.")]]
    webserver, _ = answer(
        *(
            data(__typename="EventConnection", cursor="1", hasMore=number == 0, events=events)
            for number, events in enumerate(pages)
        )
    )
    assert webserver.events("r").failure == "trained_model: First."


@pytest.mark.parametrize(
    ("nodes", "location"),
    [
        ([node("triangulation_pipeline", "train_locator")], "triangulation_pipeline"),
        ([node("other", "train"), node("triangulation-pipeline", "train_locator")], "triangulation-pipeline"),
        ([node("a", "train_locator"), node("triangulation_pipeline", "train_locator")], "triangulation_pipeline"),
    ],
)
def test_a_run_is_launched_where_the_job_is(answer: Answer, nodes: list[Any], location: str) -> None:
    webserver, asked = answer(locations(*nodes), LAUNCHED, locations(*nodes), LAUNCHED)
    run = webserver.launch({})
    assert run.run_id == RUN_ID
    webserver.reexecute(replace(run, is_launched=False))
    launches = [request["variables"] for request in asked if "launchRun" in request["query"]]
    assert [launch["location"] for launch in launches] == [location, location]


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ([], "no code location of the webserver at http://"),
        ([node("triangulation_pipeline", "train")], "no code location of the webserver at http://"),
        ([node("a", "train_locator"), node("b", "train_locator")], "2 code locations of the webserver at http://"),
    ],
)
def test_where_the_job_is_not_nothing_is_launched(answer: Answer, nodes: list[Any], sentence: str) -> None:
    webserver, asked = answer(locations(*nodes))
    with pytest.raises(WebserverError) as raised:
        webserver.launch({})
    assert str(raised.value).startswith(sentence)
    assert len(asked) == 1


def check(severity: str, success: bool) -> dict[str, Any]:
    evaluation = {"checkName": "sound", "severity": severity, "success": success, "description": "it is not"}
    return {"__typename": "AssetCheckEvaluationEvent", "evaluation": evaluation}


def step_failure(description: str | None, *causes: str) -> dict[str, Any]:
    return {
        "__typename": "ExecutionStepFailureEvent",
        "stepKey": "trained_model",
        "error": {"message": "outer\n", "errorChain": [{"error": {"message": cause}} for cause in causes]},
        "failureMetadata": None if description is None else {"description": description},
    }


RUN_FAILURE = {"__typename": "RunFailureEvent", "message": "Execution failed", "error": None}
# What Dagster makes of a refusal before the first step.
REFUSED_RUN = RUN_FAILURE | {
    "error": {
        "message": "Error executing resource_fn on ResourceDefinition checkpoints\n",
        "errorChain": [{"error": {"message": f"{name}: it is not taken\n"}} for name in ("Failure", "ValueError")],
    }
}


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([step_failure("It diverged\nat epoch 7."), RUN_FAILURE], "trained_model: It diverged at epoch 7."),
        ([step_failure(None, "middle", "ValueError: inner"), RUN_FAILURE], "trained_model: ValueError: inner"),
        ([step_failure(None), RUN_FAILURE], "trained_model: outer"),
        ([check("WARN", False), check("ERROR", True), check("ERROR", False), step_failure("x")], "sound: it is not"),
        ([RUN_FAILURE], "Execution failed"),
        ([REFUSED_RUN], "it is not taken"),
        ([check("WARN", False)], None),
    ],
)
def test_the_sentence_of_a_failure(answer: Answer, events: list[Any], sentence: str | None) -> None:
    webserver, _ = answer(data(__typename="EventConnection", cursor="1", hasMore=False, events=events))
    assert webserver.events("r").failure == sentence


def test_metadata_of_all_kinds(answer: Answer) -> None:
    entries = [
        entry("version", intRepr="3"),
        entry("rmse_m", floatValue=1.5),
        entry("promoted", boolValue=False),
        entry("reason", text="why"),
        entry("checkpoint", path="s3://b/best_model.pth"),
        entry("best", jsonString='{"epoch": 2}'),
        entry("curves"),
    ]
    event = {"runId": "r", "timestamp": "1500", "metadataEntries": entries}
    webserver, asked = answer(data(__typename="Asset", assetMaterializations=[event]))
    (found,) = webserver.materializations("registered_model", limit=1)
    assert (found.run_id, found.timestamp_s) == ("r", 1.5)
    assert found.metadata == {
        "version": 3,
        "rmse_m": 1.5,
        "promoted": False,
        "reason": "why",
        "checkpoint": "s3://b/best_model.pth",
        "best": {"epoch": 2},
    }
    assert asked[0]["variables"] == {"asset": ["registered_model"], "limit": 1}
