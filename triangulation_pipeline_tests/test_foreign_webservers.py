"""Servers that are no Dagster, broken or hostile: each command ends in one short printable sentence, and in time."""

import gzip
import json
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

from triangulation_pipeline import client
from triangulation_pipeline.cli import main
from triangulation_pipeline.client import Webserver, WebserverError
from triangulation_pipeline.jobs.continuation import announce_job
from triangulation_pipeline.jobs.states import fail_job
from triangulation_pipeline.storage.tables import JobStatus
from triangulation_pipeline.training.config import TrainingConfig

# Ours and what the server said, of which there are 300 at most.
LONGEST_SENTENCE = 450
RUN_ID = "11111111-2222-4333-8444-555555555555"
HOSTILE = "\x1b]0;title\x07\x1b[2J\u202ereversed\r\nError: forged [red]" * 30_000

Answer = Callable[[socket.socket], None]


def http(content: bytes, status: str = "200 OK", *headers: str) -> Answer:
    """An answer with this content."""

    def answer(connection: socket.socket) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode() + content)

    return answer


def graphql(**found: Any) -> Answer:
    """An answer in the form of Dagster's."""
    return http(json.dumps({"data": {"it": found}}).encode())


def raw(content: bytes) -> Answer:
    return lambda connection: connection.sendall(content)


def for_ever(start: bytes, piece: bytes, pause_s: float) -> Answer:
    """An answer without an end."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(pause_s)

    return answer


def run(**fields: Any) -> dict[str, Any]:
    """A run that waits, but for some fields."""
    names = ("parentRunId", "rootRunId", "startTime", "endTime")
    usual = {"runId": RUN_ID, "status": "QUEUED", "jobName": "train_locator", "runConfig": {}}
    return usual | dict.fromkeys(names) | {"repositoryOrigin": {"id": "x"}} | fields


BEGUN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

SERVERS: dict[str, Answer] = {
    "says nothing and closes": lambda connection: None,
    "says nothing": lambda connection: time.sleep(5),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n" * 1000),
    "a page": http(b"<html><body>Sign in</body></html>" * 1000),
    "a proxy without a server": http(b"<html>502 Bad Gateway</html>", "502 Bad Gateway"),
    "a password is asked": http(b"", "401 Unauthorized", 'WWW-Authenticate: Basic realm="x"'),
    "a redirect to itself": http(b"", "302 Found", "Location: /graphql"),
    "a redirect elsewhere": http(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:9/graphql"),
    "a redirect to nowhere": http(b"", "302 Found", "Location: http://[s3cret"),
    "nothing in it": http(b""),
    "no UTF-8": http(b"\xff\xfe\xfd"),
    "a list": http(b"[]"),
    "null": http(b"null"),
    "no data": http(b'{"data": null}'),
    "no field": http(b'{"data": {}}'),
    "a null field": http(b'{"data": {"it": null}}'),
    "a number as a type": graphql(__typename=5),
    "errors that are none": http(b'{"errors": [5], "data": null}'),
    "deep": http(b'{"data": ' + b"[" * 100_000),
    "a number of many digits": http(b'{"data": {"it": {"__typename": "Run", "runId": ' + b"9" * 10_000 + b"}}}"),
    "broken off": raw(BEGUN + b"Content-Length: 1000\r\n\r\n{"),
    "no chunks": raw(BEGUN + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n"),
    "no gzip": http(b"{}", "200 OK", "Content-Encoding: gzip"),
    "a bomb": http(gzip.compress(bytes(64 * 2**20)), "200 OK", "Content-Encoding: gzip"),
    "much": for_ever(BEGUN + b"\r\n", b"x" * 2**20, 0),
    "slowly for ever": for_ever(BEGUN + b"\r\n", b" ", 0.1),
    "a header for ever": for_ever(BEGUN + b"X-", b"x", 0.1),
    "a long hostile message": graphql(__typename="PythonError", message=HOSTILE),
    "a long hostile type": graphql(__typename=f"{HOSTILE}Error"),
    "long hostile errors": http(json.dumps({"errors": [{"message": HOSTILE}] * 10}).encode()),
    "long hostile faults": graphql(__typename="RunConfigValidationInvalid", errors=[{"message": HOSTILE}] * 10),
    "another type": graphql(__typename="Robot", runId=RUN_ID),
    "a hostile status": graphql(__typename="Run", **run(status="[/red]\x1b[2J")),
    "a hostile id": graphql(__typename="Run", **run(runId=HOSTILE)),
    "an id that is none": graphql(__typename="Run", **run(runId=["x"])),
    "run config that is none": graphql(__typename="Run", **run(runConfig="x")),
}


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """The address of a server on this machine that answers every request so."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    head += self.request.recv(2**16)
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                missing = length - len(head.split(b"\r\n\r\n", 1)[1])
                while missing > 0:
                    missing -= len(self.request.recv(2**16))
                answer(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 1)
    monkeypatch.setattr(client, "MOST_ANSWER_BYTES", 8 * 2**20)


def assert_sentence(text: str) -> None:
    assert 0 < len(text) <= LONGEST_SENTENCE
    assert text.isprintable(), text


@pytest.mark.parametrize("answer", SERVERS.values(), ids=SERVERS.keys())
def test_whatever_answers_is_refused_in_a_sentence(answer: Answer) -> None:
    started = time.monotonic()
    with server(answer) as url, pytest.raises(WebserverError) as raised:
        Webserver(url).run(RUN_ID)
    assert_sentence(str(raised.value))
    assert "s3cret" not in str(raised.value)
    assert time.monotonic() - started < 10


def test_a_redirect_is_told_and_not_followed() -> None:
    """Run config is meant for the server that was named."""
    asked: list[socket.socket] = []
    with server(asked.append) as elsewhere:
        moved = http(b"", "308 Permanent Redirect", f"Location: {elsewhere}/graphql")
        with server(moved) as url, pytest.raises(WebserverError, match=r"another address \(HTTP 308\); name that one"):
            Webserver(url).launch({"ops": {}})
    assert asked == []


@pytest.mark.parametrize("name", ["says nothing", "slowly for ever", "a header for ever"])
def test_what_never_ends_is_told_in_time(name: str) -> None:
    with server(SERVERS[name]) as url, pytest.raises(WebserverError, match="did not answer within 1 s"):
        Webserver(url).run(RUN_ID)


@pytest.mark.parametrize("name", ["a bomb", "much"])
def test_what_is_too_long_is_not_read_to_its_end(name: str) -> None:
    with server(SERVERS[name]) as url, pytest.raises(WebserverError, match="answered more than 8,388,608 bytes"):
        Webserver(url).run(RUN_ID)


def entries(**values: Any) -> list[dict[str, Any]]:
    return [{"label": label} | value for label, value in values.items()]


def observed(epoch: str = "1", val_rmse_m: Any = 9.0, val_loss: Any = 1.0) -> dict[str, Any]:
    found = entries(epoch={"intRepr": epoch}, val_rmse_m={"floatValue": val_rmse_m}, val_loss={"floatValue": val_loss})
    return {"__typename": "ObservationEvent", "metadataEntries": found}


def told_in_json(text: str) -> dict[str, Any]:
    return {"__typename": "ObservationEvent", "metadataEntries": entries(metrics={"jsonString": text})}


def page(*events: Any, more: bool = False) -> Answer:
    return graphql(__typename="EventConnection", cursor="1", hasMore=more, events=list(events))


PAGES: dict[str, Answer] = {
    "no events": graphql(__typename="EventConnection", cursor="1", hasMore=False),
    "events that are none": page(5),
    "epoch 0": page(observed("0")),
    "an epoch that is none": page(observed("x")),
    "an epoch of many digits": page(observed("9" * 10_000)),
    "an error of zero": page(observed(val_rmse_m=0)),
    "an infinite error": page(observed(val_rmse_m=float("inf"))),
    "no number": page(observed(val_loss=float("nan"))),
    "a very large number": page(observed(val_loss=1e300)),
    "no end of pages": page(more=True),
    "metrics that are none": page(told_in_json("[1, 2]")),
    "metrics that are no JSON": page(told_in_json("{")),
    "metrics of an infinite error": page(told_in_json('{"epoch": 1, "val_rmse_m": Infinity, "val_loss": 1}')),
    "metrics of many digits": page(told_in_json('{"epoch": %s, "val_rmse_m": 1, "val_loss": 1}' % ("9" * 9999))),
}


@pytest.mark.parametrize("answer", PAGES.values(), ids=PAGES.keys())
def test_events_that_are_none_are_refused_in_a_sentence(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_PAGES", 20)
    with server(answer) as url, pytest.raises(WebserverError) as raised:
        Webserver(url).events(RUN_ID)
    assert_sentence(str(raised.value))


def test_the_sentence_of_a_failure_is_cut_and_printable() -> None:
    failure = {"__typename": "RunFailureEvent", "message": HOSTILE, "error": None}
    with server(page(failure)) as url:
        told = Webserver(url).events(RUN_ID).failure
    assert told is not None
    assert_sentence(told)
    assert told.startswith(r"\x1b]0;title\x07")


COMMANDS = {
    "launch": ["launch"],
    "launch and watch": ["launch", "--watch", "--json"],
    "status": ["status"],
    "status of a job": ["status", "QUEUED"],
    "watch": ["watch", "QUEUED"],
    "watch a run": ["watch", RUN_ID],
    "cancel": ["cancel", "QUEUED"],
    "cancel a run": ["cancel", RUN_ID],
    "resume": ["resume", "FAILED"],
}


def test_every_command_ends_in_the_sentence(engine: Engine) -> None:
    def job(status: JobStatus) -> str:
        config = TrainingConfig(job_name="night")
        announced = announce_job(engine, job_id=str(uuid.uuid4()), status=JobStatus.queued, config=config)
        return (fail_job(engine, announced, "it broke") if status is JobStatus.failed else announced).id

    for name in ("a page", "a long hostile message", "a hostile status", "a redirect to itself", "no HTTP", "much"):
        jobs = {"QUEUED": job(JobStatus.queued), "FAILED": job(JobStatus.failed)}
        with server(SERVERS[name]) as url:
            for told, command in COMMANDS.items():
                words = [jobs.get(word, word) for word in command]
                done = CliRunner().invoke(main, [*words, "--url", url])
                assert (done.exit_code, done.stdout) == (1, ""), (name, told, done.output)
                assert isinstance(done.exception, SystemExit), (name, told, done.exception)
                assert done.stderr.startswith("Error: "), (name, told)
                assert_sentence(done.stderr.removesuffix("\n"))
