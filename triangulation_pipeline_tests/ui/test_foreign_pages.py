"""What a web page of somebody else can do through a visitor's browser: nothing. Each attack is also made on Dagster's
webserver without the gate, where it succeeds: so the tests know that the browser did send it."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from triangulation_pipeline_tests.ports import free_port
from triangulation_pipeline_tests.ui.conftest import BIN, SECONDS, Stack, end, wait_until_ready

pytestmark = pytest.mark.ui

LAUNCH = "mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename } }"
LAUNCHED = """query($tags: [ExecutionTag!]) {
  runsOrError(filter: {tags: $tags}) { ... on Runs { results { tags { key value } } } } }"""
FORGED = """{ assetOrError(assetKey: {path: ["receiver_network"]}) {
  ... on Asset { assetMaterializations(limit: 50) { description } } } }"""
LOGS = """subscription($run: ID!) { pipelineRunLogs(runId: $run) {
  ... on PipelineRunLogsSubscriptionSuccess { messages { ... on MessageEvent { message } } } } }"""

# Attacks of a page on another origin, which sees no answers. Each ends when the browser says that it is over.
BLIND = """async ({url, launches, forgery}) => {
  const over = (element, add) => new Promise(resolve => {
    element.onload = element.onerror = resolve; add(); setTimeout(resolve, 10000);
  });
  const picture = new Image();
  await over(picture, () => { picture.src = launches.picture; });
  const script = document.createElement('script');
  await over(script, () => { script.src = launches.script; document.body.append(script); });
  const frame = document.createElement('iframe');
  frame.name = 'sink';
  document.body.append(frame);
  const form = document.createElement('form');
  Object.assign(form, {method: 'POST', enctype: 'text/plain', action: launches.form, target: 'sink'});
  document.body.append(form);
  await over(frame, () => form.submit());
  const blind = {method: 'POST', mode: 'no-cors', credentials: 'include'};
  await fetch(launches.fetch, {...blind, body: 'x'}).catch(() => null);
  await fetch(forgery, blind).catch(() => null);
  navigator.sendBeacon(launches.beacon, 'x');
}"""
# What the log of a run says, by a WebSocket; nothing if it is refused.
LISTEN = """({url, query, run}) => new Promise(resolve => {
  const socket = new WebSocket(url.replace('http', 'ws') + '/graphql', 'graphql-ws');
  socket.onerror = socket.onclose = () => resolve('');
  socket.onopen = () => {
    socket.send(JSON.stringify({type: 'connection_init'}));
    socket.send(JSON.stringify({type: 'start', id: '1', payload: {query, variables: {run}}}));
  };
  socket.onmessage = ({data}) => { if (JSON.parse(data).type == 'data') resolve(data); };
})"""
# A page that the browser takes for the webserver's own, by name: it would read the answers.
READ = """async ({launch, query, forgery}) => {
  const read = [];
  const ask = async (...request) => read.push(await fetch(...request).then(answer => answer.text(), () => ''));
  const json = {'Content-Type': 'application/json'};
  await ask('/graphql', {method: 'POST', headers: json, body: launch});
  await ask('/graphql', {method: 'POST', headers: json, body: query});
  await ask('/server_info');
  await ask(forgery, {method: 'POST'});
  return read.join();
}"""


@pytest.fixture(scope="module")
def ungated(stack: Stack) -> Iterator[Stack]:
    """Dagster's own webserver on the same instance."""
    port = free_port()
    log = stack.home / "ungated.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [BIN / "dagster-webserver", "-w", "workspace.yaml", "-p", str(port)],
            cwd=stack.home,
            env=stack.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        ungated = replace(stack, url=f"http://127.0.0.1:{port}")
        wait_until_ready(ungated, process, log)
        yield ungated
    finally:
        end(process)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of another webserver of this machine, that of the attacker's pages."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<body>a page</body>")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture
def foreign(browser: Browser) -> Iterator[Page]:
    """A tab of somebody who visits the attacker's pages."""
    expect.set_options(timeout=SECONDS * 1000)
    with browser.new_context() as context:
        context.set_default_timeout(SECONDS * 1000)
        yield context.new_page()


def params(attack: str, way: str) -> dict[str, Any]:
    """A launch of one small step, which can be told by its tags."""
    selector = {"repositoryLocationName": "triangulation_pipeline", "repositoryName": "__repository__"}
    only = {"pipelineName": "__ASSET_JOB", "assetSelection": [{"path": ["receiver_network"]}]}
    tags = [{"key": "attack", "value": attack}, {"key": "way", "value": way}]
    return {"selector": {**selector, **only}, "executionMetadata": {"tags": tags}}


def launched(stack: Stack, attack: str) -> set[str]:
    """The ways by which runs of this attack were launched."""
    found = stack.query(LAUNCHED, tags=[{"key": "attack", "value": attack}])["runsOrError"]["results"]
    return {tag["value"] for run in found for tag in run["tags"] if tag["key"] == "way"}


def forged(stack: Stack, attack: str) -> bool:
    """Whether a materialisation with this description was made up."""
    listed = stack.query(FORGED)["assetOrError"]["assetMaterializations"]
    return attack in {materialization["description"] for materialization in listed}


def attack_blindly(page: Page, target: str, stack: Stack, attack: str) -> str:
    """All attacks of a page that sees no answers; gives what it heard by WebSocket all the same."""

    def launch(way: str) -> str:
        return (
            f"{target}/graphql?{urlencode({'query': LAUNCH, 'variables': json.dumps({'params': params(attack, way)})})}"
        )

    launches = {way: launch(way) for way in WAYS}
    forgery = f"{target}/report_asset_materialization/receiver_network?description={attack}"
    page.evaluate(BLIND, {"url": target, "launches": launches, "forgery": forgery})
    heard: str = page.evaluate(LISTEN, {"url": target, "query": LOGS, "run": stack.seeded["job_id"]})
    return heard


WAYS = {"picture", "script", "form", "fetch", "beacon"}


def settle() -> None:
    """What a beacon does comes a moment later."""
    time.sleep(2)


@pytest.mark.parametrize(("page_host", "target_host"), [("127.0.0.1", "localhost"), ("localhost", "localhost")])
def test_a_foreign_page_launches_forges_and_reads_nothing(
    foreign: Page, stack: Stack, elsewhere: int, page_host: str, target_host: str
) -> None:
    """Neither from another site nor from another port of the same one."""
    attack = f"from-{page_host}"
    foreign.goto(f"http://{page_host}:{elsewhere}/")
    target = f"http://{target_host}:{urlsplit(stack.url).port}"
    assert attack_blindly(foreign, target, stack, attack) == ""
    settle()
    assert launched(stack, attack) == set()
    assert not forged(stack, attack)


def test_without_the_gate_it_would(foreign: Page, ungated: Stack, elsewhere: int) -> None:
    foreign.goto(f"http://127.0.0.1:{elsewhere}/")
    target = f"http://localhost:{urlsplit(ungated.url).port}"
    heard = attack_blindly(foreign, target, ungated, "without-the-gate")
    assert "Started execution of run" in heard
    settle()
    assert launched(ungated, "without-the-gate") == WAYS
    assert forged(ungated, "without-the-gate")


def rebound(page: Page, stack: Stack, attack: str) -> tuple[str, str]:
    """What a page reads, and hears by WebSocket, whose own name was made that of this machine."""
    origin = f"http://evil.example:{urlsplit(stack.url).port}"
    # It stands for the page that the browser got from the attacker before the name was changed.
    page.goto(f"{origin}/server_info")
    launch = json.dumps({"query": LAUNCH, "variables": {"params": params(attack, "rebound")}})
    query = json.dumps({"query": "{ instance { info } }"})
    forgery = f"/report_asset_materialization/receiver_network?description={attack}"
    read: str = page.evaluate(READ, {"launch": launch, "query": query, "forgery": forgery})
    heard: str = page.evaluate(LISTEN, {"url": origin, "query": LOGS, "run": stack.seeded["job_id"]})
    return read, heard


def test_a_page_whose_name_was_rebound_reads_nothing(foreign: Page, stack: Stack) -> None:
    read, heard = rebound(foreign, stack, "rebound")
    assert (read.count("does not answer to the host 'evil.example:"), heard) == (4, "")
    assert "dagster" not in read
    assert launched(stack, "rebound") == set()
    assert not forged(stack, "rebound")


def test_without_the_gate_it_would_read_everything(foreign: Page, ungated: Stack) -> None:
    read, heard = rebound(foreign, ungated, "rebound-without-the-gate")
    assert "LaunchRunSuccess" in read
    assert "local_artifact_storage" in read
    assert "Started execution of run" in heard
    assert forged(ungated, "rebound-without-the-gate")


def test_a_page_cannot_hold_the_webserver_in_a_frame(foreign: Page, stack: Stack, elsewhere: int) -> None:
    """Where a visitor would click on what the page has laid over it."""
    foreign.goto(f"http://localhost:{elsewhere}/")
    target = f"http://localhost:{urlsplit(stack.url).port}/asset-groups"
    foreign.evaluate("url => { document.body.innerHTML = `<iframe src=${url}></iframe>`; }", target)
    expect(foreign.frame_locator("iframe").get_by_text("does not answer to pages of another site")).to_be_visible()


def test_a_link_of_a_foreign_page_opens_the_webservers(foreign: Page, stack: Stack, elsewhere: int) -> None:
    foreign.goto(f"http://127.0.0.1:{elsewhere}/")
    target = f"http://localhost:{urlsplit(stack.url).port}/runs/{stack.seeded['job_id']}"
    foreign.evaluate("url => { document.body.innerHTML = `<a href=${url}>a run</a>`; }", target)
    foreign.get_by_text("a run").click()
    expect(foreign.get_by_text("Success", exact=True).first).to_be_visible()


def test_the_page_to_try_queries_on_works(page: Page, context: BrowserContext) -> None:
    page.goto("/graphql")
    page.locator(".graphiql-query-editor .CodeMirror").first.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text("{ version }")
    page.locator(".graphiql-execute-button").click()
    expect(page.locator(".result-window")).to_contain_text('"version"')
