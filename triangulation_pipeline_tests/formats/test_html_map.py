import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import shapely

from triangulation_pipeline.formats import html_map
from triangulation_pipeline.formats.fixes import Fixes
from triangulation_pipeline.formats.html_map import write_map
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline_tests.formats.fixed import HOSTILE, LAYOUT, fixes, moved


class Page(HTMLParser):
    """The elements of a page with their attributes and texts, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            tag, attributes, text = self.elements[-1]
            self.elements[-1] = (tag, attributes, text + data)

    def texts(self, tag: str) -> list[str]:
        return [text for name, _, text in self.elements if name == tag]


def written(layout: Layout, *chunks: Fixes) -> Page:
    file = io.BytesIO()
    write_map(file, layout.network, chunks)
    return Page(file.getvalue().decode())


def data(page: Page) -> dict[str, Any]:
    (text,) = (text for tag, attributes, text in page.elements if attributes.get("id") == "data")
    found: dict[str, Any] = json.loads(text)
    return found


def test_leaflet_is_the_published_one() -> None:
    """Its digests are those that leafletjs.com publishes for version 1.9.4."""
    folder = files("triangulation_pipeline") / "formats" / "leaflet"
    for name, published in {
        "leaflet.js": "20nQCchB9co0qIjJZRGuk2/Z9VM+kNiyxNV1lvTlZBo=",
        "leaflet.css": "p4NxAoJBhIIN+hmNHrzRCf9tD/miZyoHS5obTRR9BMY=",
    }.items():
        assert base64.b64encode(hashlib.sha256((folder / name).read_bytes()).digest()).decode() == published
    assert "BSD 2-Clause" in (folder / "LICENSE").read_text()


def test_names_cannot_break_out() -> None:
    network = LAYOUT.network
    name = HOSTILE[:90].replace("\x01", "") + "; Torino"
    sites = (network.sites[0].model_copy(update={"name": name}), *network.sites[1:])
    hostile = ReceiverNetwork(name=HOSTILE[:90].replace("\x01", ""), sites=sites)
    layout = Layout(hostile, LAYOUT.scenario)
    page = written(layout, fixes(12, layout, transmission_id=[HOSTILE] * 12))
    plain = written(LAYOUT, fixes(12))
    assert [(tag, attributes) for tag, attributes, _ in page.elements] == [
        (tag, attributes) for tag, attributes, _ in plain.elements
    ]
    assert page.texts("h1")[0].strip() == f"Fixes of {hostile.name}"
    assert data(page)["fixes"]["id"] == [HOSTILE] * 11
    assert data(page)["receivers"][0]["name"] == sites[0].name
    assert data(page)["fixes"]["heard"] == data(plain)["fixes"]["heard"]


def test_the_policy_allows_the_two_scripts_alone_and_no_address_but_street_maps() -> None:
    page = written(LAYOUT, fixes(12))
    (policy,) = (str(attributes["content"]) for tag, attributes, _ in page.elements if "http-equiv" in attributes)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: https://tile.openstreetmap.org"
    for kind in ("script", "style"):
        allowed = re.findall(r"'sha256-([^']+)'", rules[f"{kind}-src"])
        texts = [text for tag, attributes, text in page.elements if tag == kind and "type" not in attributes]
        assert allowed == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert "unsafe" not in rules[f"{kind}-src"]
    assert not any("src" in attributes for _, attributes, _ in page.elements)
    assert [attributes["href"] for _, attributes, _ in page.elements if "href" in attributes] == ["data:,"]


def test_the_data_are_those_of_the_table_in_the_order_of_time() -> None:
    whole = fixes(12)
    page = data(written(LAYOUT, whole.take(slice(6, None)), whole.take(slice(0, 6))))
    table = whole.table.dropna(subset=["latitude"])
    assert page["fixes"]["id"] == table["transmission_id"].tolist()
    assert page["fixes"]["time"] == table["time"].tolist()
    np.testing.assert_allclose(page["fixes"]["lat"], table["latitude"], atol=1e-6)
    np.testing.assert_allclose(page["fixes"]["lon"], table["longitude"], atol=1e-6)
    assert page["fixes"]["error"][1] is None
    assert page["fixes"]["error"][0] == pytest.approx(30, abs=0.5)
    assert (page["without_position"], page["left_out"], page["ellipses"]) == (1, 0, 0)
    # The rings close, and lie around the place.
    for rings in page["regions"]:
        assert [len(of_fix) for of_fix in rings] == [2] * 11
        for lon, lat, of_fix in zip(page["fixes"]["lon"], page["fixes"]["lat"], rings, strict=True):
            corners = [np.cumsum(np.reshape(steps, (-1, 2)), axis=0) for steps in of_fix]
            assert all(corner[0].tolist() == corner[-1].tolist() for corner in corners)
            assert sum(shapely.Polygon(corner / 1e6).contains(shapely.Point(lon, lat)) for corner in corners) == 1


def test_longitudes_do_not_jump_at_the_180th_meridian() -> None:
    layout = moved(-17.0, 180.0)
    page = data(written(layout, fixes(40, layout)))
    assert np.ptp([receiver["lon"] for receiver in page["receivers"]] + page["fixes"]["lon"]) < 5
    assert np.ptp([other[0] for others in page["fixes"]["others"] for other in others]) < 5
    assert np.ptp([value for value in page["fixes"]["true_lon"] if value is not None]) < 5


def test_what_a_page_cannot_hold_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_map, "MOST_FIXES", 8)
    monkeypatch.setattr(html_map, "MOST_REGIONS", 5)
    whole = fixes(12)
    page = data(written(LAYOUT, whole.take(slice(0, 6)), whole.take(slice(6, 10)), whole.take(slice(10, None))))
    assert page["fixes"]["id"] == [f"tx-{i}" for i in range(8) if i != 2]
    assert (page["shown"], page["left_out"], page["ellipses"]) == (8, 4, 2)
    for rings in page["regions"]:
        assert [of_fix is None for of_fix in rings] == [False] * 5 + [True] * 2


def test_a_page_without_fixes_shows_receivers() -> None:
    page = data(written(LAYOUT))
    assert len(page["receivers"]) == 7
    assert page["fixes"]["id"] == []
