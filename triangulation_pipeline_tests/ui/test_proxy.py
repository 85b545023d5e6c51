"""The proxy that docs/operations.md prints: nginx, as it stands there but for ports and files."""

import base64
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect

from triangulation_pipeline_tests.conftest import ROOT, cannot_run
from triangulation_pipeline_tests.ports import free_port
from triangulation_pipeline_tests.ui.conftest import BIN, PROXY_HOST, SECONDS, Stack, start_chromium
from triangulation_pipeline_tests.ui.test_foreign_pages import BLIND, LISTEN, LOGS, WAYS

pytestmark = pytest.mark.ui

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OWN = f"https://{PROXY_HOST}"
SISTER, STRANGER = "https://other.example.org", "https://evil.example"
USER, PASSWORD = "ann", "a-password-of-ann"
AUTHORIZATION = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
# Any port of the proxy will do for a browser, which calls it by name at port 443.
RULES = "--host-resolver-rules=MAP *:443 127.0.0.1:{port}"


@dataclass
class Behind:
    """A webserver that answers everything, and remembers what reached it."""

    port: int = 0
    reached: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of all the names, signed by itself; its key beside it."""
    if shutil.which("openssl") is None:
        cannot_run("no openssl on the PATH; install the package openssl")
    folder = tmp_path_factory.mktemp("tls")
    names = [PROXY_HOST, *(urlsplit(origin).netloc for origin in (SISTER, STRANGER))]
    subjects = ",".join([*(f"DNS:{name}" for name in names), "IP:127.0.0.1"])
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    out = ["-keyout", folder / "key", "-out", folder / "pem", "-addext", f"subjectAltName={subjects}"]
    subprocess.run(["openssl", *request.split(), *out], check=True, capture_output=True)
    return folder / "pem"


@pytest.fixture(scope="module")
def behind() -> Iterator[Behind]:
    behind = Behind()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behind.reached.append((self.command, self.path))
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"inside")

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    behind.port = server.server_port
    yield behind
    server.shutdown()


Start = Callable[..., int]


@pytest.fixture(scope="module")
def start_proxy(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Start]:
    """Starts the documented proxy before a webserver's port, and gives its own; ``change`` edits what is printed."""
    if NGINX is None:
        cannot_run("no nginx on the PATH; install the package nginx")
    running = []

    def start(webserver: int, change: Callable[[str], str] = lambda text: text) -> int:
        folder, port = tmp_path_factory.mktemp("nginx"), free_port()
        hashed = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], check=True, capture_output=True, text=True)
        (folder / "htpasswd").write_text(f"{USER}:{hashed.stdout}")
        page = (ROOT / "docs" / "operations.md").read_text()
        (printed,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
        for said, here in (
            ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
            ("/etc/ssl/triangulation.pem", str(certificate)),
            ("/etc/ssl/triangulation.key", str(certificate.with_name("key"))),
            ("/etc/nginx/triangulation.htpasswd", str(folder / "htpasswd")),
            ("http://127.0.0.1:3000;", f"http://127.0.0.1:{webserver};"),
        ):
            assert printed.count(said) == 1, said
            printed = printed.replace(said, here)
        others = " ".join(urlsplit(origin).netloc for origin in (SISTER, STRANGER))
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"""daemon off; pid {folder}/pid; error_log {folder}/error.log;
            {"user root;" if os.geteuid() == 0 else ""}
            events {{}}
            http {{
              access_log off; {temporary}
              {change(printed)}
              server {{
                listen 127.0.0.1:{port} ssl; server_name {others}; default_type text/html;
                ssl_certificate {certificate}; ssl_certificate_key {certificate.with_name("key")};
                location / {{ return 200 "<body>a page</body>"; }}
              }}
            }}"""
        )
        process = subprocess.Popen(
            [NGINX, "-p", folder, "-c", folder / "nginx.conf"], stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        deadline = time.monotonic() + SECONDS
        while True:
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.fail(f"nginx did not start:\n{process.stderr.read()}")
            try:
                ask(port, certificate)
                return port
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    yield start
    for process in running:
        process.terminate()
        process.wait(30)


def ask(
    port: int, certificate: Path, target: str = "/", method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """A request of a program, by the proxy's name; the status, headers and body of the answer."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port, context=ssl.create_default_context(cafile=str(certificate)), timeout=SECONDS
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, target, headers={"Host": PROXY_HOST, **named})
    answer = connection.getresponse()
    # A WebSocket that is open has no body to wait for.
    found = answer.status, answer.msg, b"" if answer.status == 101 else answer.read()
    connection.close()
    return found


@pytest.fixture(scope="module")
def proxy(start_proxy: Start, behind: Behind) -> int:
    """The port of the proxy before a webserver that answers everything."""
    return start_proxy(behind.port)


@pytest.fixture(autouse=True)
def nothing_reached(behind: Behind) -> None:
    behind.reached.clear()


MUTATION = f"/graphql?query={quote('mutation { x }')}"
FETCHED = {"Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
LINK = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("POST", "/graphql", {}, 200),
        ("GET", "/graphql", {}, 200),
        ("POST", "/graphql", {"Origin": OWN, "Sec_Fetch_Site": "same-origin"}, 200),
        ("GET", "/runs/1", {"Sec_Fetch_Site": "none", **LINK}, 200),
        ("GET", "/runs/1", {"Sec_Fetch_Site": "cross-site", **LINK}, 200),
        ("POST", "/graphql", {"Origin": STRANGER}, 403),
        ("POST", "/graphql", {"Origin": "null"}, 403),
        ("POST", "/graphql", {"Origin": f"{OWN}:8443"}, 403),
        ("POST", "/graphql", {"Origin": OWN.replace("https", "http")}, 403),
        ("GET", "/", {"Sec_Fetch_Site": "same-site", **FETCHED}, 403),
        ("GET", "/", {"Sec_Fetch_Site": "cross-site", **FETCHED}, 403),
        ("GET", "/", {"Sec_Fetch_Site": "Cross-Site", **FETCHED}, 403),
        ("POST", "/", {"Sec_Fetch_Site": "cross-site", **LINK}, 403),
        ("GET", "/", {"Sec_Fetch_Site": "cross-site", **LINK, "Sec_Fetch_Dest": "iframe"}, 403),
        ("GET", "/graphql", {"Origin": STRANGER, "Upgrade": "websocket", "Connection": "upgrade"}, 403),
        # Browsers from before these headers.
        ("GET", MUTATION, {}, 405),
        ("HEAD", MUTATION, {}, 405),
        ("GET", MUTATION.replace("graphql", "%67raphql"), {}, 405),
        ("GET", MUTATION, {"Sec_Fetch_Site": "cross-site", **LINK}, 405),
    ],
)
def test_the_rules_of_the_proxy(
    proxy: int, certificate: Path, behind: Behind, method: str, target: str, headers: dict[str, str], status: int
) -> None:
    assert ask(proxy, certificate, target, method, Authorization=AUTHORIZATION, **headers)[0] == status
    assert behind.reached == ([(method, target)] if status == 200 else [])


def test_the_proxy_asks_for_the_password(proxy: int, certificate: Path, behind: Behind) -> None:
    wrong = base64.b64encode(f"{USER}:wrong".encode()).decode()
    for headers in ({}, {"Authorization": f"Basic {wrong}"}):
        for target in ("/", "/graphql", "/report_asset_materialization/a"):
            status, answered, _ = ask(proxy, certificate, target, "POST", **headers)
            assert (status, answered["WWW-Authenticate"]) == (401, 'Basic realm="triangulation"')
    assert behind.reached == []


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Callable[[int], Browser]]:
    """Starts a browser for which all names at port 443 are the proxy at a port."""
    started = []

    def start(port: int) -> Browser:
        started.append(start_chromium(playwright, RULES.format(port=port)))
        return started[-1]

    yield start
    for browser in started:
        browser.close()


def visitor(browser: Browser) -> Page:
    """A tab of somebody who knows the password, and certificates that sign themselves."""
    expect.set_options(timeout=SECONDS * 1000)
    credentials: Any = {"username": USER, "password": PASSWORD}
    context = browser.new_context(base_url=OWN, ignore_https_errors=True, http_credentials=credentials)
    context.set_default_timeout(SECONDS * 1000)
    return context.new_page()


def attack(page: Page, origin: str) -> None:
    """Everything that a page tries blindly, in the browser of somebody who has just given the password."""
    page.goto("/")
    expect(page.get_by_text("inside")).to_be_visible()
    page.goto(f"{origin}/")
    page.evaluate(
        BLIND,
        {
            "url": OWN,
            "launches": {way: f"{OWN}{MUTATION}&way={way}" for way in WAYS},
            "forgery": f"{OWN}/report_asset_materialization/a?way=forgery",
        },
    )
    assert page.evaluate(LISTEN, {"url": OWN, "query": LOGS, "run": "a run"}) == ""
    page.wait_for_timeout(1000)


@pytest.mark.parametrize("origin", [SISTER, STRANGER])
def test_nothing_of_a_foreign_page_passes_the_proxy(
    proxy: int, behind: Behind, chromium: Callable[[int], Browser], origin: str
) -> None:
    attack(visitor(chromium(proxy)), origin)
    assert {path for _, path in behind.reached} <= {"/", "/favicon.ico"}


def test_without_its_rules_the_sister_would_pass(
    start_proxy: Start, behind: Behind, chromium: Callable[[int], Browser]
) -> None:
    """With the visitor's password: so the test above sees what the rules are for."""
    open_proxy = start_proxy(behind.port, lambda text: re.sub(r"(?m)^ *if .*$", "", text))
    attack(visitor(chromium(open_proxy)), SISTER)
    passed = set(re.findall(r"way=(\w+)", " ".join(path for _, path in behind.reached)))
    assert passed == WAYS | {"forgery"}


def test_the_pages_and_the_command_line_go_through_the_proxy(
    start_proxy: Start, certificate: Path, stack: Stack, chromium: Callable[[int], Browser]
) -> None:
    port = start_proxy(urlsplit(stack.url).port or 0)
    page = visitor(chromium(port))
    frames: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame))))
    page.goto(f"/runs/{stack.seeded['job_id']}")
    # The events of the run come by the page's own WebSocket.
    expect(page.get_by_text("Finished execution of run").first).to_be_visible()
    assert any("Finished execution of run" in frame for frame in frames)

    environment = {**stack.environment, "REQUESTS_CA_BUNDLE": str(certificate)}
    for user, said in ((f"{USER}:{PASSWORD}@", 0), ("", 1)):
        url = f"https://{user}127.0.0.1:{port}"
        status = [BIN / "triangulation", "status", stack.seeded["job_id"], "--json", "--url", url]
        done = subprocess.run(status, env=environment, cwd=stack.home, capture_output=True, text=True)
        if said == 0:
            assert json.loads(done.stdout)["run_status"] == "SUCCESS", done.stderr
        else:
            assert "401" in done.stderr, done.stderr
        assert PASSWORD not in done.stdout + done.stderr
