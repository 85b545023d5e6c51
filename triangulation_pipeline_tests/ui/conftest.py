"""A real `make ui` in a home where `triangulation run` has run once, and a real Chromium in front of it."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, expect, sync_playwright

from triangulation_pipeline_tests.conftest import ROOT, cannot_run, make_home
from triangulation_pipeline_tests.defs.conftest import settings
from triangulation_pipeline_tests.ports import free_port

BIN = Path(sys.executable).parent
NO_CHROMIUM = "no Chromium on the PATH; install the package chromium, or name the program in CHROMIUM"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# A folder: the pictures of the README are written there (make screenshots).
SCREENSHOTS = os.environ.get("UI_SCREENSHOTS")
# What the proxy of docs/operations.md is called.
PROXY_HOST = "triangulation.example.org"
# Long enough for two cores that have other things to do; nothing waits longer than it has to.
SECONDS = 60


@dataclass(frozen=True)
class Stack:
    """A webserver with its daemon and code server, and the run made before they started."""

    url: str
    seeded: dict[str, Any]
    home: Path
    environment: dict[str, str]

    def query(self, graphql: str, **variables: Any) -> dict[str, Any]:
        """What the server itself says, where a test has to compare."""
        body = json.dumps({"query": graphql, "variables": variables}).encode()
        request = Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=SECONDS) as response:
            data: dict[str, Any] = json.load(response)["data"]
        return data

    def run(self, run_id: str) -> dict[str, Any]:
        """Status, times and steps of a run."""
        fields = "status startTime endTime stepStats { stepKey status }"
        answer = self.query(f"query($id: ID!) {{ runOrError(runId: $id) {{ ... on Run {{ {fields} }} }} }}", id=run_id)
        run: dict[str, Any] = answer["runOrError"]
        return run


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`make run`, then `make ui`, with small settings in a home of its own."""
    if CHROMIUM is None:
        cannot_run(NO_CHROMIUM)
    home = make_home(tmp_path_factory.mktemp("ui") / "home")
    shutil.copy(ROOT / "workspace.yaml", home)
    (home / "run.yaml").write_text(yaml.safe_dump({"ops": settings()["ops"]}))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRIANGULATION_")}
    environment |= {"DAGSTER_HOME": str(home), "TRIANGULATION_WEBSERVER_HOSTS": PROXY_HOST}
    made = subprocess.run(
        [BIN / "triangulation", "run", "--config", "run.yaml", "--json"],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    port = free_port()
    with (home / "dagster.log").open("w") as log:
        # A session of its own, with the default handling of the interrupt, so that all its processes can be ended.
        process = subprocess.Popen(
            [BIN / "triangulation", "ui", "-p", str(port)],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
        try:
            stack = Stack(f"http://127.0.0.1:{port}", json.loads(made.stdout), home, environment)
            wait_until_ready(stack, process, home / "dagster.log")
            yield stack
        finally:
            end(process)
            shutil.rmtree(home, ignore_errors=True)


def wait_until_ready(stack: Stack, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the webserver has loaded the assets."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, LookupError):
            loaded = stack.query(
                "{ workspaceOrError { ... on Workspace { locationEntries "
                "{ locationOrLoadError { ... on RepositoryLocation { name } } } } } }"
            )
            assert loaded["workspaceOrError"]["locationEntries"][0]["locationOrLoadError"]["name"]
            return
        time.sleep(0.5)
    pytest.fail(f"the webserver did not come up:\n{log.read_text()}")


def end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl+C does it; what is left of the session after that is killed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    if CHROMIUM is None:
        cannot_run(NO_CHROMIUM)
    with sync_playwright() as playwright:
        yield playwright


def start_chromium(playwright: Playwright, *arguments: str) -> Browser:
    """The machine's own Chromium."""
    common = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    return playwright.chromium.launch(
        executable_path=CHROMIUM, args=[*common.split(), *arguments], timeout=SECONDS * 1000
    )


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """A browser to which the names of ``evil.example`` are this machine, as after DNS rebinding."""
    browser = start_chromium(playwright, "--host-resolver-rules=MAP evil.example 127.0.0.1")
    yield browser
    browser.close()


@pytest.fixture
def context(browser: Browser, stack: Stack) -> Iterator[BrowserContext]:
    """A visitor who has not been here before."""
    expect.set_options(timeout=SECONDS * 1000)
    with browser.new_context(base_url=stack.url, viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(SECONDS * 1000)
        yield context


@pytest.fixture
def page(context: BrowserContext, tmp_path: Path) -> Iterator[Page]:
    """A tab; what it showed last stays in the test's temporary folder."""
    page = context.new_page()
    yield page
    page.screenshot(path=tmp_path / "last.png")


@pytest.fixture
def screenshot() -> Callable[[Page, str], None]:
    """Keeps what a page shows as a picture for the README, where ``UI_SCREENSHOTS`` names a folder for it."""

    def keep(page: Page, name: str) -> None:
        if SCREENSHOTS:
            page.wait_for_timeout(1500)  # animations come to rest
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            image.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                ROOT / SCREENSHOTS / f"{name}.png", optimize=True
            )

    return keep


def open_launchpad(page: Page) -> Locator:
    """From the graph page, as a user does."""
    page.goto("/asset-groups")
    expect(page.get_by_text("simulation").first).to_be_visible()  # a group, closed at first
    everything = page.get_by_role("button", name="Materialize all")
    everything.locator("xpath=following::button[1]").click()
    page.get_by_text("Open launchpad").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("max_rmse_m")).to_be_visible()
    return dialog


def write_config(page: Page, launchpad: Locator, ops: dict[str, dict[str, Any]]) -> None:
    """Replaces the launchpad's text."""
    launchpad.locator(".CodeMirror-lines").click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(yaml.safe_dump({"ops": {op: {"config": config} for op, config in ops.items()}}))
