"""The file that describes a network: YAML as `triangulation network` prints it, CSV with one line per site, or GeoJSON
points.

The person who starts a run sees the messages, and may have named any file of the machine. So a message quotes only
names of fields, names of sites, and numbers.
"""

import csv
import difflib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from triangulation_pipeline.documents import file_name, is_name, parse_json, parse_yaml, read_text
from triangulation_pipeline.network import ReceiverNetwork, Site
from triangulation_pipeline.validation import expanded, printable, shown

_FIELDS = tuple(Site.model_fields)
# Other names of coordinates in files of this kind.
_ALIASES = {"latitude": "lat", "longitude": "lon", "lng": "lon", "long": "lon"}
# Names that look like our field but may have another unit or another zero.
_ALTITUDES = {"altitude", "alt", "alt_m", "elevation", "ele", "height", "height_m", "altitude_ft"}


def read_network(path: str | Path) -> ReceiverNetwork:
    """Reads a file that describes a network.

    The ending of the name tells CSV and JSON; every other file is YAML. GeoJSON is recognised by its content.

    Parameters
    ----------
    path : str or Path
        The file; ``~`` is replaced by the home folder.

    Returns
    -------
    ReceiverNetwork

    Raises
    ------
    ValueError
        With one sentence that names the file, the site, the field and what would be right.
    """
    try:
        path = expanded(path)
        text = read_text(path)
    except ValueError as error:
        raise ValueError(f"network file {error}") from None
    document: Any = None
    try:
        document = _parsed(text, path)
        _check_form(document)
        return ReceiverNetwork.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"network file {file_name(path)}: {_sentence(error, document)}") from None
    except ValueError as error:
        raise ValueError(f"network file {file_name(path)}: {error}") from None


def _parsed(text: str, path: Path) -> Any:
    if path.suffix.lower() == ".csv":
        return _from_csv(text, path.stem)
    document = parse_json(text) if path.suffix.lower() in {".json", ".geojson"} else parse_yaml(text)
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        return _from_geojson(document, path.stem)
    return document


def _check_form(document: Any) -> None:
    """Raises ValueError if the document is not a network at all, and says what it seems to be."""
    if isinstance(document, dict) and {"name", "sites"} <= document.keys():
        _check_blanks("", document)
        sites = document["sites"]
        if isinstance(sites, Mapping):
            raise ValueError("'sites' must be a list: begin each site with a dash, as in '- name: Hilltop'")
        if not isinstance(sites, list):
            raise ValueError(f"'sites' must be a list of sites, it is {_kind(sites)}")
        for number, site in enumerate(sites, 1):
            if not isinstance(site, Mapping):
                raise ValueError(f"site {number} must have the fields name, lat and lon, it is {_kind(site)}")
            _check_blanks(f"site {number}: ", site)
        return
    if not isinstance(document, dict):
        seems = f"; it is {_kind(document)}"
    elif "ops" in document:
        seems = "; it looks like run config, which belongs to --config"
    elif document.get("type") in ("Feature", "Topology", "GeometryCollection"):
        seems = "; GeoJSON must be a FeatureCollection of points"
    else:
        seems = f"; {'name' if 'sites' in document else 'sites'} is missing"
    raise ValueError(f"a network must have the keys 'name' and 'sites' (`triangulation network` prints one){seems}")


def _check_blanks(where: str, named: Mapping[str, Any]) -> None:
    if isinstance(name := named.get("name"), str) and name != name.strip():
        raise ValueError(f"{where}name must not begin or end with a blank, got {shown(name)}")


def _from_csv(text: str, name: str) -> dict[str, Any]:
    """The document of a table with one line per site; an empty field is left out."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        raise ValueError("it cannot be read as CSV: its quotes do not match, or a field is too long") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    names = [_ALIASES.get(cell, cell) for cell in header]
    if missing := [field for field in ("name", "lat", "lon") if field not in names]:
        raise ValueError(f"the first line of a CSV must name the columns name, lat and lon; {missing[0]} is missing")
    for column in names:
        if column not in _FIELDS:
            raise ValueError(_unknown("column", column))
        if names.count(column) > 1:
            raise ValueError(f"the column {column} appears twice")
    sites = []
    for line, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(names):
            raise ValueError(f"line {line} has {len(row)} fields, the first line {len(names)}")
        sites.append({field: cell.strip() for field, cell in zip(names, row, strict=True) if cell.strip()})
    return {"name": name, "sites": sites}


def _from_geojson(collection: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The document of a collection of points: their properties are the fields of sites, their coordinates the place."""
    features = collection.get("features")
    if not isinstance(features, list):
        raise ValueError("the FeatureCollection must have a list of 'features'")
    if not _is_wgs84(collection.get("crs")):
        raise ValueError("the coordinates of GeoJSON must be WGS-84 degrees, its 'crs' names another system")
    sites = []
    for number, feature in enumerate(features, 1):
        geometry = feature.get("geometry") if isinstance(feature, Mapping) else None
        if not isinstance(geometry, Mapping) or geometry.get("type") != "Point":
            raise ValueError(f"feature {number} is not a point; GeoJSON must be a FeatureCollection of points")
        place = geometry.get("coordinates")
        if not isinstance(place, list) or len(place) not in {2, 3}:
            raise ValueError(f"feature {number}: the coordinates of a point must be [lon, lat] or [lon, lat, altitude]")
        site: dict[str, Any] = {"lon": place[0], "lat": place[1]}
        properties = feature.get("properties")
        known = properties.items() if isinstance(properties, Mapping) else ()
        # Upper and lower case are alike, as in CSV: otherwise a field would silently get its default.
        for field, value in sorted(known, key=lambda item: item[0] not in _FIELDS):
            ours = field.strip().lower()
            if ours in _FIELDS and ours not in site:
                site[ours] = value
            elif ours in _ALTITUDES:
                raise ValueError(f"feature {number}: {_unknown('property', field)}")
        if len(place) == 3 and site.setdefault("altitude_m", place[2]) != place[2]:
            raise ValueError(f"feature {number}: altitude_m and the third coordinate differ; leave one out")
        sites.append(site)
    given = collection.get("name")
    return {"name": given if isinstance(given, str) and given else name, "sites": sites}


def _is_wgs84(crs: object) -> bool:
    """Whether the reference system of old GeoJSON (its rare member ``crs``) is that of all GeoJSON, WGS-84."""
    if crs is None:
        return True
    properties = crs.get("properties") if isinstance(crs, Mapping) else None
    name = properties.get("name") if isinstance(properties, Mapping) else None
    return isinstance(name, str) and re.search(r"\b(CRS:?84|EPSG:+4326)$", name) is not None


def _sentence(error: ValidationError, document: Mapping[str, Any]) -> str:
    """The findings of pydantic on a network, in words for a person who looks at the file."""
    faults = error.errors(include_url=False)
    parts = [_fault(item, document) for item in faults[:3]]
    if len(faults) > 3:
        parts.append(f"and {len(faults) - 3:,} more")
    return " ".join("; ".join(parts).split())


def _fault(item: Any, document: Mapping[str, Any]) -> str:
    loc = [part for part in item["loc"] if part != "sites"]
    where = ""
    if loc and isinstance(loc[0], int):
        where = f"site {loc[0] + 1}{_called(document['sites'][loc[0]])}: "
        loc = loc[1:]
    field = str(loc[0]) if loc else ""
    message = str(item["msg"]).removeprefix("Value error, ")
    match item["type"]:
        case "extra_forbidden":
            return where + _unknown("field", field)
        case "missing":
            return f"{where}{field} is missing"
        case "value_error":
            return f"{where}{field} {message}" if field else where + message
    value = item["input"]
    help_ = ""
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+,\d+\s*", value):
        help_ = f"; write {value.strip().replace(',', '.')}"
    elif field == "lat" and isinstance(value, int | float) and 90 < abs(value) <= 180:
        help_ = "; lat and lon look swapped"
    return f"{where}{field}: {message} (got {_got(field, value)}){help_}"


def _called(site: Mapping[str, Any]) -> str:
    name = site.get("name")
    return f" ({printable(repr(name[:60]))})" if isinstance(name, str) and name else ""


def _unknown(what: str, name: str) -> str:
    """The message on a name that no field has."""
    close = [_ALIASES.get(known, known) for known in difflib.get_close_matches(name.lower(), (*_FIELDS, *_ALIASES), 1)]
    shown_name = f" {name!r}" if is_name(name) else ""
    if name.lower() in _ALTITUDES or close == ["altitude_m"]:
        return f"unknown {what}{shown_name}; meant altitude_m (metres above the ellipsoid)?"
    return f"unknown {what}{shown_name}; " + (f"meant {close[0]}?" if close else f"known are {', '.join(_FIELDS)}")


def _got(field: str, value: object) -> str:
    """A value of a file for a message: a number or an attempt at one, or a word in place of a choice; for anything else
    only its kind."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return shown(value)
    pattern = "[A-Za-z0-9_]{1,16}" if field == "timing" else "[-+0-9.,:°' NSEWnsew]{1,24}"
    return printable(repr(value)) if isinstance(value, str) and re.fullmatch(pattern, value) else _kind(value)


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, str):
        return f"a text of {len(value):,} characters"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number"
    return shown(value)
