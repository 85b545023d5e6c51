"""Who is let in to the webserver, and who is kept out (``ui/test_foreign_pages.py`` asks with a real browser)."""

import asyncio
import re
import string
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from triangulation_pipeline.cli import main
from triangulation_pipeline.gate import HOSTS_VARIABLE, THIS_MACHINE, gated, read_hosts
from triangulation_pipeline_tests.conftest import ROOT

HOSTS = THIS_MACHINE | {"triangulation.example.org"}
OWN = ("host", "localhost:3000")
# What a browser says of its page's request.
FROM_THE_PAGE = [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")]
A_LINK = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]
A_PICTURE = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")]

Header = tuple[str, str]


class Inside:
    """An application that answers 200, opens every WebSocket, and counts what reached it."""

    def __init__(self) -> None:
        self.reached = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"secret"})


def scope_of(*headers: Header, method: str = "GET", target: str = "/", kind: str = "http") -> dict[str, Any]:
    """A request or WebSocket as the server hands it to an application."""
    url = urlsplit(target)
    scope: dict[str, Any] = {
        "type": kind,
        "path": url.path,
        "query_string": url.query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    return scope | ({"method": method} if kind == "http" else {})


def answers(scope: dict[str, Any], inside: Any = None) -> list[Any]:
    """What is sent back."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the gate reads no body")

    asyncio.run(gated(inside or Inside(), HOSTS)(scope, receive, send))
    return sent


def ask(*headers: Header, method: str = "GET", target: str = "/", kind: str = "http") -> tuple[int, str, bool]:
    """The status of the answer, its text, and whether the request reached the application."""
    inside = Inside()
    sent = answers(scope_of(*headers, method=method, target=target, kind=kind), inside)
    first = sent[0]
    status = {"websocket.accept": 101, "websocket.close": 403}.get(first["type"]) or first["status"]
    return status, b"".join(message.get("body", b"") for message in sent[1:]).decode(), bool(inside.reached)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:3000", "LocalHost:80", "127.0.0.1:3911", "[::1]:3000", "triangulation.example.org"],
)
def test_programs_come_in_by_every_name_of_the_webserver(host: str) -> None:
    for method, target in (("GET", "/server_info"), ("POST", "/graphql"), ("POST", "/graphql?query={version}")):
        assert ask(("host", host), method=method, target=target) == (200, "secret", True)
    assert ask(("host", host), kind="websocket", target="/graphql")[::2] == (101, True)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:3000", "http://localhost:3000"),
        ("[::1]:3000", "http://[::1]:3000"),
        ("triangulation.example.org", "https://triangulation.example.org"),
        ("triangulation.example.org:443", "https://triangulation.example.org"),
        ("triangulation.example.org:8443", "https://Triangulation.Example.Org:8443"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost", "http://localhost:80"),
        ("localhost:443", "https://localhost"),
    ],
)
def test_the_webservers_own_page_comes_in(host: str, origin: str) -> None:
    headers = [("host", host), ("origin", origin), *FROM_THE_PAGE]
    assert ask(*headers, method="POST", target="/graphql")[::2] == (200, True)
    assert ask(*headers, kind="websocket", target="/graphql")[::2] == (101, True)


@pytest.mark.parametrize(
    "hosts",
    [
        ["evil.example:3000"],  # rebound to this machine
        ["localhost.evil.example"],
        ["evil.example@localhost:3000"],
        ["localhost:3000@evil.example"],
        ["localhost:3000/graphql"],
        ["localhost:"],
        ["localhost."],
        ["127.0.0.1.evil.example"],
        ["127.1"],
        ["::1"],
        ["0.0.0.0:3000"],
        [""],
        [],
        ["localhost:3000", "evil.example"],
        ["localhost:3000", "localhost:3000"],
    ],
)
def test_another_host_is_refused(hosts: list[str]) -> None:
    named = [("host", host) for host in hosts]
    for method, target in (("GET", "/"), ("POST", "/graphql"), ("POST", "/report_asset_materialization/a")):
        status, text, reached = ask(*named, method=method, target=target)
        assert (status, reached) == (403, False)
        assert text.startswith("This webserver does not answer to the host ")
        assert text.isprintable() or text.strip().isprintable()
        assert HOSTS_VARIABLE in text
    assert ask(*named, kind="websocket", target="/graphql")[::2] == (403, False)


@given(host=st.text(st.characters(codec="latin-1"), max_size=40))
def test_no_host_but_the_webservers_own_comes_in(host: str) -> None:
    name, colon, port = host.lower().rpartition(":")
    has_port = colon and 1 <= len(port) <= 5 and set(port) <= set(string.digits)
    status, text, reached = ask(("host", host))
    is_own = host.lower() in HOSTS or (has_port and name in HOSTS)
    assert (status, reached) == ((200, True) if is_own else (403, False))
    assert text.strip().isprintable()


@pytest.mark.parametrize(
    "origins",
    [
        ["http://evil.example"],
        ["http://localhost:3999"],
        ["http://localhost"],
        ["https://localhost"],
        ["http://127.0.0.1:3000"],
        ["null"],
        [""],
        ["http://localhost:3000.evil.example"],
        ["http://localhost:3000/"],
        ["http://evil.example/http://localhost:3000"],
        ["http://evil.example@localhost:3000"],
        ["chrome-extension://localhost:3000"],
        ["http://localhost:3000", "http://evil.example"],
        ["http://localhost:3000, http://evil.example"],
    ],
)
def test_pages_of_another_origin_are_refused(origins: list[str]) -> None:
    headers = [OWN, *(("origin", origin) for origin in origins)]
    for method, target in (("GET", "/"), ("POST", "/graphql"), ("POST", "/report_asset_check/a"), ("GET", "/logs/a")):
        assert ask(*headers, method=method, target=target)[::2] == (403, False)
    assert ask(*headers, kind="websocket", target="/graphql")[::2] == (403, False)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "anything", ""])
def test_what_pages_of_another_site_embed_is_refused(site: str) -> None:
    embedded = [OWN, ("sec-fetch-site", site), *A_PICTURE[1:]]
    framed = [OWN, ("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")]
    for headers in (embedded, framed, [OWN, ("sec-fetch-site", site)]):
        for method, target in (("GET", "/"), ("GET", "/logs/a"), ("POST", "/report_asset_observation/a")):
            assert ask(*headers, method=method, target=target)[::2] == (403, False)
        assert ask(*headers, kind="websocket", target="/graphql")[::2] == (403, False)
    assert ask(OWN, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", site))[::2] == (403, False)


def test_a_link_is_followed_to_a_page_and_does_nothing_else() -> None:
    assert ask(OWN, *A_LINK, target="/runs/1234")[::2] == (200, True)
    assert ask(OWN, *A_LINK, target="/graphql")[::2] == (200, True)  # the page to try queries on
    assert ask(OWN, *A_LINK, method="POST", target="/runs/1234")[::2] == (403, False)
    assert ask(OWN, *A_LINK, target="/graphql?query=mutation{x}")[::2] == (405, False)
    assert ask(OWN, *A_LINK, kind="websocket", target="/graphql")[::2] == (403, False)
    assert ask(OWN, ("origin", "null"), *A_LINK, target="/runs/1234")[::2] == (403, False)


def test_an_address_that_somebody_types_and_the_webservers_own_requests_come_in() -> None:
    typed = [("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]
    for headers in (typed, typed[:1], FROM_THE_PAGE, [("sec-fetch-site", "Same-Origin")]):
        for method, target in (("GET", "/"), ("HEAD", "/runs"), ("POST", "/graphql")):
            assert ask(OWN, *headers, method=method, target=target)[::2] == (200, True)
        assert ask(OWN, *headers, kind="websocket", target="/graphql")[::2] == (101, True)


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
        [("sec-fetch-site", "cross-site"), ("sec-fetch-dest", "document")],
        [*A_LINK, ("sec-fetch-mode", "cors")],
        [*A_LINK, ("sec-fetch-dest", "iframe")],
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "object")],
    ],
)
def test_what_only_looks_like_a_link_is_refused(headers: list[Header]) -> None:
    assert ask(OWN, *headers, target="/runs/1234")[::2] == (403, False)


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "get"])
def test_a_link_is_followed_by_get_alone(method: str) -> None:
    assert ask(OWN, *A_LINK, method=method, target="/runs/1234")[::2] == (403, False)


def test_each_refusal_is_a_sentence_of_its_own_that_no_browser_takes_for_a_page() -> None:
    """Host, origin and site are asked about in this order."""
    strange = [("origin", "http://evil.example"), *A_PICTURE]
    said = []
    for headers in ([("host", "evil.example"), *strange], [OWN, *strange], [OWN, *A_PICTURE], [OWN]):
        sent = answers(scope_of(*headers, target="/graphql?query={version}"))
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        assert found["content-type"].startswith("text/plain")
        assert found["x-content-type-options"] == "nosniff"
        said.append((sent[0]["status"], sent[1]["body"].decode()))
    assert said == [
        (
            403,
            "This webserver does not answer to the host 'evil.example'. If it is the webserver's own, name it in "
            "TRIANGULATION_WEBSERVER_HOSTS, without the port.\n",
        ),
        (403, "This webserver does not answer to pages of another origin.\n"),
        (403, "This webserver does not answer to pages of another site.\n"),
        (405, "GraphQL is asked by POST here.\n"),
    ]
    refused = answers(scope_of(OWN, *A_PICTURE, kind="websocket"))
    assert refused == [{"type": "websocket.close", "code": 1008, "reason": ""}], "it breaks a rule of the webserver's"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "get"])
@pytest.mark.parametrize("path", ["/graphql", "/prefix/graphql"])
@pytest.mark.parametrize("headers", [[], FROM_THE_PAGE, [("accept", "text/html")], [("upgrade", "websocket")]])
def test_graphql_is_asked_by_post_alone(method: str, path: str, headers: list[Header]) -> None:
    assert ask(OWN, *headers, method=method, target=f"{path}?query={{version}}")[::2] == (405, False)


def test_the_start_and_end_of_the_server_pass() -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError("the gate has nothing to say to it")

    inside = Inside()
    asyncio.run(gated(inside, HOSTS)({"type": "lifespan"}, nothing, nothing))
    assert inside.reached == 1


def test_the_hosts_are_this_machines_and_those_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOSTS_VARIABLE, raising=False)
    assert read_hosts() == THIS_MACHINE
    monkeypatch.setenv(HOSTS_VARIABLE, "webserver, Triangulation.Example.Org,,192.0.2.7,[2001:db8::1],")
    added = {"webserver", "triangulation.example.org", "192.0.2.7", "[2001:db8::1]"}
    assert read_hosts() == THIS_MACHINE | added


@pytest.mark.parametrize(
    "wrong", ["https://s3cret", "s3cret:3000", "*", "*.s3cret", "a/s3cret", "a b", "s3cret@a", "é"]
)
def test_a_host_that_is_none_is_refused_at_the_start_and_not_shown(home: Any, monkeypatch: Any, wrong: str) -> None:
    monkeypatch.setenv(HOSTS_VARIABLE, f"localhost,{wrong}")
    for command in ("ui", "webserver"):
        done = CliRunner().invoke(main, [command, "--empty-workspace"])
        assert done.exit_code == 1
        assert done.output.startswith(f"Error: {HOSTS_VARIABLE} must be host names")
        assert done.output.count("\n") == 1
        assert "number 2 of 2" in done.output
        assert wrong not in done.output.replace("triangulation.example.org", "")


def test_the_webserver_that_the_command_starts_is_behind_the_gate(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster_graphql.schema import runs
    from dagster_webserver import cli

    served: list[Any] = []
    # Put back afterwards: the command exchanges them for the rest of the process.
    for place, name in ((cli, "create_app_from_workspace_process_context"), (runs, "load_run_config_yaml")):
        monkeypatch.setattr(place, name, getattr(place, name))
    monkeypatch.setattr(cli.uvicorn, "run", lambda app, **_: served.append(app))
    monkeypatch.delenv(HOSTS_VARIABLE, raising=False)
    done = CliRunner().invoke(main, ["webserver", "--empty-workspace", "--port", "1"])
    assert done.exit_code == 0, done.output
    (app,) = served
    answers = []
    for host in ("localhost", "evil.example"):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/server_info", "query_string": b"", "root_path": ""}
        asyncio.run(app({**scope, "headers": [(b"host", host.encode())]}, receive, send))
        answers.append(sent[0]["status"])
    assert answers == [200, 403]


def test_nothing_that_the_project_starts_is_without_the_gate() -> None:
    """`dagster dev`, `dg dev` and `dagster-webserver` have none; only the charts of others start them."""
    for started in ("Makefile", "docker/compose.yaml", "docker/Dockerfile"):
        text = (ROOT / started).read_text()
        assert not re.findall(r"dagster dev|dg dev|dagster-webserver|dagster_webserver", text), started
    assert "exec $(BIN)/triangulation ui " in (ROOT / "Makefile").read_text()
