"""Network files as people write them, and files that are none."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork
from triangulation_pipeline.network_file import read_network

DOCUMENT = NORTH_WEST_ITALY.model_dump(mode="json", exclude_none=True)
CLOCKS = "timing: Input should be 'gps', 'radarcape_gps', 'beast', 'dump1090' or 'none'"
PLACES = [("a", 45, 7), ("b", 45.2, 7.9), ("c", 44.6, 8.3)]


def sites(*rows: tuple[object, object, object]) -> str:
    """A network file of sites by name, lat and lon, each written as it is."""
    return "name: n\nsites:\n" + "".join(f"  - {{name: {name}, lat: {lat}, lon: {lon}}}\n" for name, lat, lon in rows)


def changed(**first_site: object) -> str:
    document = {"name": "n", "sites": [DOCUMENT["sites"][0] | first_site, *DOCUMENT["sites"][1:]]}
    return yaml.safe_dump(document, allow_unicode=True)


def points(places: list[list[object]], **collection: object) -> str:
    features = [
        {
            "type": "Feature",
            "properties": {"name": f"site {i}", "marker-color": "#fff"},
            "geometry": {"type": "Point", "coordinates": place},
        }
        for i, place in enumerate(places)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features} | collection)


def read(folder: Path, text: str, name: str = "my network.yaml") -> ReceiverNetwork:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_network(path)


def refusal(folder: Path, text: str, name: str = "my network.yaml") -> str:
    with pytest.raises(ValueError, match=r"^network file [^\n]{1,500}$") as caught:
        read(folder, text, name)
    assert str(folder / name) in str(caught.value)
    return str(caught.value)


def test_yaml_round_trip(tmp_path: Path) -> None:
    network = read(tmp_path, yaml.safe_dump(DOCUMENT, allow_unicode=True))
    assert network == NORTH_WEST_ITALY
    assert network.digest == NORTH_WEST_ITALY.digest


def test_numbers_and_names_are_what_was_written(tmp_path: Path) -> None:
    text = "name: NO\nsites:\n  - {name: on, lat: 045, lon: 7, altitude_m: 0250}\n"
    text += "  - {name: 2024-01-01, lat: 45.2, lon: 7.9}\n  - {name: 3:20, lat: 44.6, lon: 8.3}\n"
    network = read(tmp_path, text)
    assert network.name == "NO"
    assert [site.name for site in network.sites] == ["on", "2024-01-01", "3:20"]
    assert (network.sites[0].lat, network.sites[0].altitude_m) == (45, 250)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (changed(name="Torino"), "site names must be unique, repeated: Torino"),
        (changed(lat=45.044, lon=7.672), "sites 'Aquila di Giaveno' and 'Torino' stand on the same spot"),
        (sites(*PLACES[:2]), "a network needs 3 to 500 sites, this one has 2"),
        (changed(lat=95), "site 1 ('Aquila di Giaveno'): lat: Input should be less than or equal to 90 (got 95)"),
        (changed(lat=144.9, lon=-37.8), "(got 144.9); lat and lon look swapped"),
        (changed(lon=float("nan")), "lon: Input should be less than or equal to 180 (got nan)"),
        (
            changed(timing="atomic"),
            f"{CLOCKS} (got 'atomic')",
        ),
        (changed(altitude=3), "('Aquila di Giaveno'): unknown field 'altitude'; meant altitude_m (metres above"),
        (changed(heigth_m=3), "unknown field 'heigth_m'; known are name, lat, lon, altitude_m"),
        (changed(tming="gps"), "unknown field 'tming'; meant timing?"),
        (changed(lat="-37,829"), "(got '-37,829'); write -37.829"),
        (changed(lat="45 N"), "unable to parse string as a number (got '45 N')"),
        (
            sites(("a", "-37,829", 7), *PLACES),
            "the name of a field must be a word, got 829; a decimal has a point",
        ),
        (sites(("a", 45, "yes"), *PLACES[1:]), "site 1 ('a'): lon: Input should be a valid number"),
        (sites(("a", 45, "true"), *PLACES[1:]), "site 1 ('a'): lon: must be a number or a text, not true or false"),
        (sites(("true", 45, 7), *PLACES[1:]), "site 1: name: must be a number or a text, not true or false"),
        (sites(("a", "1:02", 7), *PLACES[1:]), "unable to parse string as a number (got '1:02')"),
        (changed(gain_offset_db=False), "gain_offset_db: must be a number or a text, not true or false"),
        (sites(("'a '", 45, 7), *PLACES[1:]), "site 1: name must not begin or end with a blank, got 'a '"),
        (sites(('"a\\x1b[2J"', 45, 7), *PLACES[1:]), "name must not hold control characters, has \\x1b in place 2"),
        (sites(('"a\\u202eb"', 45, 7), *PLACES[1:]), "name must not hold control characters, has \\u202e in place 2"),
        (sites(*PLACES).replace("name: n", "name: 'n '"), ".yaml: name must not begin or end with a blank, got 'n '"),
        (sites(*PLACES).replace("name: n", 'name: "a\\nb"'), "name must not hold control characters, has \\n"),
        (yaml.safe_dump({"sites": DOCUMENT["sites"]}), "must have the keys 'name' and 'sites'"),
        ("name: n\nsites:\n  a: {lat: 1}\n", "'sites' must be a list: begin each site with a dash"),
        ("name: n\nsites: none\n", "'sites' must be a list of sites, it is a text of 4 characters"),
        ("name: n\nsites: [1]\n", "site 1 must have the fields name, lat and lon, it is a number"),
        (
            "name: n\nsites: [{name: a, lat: 45, lon: 7}, x]\n",
            "site 2 must have the fields name, lat and lon, it is a text",
        ),
        ("name: n\nsites: [null]\n", "site 1 must have the fields name, lat and lon, it is empty"),
        ("name: n\nsites: true\n", "'sites' must be a list of sites, it is true"),
        ("name: n\nsites: false\n", "'sites' must be a list of sites, it is false"),
        ("name: n\nsites: 7\n", "'sites' must be a list of sites, it is a number"),
        ("name: n\nsites:\n", "'sites' must be a list of sites, it is empty"),
        ("name: n\n", "(`triangulation network` prints one); sites is missing"),
        ("sites: []\n", "(`triangulation network` prints one); name is missing"),
        ("{}", "; sites is missing"),
        ("type: Topology\n", "; GeoJSON must be a FeatureCollection of points"),
        ("type: GeometryCollection\n", "; GeoJSON must be a FeatureCollection of points"),
        (sites(("' a'", 45, 7), *PLACES[1:]), "site 1: name must not begin or end with a blank, got ' a'"),
        (sites(*PLACES[:2], ("'c '", 44.6, 8.3)), "site 3: name must not begin or end with a blank, got 'c '"),
        (sites(*PLACES[:2], ("c", "44 N", 8.3)), "site 3 ('c'): lat: Input should be a valid number"),
        (sites(*PLACES).replace("lat: 45.2, ", ""), "site 2 ('b'): lat is missing"),
        (sites(*PLACES).replace("name: b, ", ""), "site 2: name is missing"),
        (sites(("a", "'+45,1'", 7), *PLACES[1:]), "(got '+45,1'); write +45.1"),
        (sites(("a", "' 45,1 '", 7), *PLACES[1:]), "; write 45.1"),
        (sites(("a", "'45,1,2'", 7), *PLACES[1:]), "unable to parse string as a number (got '45,1,2')"),
        (changed(lat=-144.9), "(got -144.9); lat and lon look swapped"),
        (changed(lat=180), "(got 180); lat and lon look swapped"),
        (changed(lon=-181), "lon: Input should be greater than or equal to -180 (got -181)"),
        (changed(altitude_m=9001), "altitude_m: Input should be less than or equal to 9000 (got 9001)"),
        (changed(timing="abcdefghijklm_90"), "(got 'abcdefghijklm_90')"),
        (changed(timing="abcdefghijklm_901"), "(got a text of 17 characters)"),
        (
            changed(timing=None),
            f"{CLOCKS} (got empty)",
        ),
        (changed(timing=7), f"{CLOCKS} (got 7)"),
        (changed(lat="1" * 24 + "N"), "(got a text of 25 characters)"),
        (changed(lat="1" * 23 + "N"), f"(got '{'1' * 23}N')"),
        (changed(lat=[1, 2]), "lat: Input should be a valid number (got a list of 2)"),
        (changed(ELEVATION=3), "unknown field 'ELEVATION'; meant altitude_m (metres above the ellipsoid)?"),
        (changed(altitudem=3), "unknown field 'altitudem'; meant altitude_m (metres above the ellipsoid)?"),
        (changed(latitude=3), "unknown field 'latitude'; meant lat?"),
        (changed(LONGITUD=3), "unknown field 'LONGITUD'; meant lon?"),
        (changed(place=3), "unknown field 'place'; known are name, lat, lon, altitude_m, timing, noise_figure_db, "),
        (changed(**{"$lat": 3}), "unknown field; meant lat?"),
        ("- a\n- b\n", "; it is a list of 2"),
        ("", "; it is empty"),
        ("ops: {trained_model: {config: {epochs: 3}}}\n", "; it looks like run config, which belongs to --config"),
        ("name: n\nsites:\n  - {name: a,\n", "not valid YAML: line 4, column 1: "),
        (
            "name: n\nsites:\n  - name: a\n    lat: 45\n    lon: 7\n    name: b\n    lat: 46\n    lon: 8\n",
            "'name' is written twice, lines 3 and 6",
        ),
        (
            sites(*PLACES, ("d", 8.9, 44.4)),
            "site 'd' (lat 8.9, lon 44.4) lies 5,139 km from the middle of the others, most of which are within 89 km "
            "of it; lat and lon look swapped",
        ),
        (sites(*PLACES, ("d", 0, 0)), "lat and lon 0 look as if they were never filled in"),
        (sites(*PLACES, ("d", -44.9, 7.5)), "the sign of lat looks wrong"),
        (sites(*PLACES, ("d", 44.9, -7.5)), "the sign of lon looks wrong"),
        (sites(("a", 40, 0), ("b", 40, 50), ("c", 40, 25)), "sites must lie within 2,000 km of their middle"),
    ],
)
def test_a_bad_description_is_refused_with_the_way_out(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refusal(tmp_path, text)


def test_three_faults_are_told_and_how_many_more_there_are(tmp_path: Path) -> None:
    for faults, end in ((3, "look swapped"), (4, "look swapped; and 1 more"), (8, "look swapped; and 5 more")):
        bad = [(f"s{i}", 95 + i, 7) for i in range(faults)]
        told = refusal(tmp_path, sites(*bad))
        assert told.count("site ") == 3
        assert told.endswith(end)
        assert "site 1 ('s0'): lat: Input should be less than or equal to 90 (got 95); " in told
        assert "site 3 ('s2'): lat: Input should be less than or equal to 90 (got 97); " in told


@pytest.mark.parametrize("name", ["X.JSON", "x.GeoJSON", "x.json"])
def test_json_is_known_by_the_ending_of_the_name(tmp_path: Path, name: str) -> None:
    text = json.dumps(DOCUMENT)
    assert read(tmp_path, text, name) == NORTH_WEST_ITALY
    assert "line 1, column 1: Expecting value" in refusal(tmp_path, sites(*PLACES), name)


def test_csv(tmp_path: Path) -> None:
    text = 'name,lat,lon,altitude_m,timing\r\na,45,7,100,gps\r\nb,45.2,7.9,,none\r\n\r\n"c, d",44.6,8.3,30,beast\r\n'
    network = read(tmp_path, "\ufeff" + text, "my sites.csv")
    assert network.name == "my sites"
    assert [site.name for site in network.sites] == ["a", "b", "c, d"]
    assert [site.altitude_m for site in network.sites] == [100, 0, 30]
    assert network.has_timing.tolist() == [True, False, True]
    other = "Name;Latitude;Longitude\na;45;7\nb;45.2;7.9\nc;44.6;8.3\n"
    assert [site.lon for site in read(tmp_path, other, "x.csv").sites] == [7, 7.9, 8.3]
    for name in ("lng", "long", "LON", " lon "):
        tabs = f"name\tlat\t{name}\n a \t45\t 7\n\t \t\nb, c\t45.2\t7.9\nd\t44.6\t8.3\n"
        assert [(site.name, site.lon) for site in read(tmp_path, tabs, "X.CSV").sites] == [
            ("a", 7),
            ("b, c", 7.9),
            ("d", 8.3),
        ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,lat,lon,altitude\n", "unknown column 'altitude'; meant altitude_m (metres above the ellipsoid)?"),
        ("name,lat,lon,lat\n", "the column lat appears twice"),
        ("name,lat,latitude,lon\n", "the column lat appears twice"),
        ("SECRET:x:0:0\n", "the first line of a CSV must name the columns name, lat and lon; name is missing"),
        ("name,lat,lon\na,45\n", "line 2 has 2 fields, the first line 3"),
        ('name,lat,lon\n"SECRET,45,7\n', "it cannot be read as CSV"),
        ("name;lat;lon\na;45,1;7,5\n", "(got '45,1'); write 45.1"),
        ("name,lat,lon\n", "a network needs 3 to 500 sites, this one has 0"),
        ("", "name is missing"),
        ("name,lon\n", "must name the columns name, lat and lon; lat is missing"),
        ("name,lat\n", "must name the columns name, lat and lon; lon is missing"),
        ("name,lat,lon\na,45,7\n\nb,45,7,1\n", "line 4 has 4 fields, the first line 3"),
        ("name,lat,lon,timing,timing\n", "the column timing appears twice"),
        ("name,lat,lon,tming\n", "unknown column 'tming'; meant timing?"),
        ("name,lat,lon\na,45,\nb,45.2,7.9\nc,44.6,8.3\n", "site 1 ('a'): lon is missing"),
    ],
    ids=range(15),
)
def test_bad_csv(tmp_path: Path, text: str, sentence: str) -> None:
    told = refusal(tmp_path, text, "sites.csv")
    assert sentence in told
    assert "SECRET" not in told


def test_geojson(tmp_path: Path) -> None:
    text = points([[7, 45, 100], [7.9, 45.2, 0], [8.3, 44.6]])
    for name in ("my sites.geojson", "my sites.json", "my sites.yaml"):
        network = read(tmp_path, text, name)
        assert network.name == "my sites"
        assert [(site.name, site.lat, site.lon, site.altitude_m) for site in network.sites] == [
            ("site 0", 45, 7, 100),
            ("site 1", 45.2, 7.9, 0),
            ("site 2", 44.6, 8.3, 0),
        ]
    assert read(tmp_path, points([[7, 45], [7.9, 45.2], [8.3, 44.6]], name="alps"), "x.geojson").name == "alps"
    for no_name in ("", 7, None):
        assert read(tmp_path, points([[7, 45], [7.9, 45.2], [8.3, 44.6]], name=no_name), "x.geojson").name == "x"
    # The third coordinate may also be a property, with the same value.
    both = points([[7, 45, 3], [7.9, 45.2, 3], [8.3, 44.6, 3]]).replace('"marker-color": "#fff"', '"altitude_m": 3')
    assert [site.altitude_m for site in read(tmp_path, both, "x.geojson").sites] == [3, 3, 3]


def test_properties_of_geojson_are_taken_in_any_case(tmp_path: Path) -> None:
    text = points([[7, 45], [7.9, 45.2], [8.3, 44.6]])
    text = text.replace('"name"', '"Name"').replace('"marker-color": "#fff"', '"TIMING": "none", "Altitude_m": 1500')
    network = read(tmp_path, text, "sites.geojson")
    assert [(site.name, site.altitude_m) for site in network.sites] == [(f"site {i}", 1500) for i in range(3)]
    assert not network.has_timing.any()
    both = points([[7, 45], [7.9, 45.2], [8.3, 44.6]]).replace('{"name"', '{"NAME": "another", "name"')
    assert [site.name for site in read(tmp_path, both, "sites.geojson").sites] == ["site 0", "site 1", "site 2"]


@pytest.mark.parametrize(
    "name", ["urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:EPSG::4326", "EPSG:4326", "CRS84", "CRS:84"]
)
def test_geojson_in_wgs84_says_so_in_many_ways(tmp_path: Path, name: str) -> None:
    crs = {"type": "name", "properties": {"name": name}}
    read(tmp_path, points([[7, 45], [7.9, 45.2], [8.3, 44.6]], crs=crs), "sites.geojson")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (points([[45], [7, 45]]), "feature 1: the coordinates of a point must be [lon, lat] or [lon, lat, altitude]"),
        (points([["SECRET", 45], [7.9, 45.2], [8.3, 44.6]]), "lon: Input should be a valid number"),
        (points([]).replace("Point", "Polygon"), "a network needs 3 to 500 sites, this one has 0"),
        (points([[7, 45]]).replace("Point", "Polygon"), "feature 1 is not a point"),
        (
            points([[7, 45]]).replace("marker-color", "elevation"),
            "feature 1: unknown property 'elevation'; meant",
        ),
        (
            points([[7, 45, 3]]).replace('"marker-color": "#fff"', '"altitude_m": 4'),
            "altitude_m and the third",
        ),
        (points([[7, 45, 100, 0], [7, 45]]), "feature 1: the coordinates of a point must be [lon, lat] or"),
        (points([[7, 45]]).replace("[7, 45]", '"SECRET"'), "feature 1: the coordinates of a point must be [lon, lat]"),
        (points([[7, 45]]).replace("marker-color", "Height"), "feature 1: unknown property 'Height'; meant altitude_m"),
        (points([[7, 45]]).replace('"name"', '"title"'), "site 1: name is missing"),
        ('{"type": "FeatureCollection", "features": [7]}', "feature 1 is not a point"),
        ('{"type": "FeatureCollection", "features": [{"geometry": null}]}', "feature 1 is not a point"),
        (
            points([[7, 45], [8, 45]]).replace('"properties": {"name": "site 1", "marker-color": "#fff"}', '"a": 1'),
            "site 2: name is missing",
        ),
        ('{"type": "FeatureCollection", "features": {"SECRET": 1}}', "must have a list of 'features'"),
        (points([[7, 45]], crs={"properties": "SECRET"}), "must be WGS-84 degrees"),
        (points([[7, 45]], crs={"properties": {"name": 4326}}), "must be WGS-84 degrees"),
        (points([[7, 45]], crs={"properties": {"name": "MYEPSG:4326"}}), "must be WGS-84 degrees"),
        ('{"type": "FeatureCollection"}', "the FeatureCollection must have a list of 'features'"),
        ('{"type": "Feature", "geometry": null}', "GeoJSON must be a FeatureCollection of points"),
        ('{"name": "a", "name": "b"}', "'name' is written twice in one object"),
        (f'{{"name": {"9" * 5000}, "sites": []}}', "whole numbers have at most 20 digits"),
        (points([[7, 45]], crs={"properties": {"name": "urn:ogc:def:crs:EPSG::4230"}}), "must be WGS-84 degrees"),
        (points([[7, 45]], crs={"properties": {"name": "EPSG:43260 SECRET"}}), "must be WGS-84 degrees"),
        (points([[7, 45]], crs="SECRET"), "must be WGS-84 degrees"),
    ],
    ids=range(24),
)
def test_bad_geojson(tmp_path: Path, text: str, sentence: str) -> None:
    told = refusal(tmp_path, text, "sites.geojson")
    assert sentence in told
    assert "SECRET" not in told


@pytest.mark.parametrize(
    "name", ["altitude", "alt", "alt_m", "elevation", "ele", "height", "height_m", "altitude_ft", "Elevation"]
)
def test_other_altitudes_are_refused_in_every_format(tmp_path: Path, name: str) -> None:
    """They may be in another unit or over another zero, and would be left out without a word."""
    meant = f"{name!r}; meant altitude_m (metres above the ellipsoid)?"
    places = points([[7, 45], [7.9, 45.2], [8.3, 44.6]]).replace("marker-color", name)
    assert f"feature 1: unknown property {meant}" in refusal(tmp_path, places, "x.geojson")
    table = f"name,lat,lon,{name}\na,45,7,1\nb,45.2,7.9,1\nc,44.6,8.3,1\n"
    assert f"unknown column {meant.lower()}" in refusal(tmp_path, table, "x.csv").lower()
    assert f"site 1 ('Aquila di Giaveno'): unknown field {meant}" in refusal(tmp_path, changed(**{name: 1}))


SECRETS = {
    "kubeconfig": "apiVersion: v1\nusers:\n- name: admin\n  user: {token: SECRET, client-key-data: SECRET}\n",
    "config.json": json.dumps({"auths": {"registry.example.com": {"auth": "SECRET"}}}),
    "service-account.json": json.dumps({"type": "service_account", "private_key": "-----BEGIN SECRET"}),
    "credentials": "[default]\naws_access_key_id = SECRET\naws_secret_access_key = SECRET\n",
    "shadow": "root:$y$j9T$SECRET:19000:0:99999:7:::\nann:$y$j9T$SECRET:19000:0:99999:7:::\n",
    "environ": "A=SECRET\0B=SECRET\0",
    "settings.yaml": "database: {password: SECRET}\nname: SECRET\n",
    "token": "SECRET",
    "list.yaml": "[SECRET, SECRET]",
    "sites.yaml": "name: n\nsites: SECRET",
    "lats.yaml": sites(("a", "SECRET", "'very SECRET'"), *PLACES),
    "keys.yaml": "name: n\nsites: [{name: a, lat: 1, lon: 2, 'my$SECRET': SECRET}]\n",
    "lists.yaml": "name: n\nsites: [{name: a, lat: [SECRET], lon: {a: SECRET}}]\n",
    "top.yaml": sites(*PLACES) + "password: SECRET\n",
    "secret.csv": "user,password\nann,SECRET\n",
    "rows.csv": "name,lat,lon\na,SECRET,7\n",
}


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_message_holds_what_a_file_holds(tmp_path: Path, name: str) -> None:
    assert "SECRET" not in refusal(tmp_path, SECRETS[name], name)


def test_a_foreign_file_of_any_size_is_a_short_sentence(tmp_path: Path) -> None:
    """600 kB of map data, 10,000 sites, and 20,000 unknown fields."""
    ring: list[Any] = [[7.0 + i * 1e-6, 45.0] for i in range(25_000)]
    collection = points([[7, 45]]).replace('"Point"', '"Polygon"').replace("[7, 45]", json.dumps([ring]))
    assert "feature 1 is not a point" in refusal(tmp_path, collection, "map.geojson")
    many = json.dumps({"name": "n", "sites": [{"name": "a", "lat": "x", "lon": None}] * 10_000})
    assert len(refusal(tmp_path, many, "many.json")) < 600
    fields = json.dumps({"name": "n", "sites": [{f"field{i}": "x" * 20 for i in range(20_000)}]})
    assert len(refusal(tmp_path, fields, "fields.json")) < 600


def test_the_home_of_the_user_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sites.yaml").write_text(sites(*PLACES))
    assert len(read_network("~/sites.yaml").sites) == 3
    with pytest.raises(ValueError, match=r"network file .~no-such-user/x.: there is no user of that name"):
        read_network("~no-such-user/x")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network file .*none\.yaml does not exist"):
        read_network(tmp_path / "none.yaml")
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"broken\.yaml cannot be read: byte 1 is not UTF-8 text"):
        read_network(path)
