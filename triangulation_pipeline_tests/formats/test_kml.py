import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from triangulation_pipeline.formats.kml import write_kml
from triangulation_pipeline_tests.formats.fixed import HOSTILE, LAYOUT, fixes

KML = {"k": "http://www.opengis.net/kml/2.2"}


@pytest.fixture(scope="module")
def document() -> ElementTree.Element:
    file = io.BytesIO()
    whole = fixes(12, transmission_id=[f"{HOSTILE}<![CDATA[", *map(str, range(11))])
    write_kml(file, LAYOUT.network, [whole.take(slice(0, 5)), whole.take(slice(5, None))])
    return ElementTree.fromstring(file.getvalue())


def folders(document: ElementTree.Element) -> dict[str, list[ElementTree.Element]]:
    found = document.findall("k:Document/k:Folder", KML)
    return {folder.findtext("k:name", "", KML): folder.findall("k:Placemark", KML) for folder in found}


def test_each_kind_has_its_folder(document: ElementTree.Element) -> None:
    assert {name: len(placemarks) for name, placemarks in folders(document).items()} == {
        "Receivers": 7,
        "Fixes": 11,  # one has no position
        "Regions, 50 %": 11,
        "Regions, 95 %": 11,
        "Other places": 11,
        "Errors": 10,  # nor is one truth known
    }


def test_ids_and_order_are_those_of_the_schema(document: ElementTree.Element) -> None:
    """OGC 07-147r2: an id is an XML name, and a feature has its name before its styles."""
    ids = [element.get("id", "") for element in document.iter() if "id" in element.attrib]
    assert len(set(ids)) == len(ids) > 50
    assert all(re.fullmatch(r"[A-Za-z_][\w.-]*", each) for each in ids)
    for folder in document.iterfind("k:Document/k:Folder", KML):
        tags = [element.tag.partition("}")[2] for element in folder]
        assert tags == sorted(tags, key=["name", "Style", "Placemark"].index)
    styles = {element.get("id") for element in document.iterfind(".//k:Style", KML)}
    assert {str(element.text).removeprefix("#") for element in document.iterfind(".//k:styleUrl", KML)} == styles


def test_names_are_text_whatever_they_hold(document: ElementTree.Element) -> None:
    fix = folders(document)["Fixes"][0]
    assert fix.findtext("k:name", "", KML) == f"{HOSTILE}<![CDATA[".replace("\x01", "\ufffd")
    assert not {element.tag.partition("}")[2] for element in document.iter()} & {"script", "img"}


def test_places_and_times_are_those_of_the_table(document: ElementTree.Element) -> None:
    table = fixes(12).table.dropna(subset=["latitude"])
    placemarks = folders(document)["Fixes"]
    found = [placemark.findtext("k:Point/k:coordinates", "", KML).split(",")[:2] for placemark in placemarks]
    np.testing.assert_allclose(np.array(found, float), table[["longitude", "latitude"]], atol=1e-7)
    times = [placemark.findtext("k:TimeStamp/k:when", "", KML) for placemark in placemarks]
    assert times == [f"{time[:26]}Z" for time in table["time"]]


def test_regions_are_closed_rings(document: ElementTree.Element) -> None:
    for placemark in folders(document)["Regions, 95 %"]:
        rings = placemark.findall(".//k:outerBoundaryIs//k:coordinates", KML)
        assert len(rings) == 2  # two places
        for ring in rings:
            corners = str(ring.text).split()
            assert corners[0] == corners[-1]
            assert len(corners) > 12
