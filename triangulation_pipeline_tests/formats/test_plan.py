"""What is written of a plan: rows, sentences, GeoJSON and the page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from triangulation_pipeline.formats.plan import COLUMNS, PlanReport, bound_words, place_words
from triangulation_pipeline.frame import WGS84_A_M
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site
from triangulation_pipeline.physics.plan import NetworkPlan, best_further_site, plan_network
from triangulation_pipeline.physics.plan_cells import service_cells
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario

FIJI = ((-17.8, 177.4), (-16.8, -179.9), (-18.1, 178.4), (-18.2, -178.8))
POLE = ((89.5, 0.0), (89.4, 90.0), (89.6, 180.0), (89.2, -60.0))
SOUTH_POLE = tuple((-lat, lon) for lat, lon in POLE)


def planned(network: ReceiverNetwork, scenario: Scenario | None = None, per_side: int = 11) -> NetworkPlan:
    scenario = scenario or Scenario()
    return plan_network(network, scenario, service_cells([network], scenario, per_side))


def at(*places: tuple[float, float], name: str = "n") -> ReceiverNetwork:
    return ReceiverNetwork(name=name, sites=tuple(Site(name=f"s{i}", lat=a, lon=b) for i, (a, b) in enumerate(places)))


@pytest.fixture(scope="module")
def report() -> PlanReport:
    """In a valley, where some places have no bound, beside the network without Genova."""
    scenario = PRESETS[Preset.valley]
    fewer = NORTH_WEST_ITALY.model_copy(
        update={"name": "<b>fewer</b>", "sites": (*NORTH_WEST_ITALY.sites[:5], NORTH_WEST_ITALY.sites[6])}
    )
    plan = planned(NORTH_WEST_ITALY, scenario)
    return PlanReport(plan, best_further_site(plan), plan_network(fewer, scenario, plan.cells))


def test_rows_have_every_variant_and_the_worst_loss_first(report: PlanReport) -> None:
    rows = report.rows()
    assert [row["kind"] for row in rows] == ["all", "other", "further", *7 * ["without"]]
    assert rows[3]["name"] == NORTH_WEST_ITALY.sites[report.plan.losses[0]].name
    assert {row["name"] for row in rows[3:]} == {site.name for site in NORTH_WEST_ITALY.sites}
    (genova,) = (row for row in rows[3:] if row["name"] == "Genova")
    # The other network is that without Genova.
    shared = ("p50_m", "p95_m", "located_share", "good_hdop_share", "receivers", "heard_by_3", "heard_by_4")
    assert [rows[1][name] for name in shared] == [genova[name] for name in shared]
    assert genova["heard_share"] == pytest.approx(report.plan.heard_share[5], abs=1e-4)


def test_a_bound_that_does_not_exist_is_null_in_json_and_a_dash_in_a_table(report: PlanReport) -> None:
    document = json.loads(json.dumps(report.document(), allow_nan=False))
    assert document["rows"][0]["p95_m"] is None or np.isfinite(report.plan.numbers.p95_m)
    lost = next(row for row in document["rows"] if row["p95_m"] is None)
    assert COLUMNS["p95 m"](lost) == "-"
    assert document["further_site"]["name"] == "one more site"
    assert document["network_digest"] == NORTH_WEST_ITALY.digest
    assert (bound_words(8.26), bound_words(24.4), bound_words(13074.9)) == ("8.3", "24", "13,075")
    assert place_words(-17.8, 177.4) == "17.8000 S 177.4000 E"


def test_sentences_have_the_numbers_of_the_rows() -> None:
    plan = planned(NORTH_WEST_ITALY)
    best = best_further_site(plan)
    loss, gain = PlanReport(plan, best).sentences()
    worst = plan.without[plan.losses[0]]
    assert loss == (
        f"without Milano-Baggio, the bound of 95 % of the area goes from {plan.numbers.p95_m:.0f} m to "
        f"{worst.p95_m:.0f} m ({worst.p95_m / plan.numbers.p95_m:.1f} times), the bound of 50 % goes from "
        f"{plan.numbers.p50_m:.0f} m to {worst.p50_m:.0f} m ({worst.p50_m / plan.numbers.p50_m:.1f} times)"
    )
    assert gain.startswith(f"with one more site at {place_words(best.site.lat, best.site.lon)}, the bound of 95 %")
    less = 100 * (best.numbers.p95_m / plan.numbers.p95_m - 1)
    assert f"({less:+.0f} %)" in gain
    nowhere = replace(plan.numbers, p50_m=np.inf, p95_m=np.inf, located_share=0.4)
    told = PlanReport(replace(plan, without=tuple(7 * [nowhere]))).sentences()[0]
    assert told.endswith(", the part of the area that has a bound goes from 100 % to 40 %")


@pytest.mark.parametrize("places", [FIJI, POLE, SOUTH_POLE], ids=["180th meridian", "north pole", "south pole"])
def test_cells_are_polygons_that_fill_the_area_wherever_it_is(places: tuple[tuple[float, float], ...]) -> None:
    plan = planned(at(*places))
    features = json.loads(json.dumps(PlanReport(plan).geojson(), allow_nan=False))["features"]
    cells = [feature for feature in features if feature["properties"]["kind"] == "cell"]
    assert len(cells) == 121
    shapes = [shape(cell["geometry"]) for cell in cells]
    assert all(each.is_valid for each in shapes)
    lon, lat = np.concatenate([shapely.get_coordinates(each) for each in shapes]).T
    assert np.abs(lon).max() <= 180
    assert np.abs(lat).max() <= 90
    # On a map of equal areas: the sine of the latitude beside the longitude.
    size_m2 = sum(
        shapely.transform(
            shapely.segmentize(each, 0.02),
            lambda c: np.stack([np.radians(c[:, 0]), np.sin(np.radians(c[:, 1]))], axis=-1) * WGS84_A_M,
        ).area
        for each in shapes
    )
    area = plan.cells.area
    expected_m2 = (area.east_max_m - area.east_min_m) * (area.north_max_m - area.north_min_m)
    assert size_m2 == pytest.approx(expected_m2, rel=0.02)


def test_a_cell_has_its_numbers_and_lies_where_they_hold(report: PlanReport) -> None:
    features = report.geojson()["features"]
    sites = [f for f in features if f["properties"]["kind"] == "site"]
    assert [(f["properties"]["name"], f["geometry"]["coordinates"]) for f in sites] == [
        (site.name, [site.lon, site.lat]) for site in NORTH_WEST_ITALY.sites
    ]
    cells = [f for f in features if f["properties"]["kind"] == "cell"]
    plan, other = report.plan, report.other
    assert other is not None
    for number in (0, 57, 120):
        lat, lon = plan.cells.place(number)
        cell = cells[number]
        assert shape(cell["geometry"]).contains(shapely.Point(lon, lat))
        for name, value in (("bound_m", plan.bound_m), ("hdop", plan.hdop), ("other_bound_m", other.bound_m)):
            shown = cell["properties"][name]
            assert shown == (pytest.approx(value[number], rel=1e-4) if np.isfinite(value[number]) else None)


class Page(HTMLParser):
    """The cells and sources of a page, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_all_and_loads_nothing(report: PlanReport) -> None:
    page = Page(report.page({"a & b": b"\x89PNG1", "c": b"\x89PNG2"}))
    assert page.tags.count("img") == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    # A name is text, whatever it looks like.
    assert "<b>fewer</b>" in page.text
    for sentence in report.sentences():
        assert sentence in page.text
    assert all(site.name in page.text for site in NORTH_WEST_ITALY.sites)
    assert re.findall(r"\{\w*\}", page.text) == []
