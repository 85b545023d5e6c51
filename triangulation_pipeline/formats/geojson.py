"""Fixes as GeoJSON (RFC 7946)."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import shapely

from triangulation_pipeline.formats.fixes import ALTERNATIVES, LEVELS, Fixes, rows_of
from triangulation_pipeline.formats.regions import region_polygons, within_180
from triangulation_pipeline.network import ReceiverNetwork

# Degrees have seven decimals, about 1 cm.
_DECIMALS = 7


def write_geojson(file: BinaryIO, network: ReceiverNetwork, chunks: Iterable[Fixes]) -> None:
    """Writes receivers and fixes as a FeatureCollection, one feature a line.

    The property ``kind`` of a feature is ``receiver`` or ``fix`` (a point, null for a transmission without a position),
    ``region`` (a MultiPolygon, with its ``level``), ``alternative`` or ``truth`` (points). All but receivers have the
    ``transmission_id`` and the ``time`` of their fix. A fix has the columns of the table that exist in its row, without
    its places and ``time_ns``. Regions that cross the 180th meridian are split there; exterior rings run anticlockwise.

    Parameters
    ----------
    file : binary file
        Open for writing.
    network : ReceiverNetwork
        The network that measured the fixes.
    chunks : iterable of Fixes
        They are written one after the other, so memory holds one at a time.
    """
    file.write(b'{"type": "FeatureCollection", "features": [\n')
    separator = b""
    for feature in _features(network, chunks):
        # NaN is no JSON, and raises here: what does not exist has been left out.
        file.write(separator + json.dumps(feature, allow_nan=False).encode())
        separator = b",\n"
    file.write(b"\n]}\n")


def _features(network: ReceiverNetwork, chunks: Iterable[Fixes]) -> Iterator[dict[str, Any]]:
    for site in network.sites:
        properties = {"kind": "receiver", "name": site.name, "timing": site.timing.value, "altitude_m": site.altitude_m}
        yield _feature(_point(site.lon, site.lat), properties)
    for chunk in chunks:
        altitude_m = chunk.columns["altitude_m"]
        regions = region_polygons(chunk.positions, network.frame, altitude_m, LEVELS)
        for row, polygons in zip(rows_of(chunk), regions, strict=True):
            yield from _of_fix(row, polygons)


def _of_fix(row: dict[str, Any], polygons: Iterable[shapely.MultiPolygon]) -> Iterator[dict[str, Any]]:
    """The features of one fix."""
    common = {name: row[name] for name in ("transmission_id", "time")}
    places = {"fix": ("longitude", "latitude"), "truth": ("true_longitude", "true_latitude")}
    others = [(f"alternative_{i}.longitude", f"alternative_{i}.latitude") for i in range(1, ALTERNATIVES + 1)]
    # Programs that read JSON numbers as double precision would round the nanoseconds; the time as text has them all.
    used = {"time_ns", *(name for pair in [*places.values(), *others] for name in pair)}
    point = _point(*(row[name] for name in places["fix"])) if places["fix"][0] in row else None
    yield _feature(point, {"kind": "fix"} | {name: value for name, value in row.items() if name not in used})
    for level, region in zip(LEVELS, polygons, strict=True):
        if not region.is_empty:
            yield _feature(_region(region), {"kind": "region", **common, "level": level})
    for number, (lon, lat) in enumerate(others, 1):
        if lon in row:
            probability = row[f"alternative_{number}.probability"]
            yield _feature(_point(row[lon], row[lat]), {"kind": "alternative", **common, "probability": probability})
    if places["truth"][0] in row:
        yield _feature(_point(*(row[name] for name in places["truth"])), {"kind": "truth", **common})


def _feature(geometry: Mapping[str, Any] | None, properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _point(lon: Any, lat: Any) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [round(float(lon), _DECIMALS), round(float(lat), _DECIMALS)]}


def _region(polygons: shapely.MultiPolygon) -> dict[str, Any]:
    """A MultiPolygon of RFC 7946."""
    rounded = shapely.set_precision(within_180(polygons), 10.0**-_DECIMALS)
    outlines = shapely.orient_polygons(shapely.get_parts(rounded))
    coordinates = [
        [np.round(shapely.get_coordinates(ring), _DECIMALS).tolist() for ring in (part.exterior, *part.interiors)]
        for part in outlines
    ]
    return {"type": "MultiPolygon", "coordinates": coordinates}
