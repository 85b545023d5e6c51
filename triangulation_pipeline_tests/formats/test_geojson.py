import io
import json
from typing import Any

import geojson
import numpy as np
import pytest
import shapely

from triangulation_pipeline.formats.fixes import Fixes
from triangulation_pipeline.formats.geojson import write_geojson
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline_tests.formats.fixed import HOSTILE, LAYOUT, fixes, moved


def written(layout: Layout, *chunks: Fixes) -> dict[str, Any]:
    file = io.BytesIO()
    write_geojson(file, layout.network, chunks)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    document: dict[str, Any] = json.loads(file.getvalue(), parse_constant=refuse)
    return document


def of_kind(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [feature for feature in document["features"] if feature["properties"]["kind"] == kind]


def test_others_read_it_and_find_it_valid() -> None:
    whole = fixes(12)
    document = written(LAYOUT, whole.take(slice(0, 5)), whole.take(slice(5, None)))
    read = geojson.loads(json.dumps(document))
    assert read.is_valid, read.errors()
    assert [len(of_kind(document, kind)) for kind in ("receiver", "fix", "region", "alternative", "truth")] == [
        7,
        12,
        22,  # two levels of all but the one without a position
        11,
        11,
    ]
    assert document == written(LAYOUT, whole)


def test_a_fix_has_what_the_table_has() -> None:
    whole = fixes(12, transmission_id=[HOSTILE, *map(str, range(11))])
    document = written(LAYOUT, whole)
    first, third = (of_kind(document, "fix")[row] for row in (0, 2))
    row = whole.table.iloc[0]
    assert first["geometry"]["coordinates"] == pytest.approx([row["longitude"], row["latitude"]], abs=1e-7)
    assert first["properties"]["transmission_id"] == HOSTILE
    assert first["properties"]["time"] == row["time"]
    assert first["properties"]["error_m"] == pytest.approx(30, abs=0.5)
    assert third["geometry"] is None
    assert third["properties"]["flags"] == "no_position"
    assert "error_m" not in third["properties"]


def test_rings_turn_right_and_hold_the_place() -> None:
    document = written(LAYOUT, fixes(12))
    points = {feature["properties"]["transmission_id"]: feature["geometry"] for feature in of_kind(document, "fix")}
    for feature in of_kind(document, "region"):
        region = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert region.is_valid
        for part in region.geoms:
            assert part.exterior.is_ccw
            assert not any(ring.is_ccw for ring in part.interiors)
        assert region.contains(shapely.Point(points[feature["properties"]["transmission_id"]]["coordinates"]))


@pytest.mark.parametrize("lon", [180.0, -179.95])
def test_nothing_crosses_the_180th_meridian(lon: float) -> None:
    layout = moved(-17.0, lon)
    document = written(layout, fixes(40, layout))
    assert geojson.loads(json.dumps(document)).is_valid
    places = np.array([feature["geometry"]["coordinates"] for feature in of_kind(document, "truth")])
    assert places[:, 0].min() < -179
    assert places[:, 0].max() > 179
    for feature in of_kind(document, "region"):
        for polygon in feature["geometry"]["coordinates"]:
            corner_lon = np.array(polygon[0])[:, 0]
            assert np.abs(corner_lon).max() <= 180
            assert np.ptp(corner_lon) < 1


def test_no_fixes_are_a_collection_of_receivers() -> None:
    document = written(LAYOUT)
    assert [feature["properties"]["name"] for feature in document["features"]] == [
        site.name for site in LAYOUT.network.sites
    ]
