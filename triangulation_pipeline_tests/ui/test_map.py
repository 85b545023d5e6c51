"""The map of fixes in a browser that has no network."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from triangulation_pipeline.formats.html_map import write_map
from triangulation_pipeline.network import ReceiverNetwork, Site
from triangulation_pipeline_tests.formats.fixed import HOSTILE, LAYOUT, fixes
from triangulation_pipeline_tests.test_documentation import blocks
from triangulation_pipeline_tests.ui.conftest import BIN, SECONDS

pytestmark = pytest.mark.ui

# Where the map has the colour of a fix with a warning: all of these have a second place.
ORANGE_PIXELS = """canvas => {
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data, found = [];
  for (let k = 0; k < data.length; k += 4)
    if (data[k] === 213 && data[k + 1] === 94 && data[k + 2] === 0)
      found.push([k / 4 % canvas.width, k / 4 / canvas.width]);
  return found;
}"""
IS_DRAWN = """() => {
  const canvas = document.querySelector('#map canvas');
  return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value);
}"""


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The map of 11 fixes, one of them with a hostile name; it fails if the page asks for anything, or reports a
    fault."""
    path = tmp_path / "map.html"
    with path.open("wb") as file:
        write_map(file, LAYOUT.network, [fixes(12, transmission_id=[f"tx-{i}" for i in range(11)] + [HOSTILE])])
    faults: list[str] = []
    with browser.new_context(offline=True, viewport={"width": 1200, "height": 800}) as context:
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: faults.append(request.url) if "map.html" not in request.url else None)
        page.goto(path.as_uri())
        yield page
        page.screenshot(path=tmp_path / "last.png")
    assert not [fault for fault in faults if not fault.startswith("data:")]


def orange(page: Page) -> list[tuple[float, float]]:
    """Middles of the dots that the map shows, in the window."""
    page.wait_for_timeout(300)  # the next frame
    box = page.locator("#map").bounding_box()
    assert box is not None
    found: list[tuple[float, float]] = []
    for x, y in page.locator("#map canvas").evaluate(ORANGE_PIXELS):
        if all(np.hypot(x - a, y - b) > 14 for a, b in found):
            found.append((x, y))
    return [(box["x"] + x, box["y"] + y + 4) for x, y in found]


def show(page: Page, *names: str) -> None:
    """Switches these layers on and all others off."""
    for box in page.locator("#layers input").all():
        box.set_checked(box.get_attribute("name") in names)


def test_a_fix_tells_what_is_known_of_it_and_leads_to_the_next(page: Page) -> None:
    expect(page.locator("#summary")).to_contain_text("11 fixes by 7 receivers · 2000-01-01 00:00:00 to 00:00:11 UTC")
    expect(page.locator("#summary")).to_contain_text("1 more without a position")
    show(page, "fixes")
    dots = orange(page)
    assert 5 < len(dots) <= 11
    page.mouse.click(*dots[0])
    popup = page.locator(".leaflet-popup-content")
    expect(popup).to_contain_text("With 95 % probability it is inside an ellipse")
    expect(popup).to_contain_text("if this place is the right one (70 %)")
    expect(popup).to_contain_text("It may also be at")
    expect(popup).to_contain_text("Another place is likely too.")
    expect(popup.locator("tr")).not_to_have_count(0)
    for _ in range(11):
        if popup.get_by_role("button", name="Later").is_disabled():
            break
        before = popup.locator("h2").inner_text()
        popup.get_by_role("button", name="Later").click()
        expect(popup.locator("h2")).not_to_have_text(before)
    # The last one has the name that would break out.
    expect(popup.locator("h2")).to_contain_text("</script><script>")
    expect(page).to_have_title("Fixes of north-west-italy")
    assert popup.locator("img, script").count() == 0


def test_one_can_zoom_to_the_area_of_a_fix(page: Page) -> None:
    show(page, "fixes")
    page.mouse.click(*orange(page)[0])
    scale = page.locator(".leaflet-control-scale-line")
    expect(scale).to_have_text("30 km")
    page.get_by_role("button", name="Zoom to it").click()
    expect(scale).to_have_text(re.compile(r"^\d+ m$"))
    expect(page.locator(".leaflet-popup")).to_have_count(0)
    show(page, "wide")
    page.wait_for_function(IS_DRAWN)


def test_layers_can_be_switched(page: Page) -> None:
    show(page, "fixes")
    assert orange(page)
    show(page)
    assert not orange(page)
    assert not page.evaluate(IS_DRAWN)


@pytest.mark.parametrize("layer", ["receivers", "wide", "narrow", "others", "errors", "graticule"])
def test_each_layer_draws_something(page: Page, layer: str) -> None:
    show(page, "fixes")
    page.mouse.move(*min(orange(page), key=lambda dot: np.hypot(dot[0] - 600, dot[1] - 400)))
    for _ in range(4 if layer in {"wide", "narrow", "errors"} else 0):  # before, these are smaller than a dot
        page.mouse.wheel(0, -120)
        page.wait_for_timeout(250)
    show(page)
    page.wait_for_function(f"() => !({IS_DRAWN})()")
    show(page, layer)
    page.wait_for_function(IS_DRAWN)


def test_the_slider_walks_through_time(page: Page) -> None:
    show(page, "fixes")
    slider, now = page.get_by_role("slider", name="Time"), page.locator("#now")
    expect(now).to_contain_text("11 fixes")
    all_dots = len(orange(page))
    slider.press("Home")
    expect(now).to_have_text("2000-01-01 00:00:00 UTC: 1 fix")
    assert len(orange(page)) == 1
    slider.press("End")
    expect(now).to_contain_text("11 fixes")
    assert len(orange(page)) == all_dots
    page.get_by_label("Show").select_option("last second")
    expect(now).to_have_text("2000-01-01 00:00:11 UTC: 1 fix")
    slider.press("Home")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.get_by_role("button", name="Play")).to_be_visible(timeout=SECONDS * 1000)  # at the end
    expect(now).to_contain_text("00:00:11")


def test_it_fits_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.reload()
    expect(page.locator("#layers")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.get_by_text("Layers").click()
    expect(page.get_by_label("Receivers (7)")).to_be_visible()
    for control in ("#time", "#play", "#window", "#now"):
        box = page.locator(control).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
        assert box["y"] + box["height"] <= 800


def test_the_map_of_the_tutorial(browser: Browser, tmp_path: Path, screenshot: Callable[[Page, str], None]) -> None:
    """Most areas are smaller than the dots, and one that is zoomed to shows the true place."""
    network = next(block for block in blocks("docs/tutorial.md", "yaml") if "network.yaml" in block.content)
    (tmp_path / "network.yaml").write_text(network.content)
    commands = [block.content for block in blocks("docs/tutorial.md", "bash")]
    for name in ("simulate", "calibrate", "locate"):
        command = next(command for command in commands if command.startswith(f"triangulation {name} "))
        subprocess.run(["bash", "-euc", f"{BIN}/{command}"], cwd=tmp_path, check=True, capture_output=True)
    with browser.new_context(offline=True, viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.goto((tmp_path / "map.html").as_uri())
        expect(page.locator("#note")).to_have_text(re.compile("^Most areas are smaller than the dots here"))
        page.wait_for_function(IS_DRAWN)
        dots = orange(page)
        page.mouse.click(*min(dots, key=lambda dot: np.hypot(dot[0] - 500, dot[1] - 480)))
        popup = page.locator(".leaflet-popup-content")
        for _ in range(100):  # one of ten is known; beside the names of most receivers it makes a better picture
            box = popup.bounding_box()
            if box is not None and box["x"] > 480 and "The true place is known" in popup.inner_text():
                break
            popup.get_by_role("button", name="Earlier").click()
        expect(popup).to_contain_text("away (green cross)")
        expect(popup.locator("tr")).to_have_count(6)
        screenshot(page, "map")
        popup.get_by_role("button", name="Zoom to it").click()
        expect(page.locator("#note")).to_be_hidden()
        screenshot(page, "map_zoomed")


def test_at_a_pole_the_page_says_that_the_map_ends(browser: Browser, tmp_path: Path) -> None:
    sites = tuple(Site(name=f"S{lon}", lat=89.5, lon=lon) for lon in (-120, 0, 120))
    path = tmp_path / "map.html"
    with path.open("wb") as file:
        write_map(file, ReceiverNetwork(name="pole", sites=sites), [])
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        expect(page.locator("#note")).to_contain_text("3 places beyond are drawn at its edge")


def test_the_street_map_is_asked_for_and_says_why_it_does_not_come(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    with path.open("wb") as file:
        write_map(file, LAYOUT.network, [fixes(12)])
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert not [url for url in asked if url.startswith("http")]
        page.get_by_label("Street map").check()
        expect(page.locator("#note")).to_contain_text("The street map does not load.")
        expect(page.locator(".leaflet-control-attribution")).to_contain_text("OpenStreetMap contributors")
        hosts = {url.split("/")[2] for url in asked if url.startswith("http")}
        assert hosts == {"tile.openstreetmap.org"}
        page.get_by_label("Street map").uncheck()
        expect(page.locator("#note")).to_be_hidden()
