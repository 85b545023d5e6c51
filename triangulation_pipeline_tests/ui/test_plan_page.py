"""The page of a plan in a browser that has no network."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, expect

from triangulation_pipeline.cli import main
from triangulation_pipeline_tests.conftest import ROOT

pytestmark = pytest.mark.ui


@pytest.mark.parametrize("width", [1500, 400])
def test_the_page_of_a_plan_needs_no_network(browser: Browser, tmp_path: Path, width: int) -> None:
    network = ROOT / "docker" / "networks" / "north-west-italy.yaml"
    made = CliRunner().invoke(main, ["plan", str(network), "--preset", "valley", "--out", str(tmp_path)])
    assert made.exit_code == 0, made.output
    with browser.new_context(offline=True, viewport={"width": width, "height": 900}) as context:
        page = context.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: said.append(request.url) if "plan.html" not in request.url else None)
        page.goto((tmp_path / "plan.html").as_uri())
        expect(page.get_by_role("heading", name="Plan of north-west-italy")).to_be_visible()
        expect(page.get_by_text("with one more site at ")).to_be_visible()
        shown = page.evaluate("[...document.images].map(image => [image.alt, image.naturalWidth, image.clientWidth])")
        assert [alt for alt, _, _ in shown] == [
            "bound of the position error",
            "horizontal dilution of precision",
            "receivers that hear",
        ]
        assert all(natural == 740 and 300 < client <= min(740, width) for _, natural, client in shown)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        expect(page.get_by_role("cell", name="without Genova")).to_be_attached()
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert [text for text in said if not text.startswith("data:")] == []
