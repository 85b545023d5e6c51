"""Fixes as a map: one HTML file that needs no network."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from triangulation_pipeline.formats.fixes import ALTERNATIVES, FLAGS, LEVELS, Fixes
from triangulation_pipeline.formats.regions import region_polygons
from triangulation_pipeline.network import ReceiverNetwork, Timing

MOST_FIXES = 20_000
"""A map holds so many transmissions, the first of the file."""
MOST_REGIONS = 2_000
"""So many fixes of a map have their exact regions, the others ellipses."""

_FOLDER = files("triangulation_pipeline") / "formats"
# Leaflet as it was published; its licence stands beside it.
_LEAFLET = "leaflet"
_REGION_DECIMALS = 6


def write_map(file: BinaryIO, network: ReceiverNetwork, chunks: Iterable[Fixes], further: int = 0) -> None:
    """Writes a page with a map of receivers, fixes, regions, other possible places and errors, and a slider of time.

    Data and scripts are inside the page, which loads nothing but, if a person asks for it there, the street map of
    openstreetmap.org. Its policy lets no script run but its own two, whatever stands in names.

    Parameters
    ----------
    file : binary file
        Open for writing.
    network : ReceiverNetwork
        The network that measured the fixes.
    chunks : iterable of Fixes
        The first ``MOST_FIXES`` of them are shown; the page says how many are left out.
    further : int
        So many fixes that are not among the chunks are left out too.
    """
    held: list[Fixes] = []
    shown, left_out = 0, further
    for chunk in chunks:
        kept = chunk.take(slice(0, MOST_FIXES - shown))
        held.append(kept)
        shown, left_out = shown + len(kept), left_out + len(chunk) - len(kept)
    data = _page_data(network, held) | {"shown": shown, "left_out": left_out}
    texts = {
        name: (_FOLDER / path).read_text(encoding="utf-8")
        for name, path in {
            "page": "map/page.html",
            "map_css": "map/map.css",
            "map_js": "map/map.js",
            "leaflet_css": f"{_LEAFLET}/leaflet.css",
            "leaflet_js": f"{_LEAFLET}/leaflet.js",
            "licence": f"{_LEAFLET}/LICENSE",
        }.items()
    }
    policy = (
        f"default-src 'none'; script-src {_hashes(texts['leaflet_js'], texts['map_js'])}; "
        f"style-src {_hashes(texts['leaflet_css'], texts['map_css'])}; img-src data: https://tile.openstreetmap.org"
    )
    texts |= {"policy": policy, "title": escape(f"Fixes of {network.name}"), "data": _json_in_html(data)}
    # In one pass, so that a name which looks like a placeholder stays a name.
    file.write(re.sub(r"\{\{(\w+)\}\}", lambda match: texts[match[1]], texts["page"]).encode())


def _hashes(*texts: str) -> str:
    """The sources of a content security policy that allow these very texts."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _json_in_html(value: Any) -> str:
    """JSON for a script element: without a character that could end the element or begin a comment in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page_data(network: ReceiverNetwork, chunks: list[Fixes]) -> dict[str, Any]:
    """What the page's script reads. Fixes stand in the order of time, one list for each property."""
    columns = pd.concat([chunk.table for chunk in chunks], ignore_index=True) if chunks else pd.DataFrame()
    located = np.flatnonzero(columns["latitude"].notna()) if chunks else np.zeros(0, np.int64)
    order = located[np.argsort(columns["time_ns"].to_numpy()[located], kind="stable")] if chunks else located
    heard = np.concatenate([np.zeros((0, len(network.sites)), bool), *(chunk.heard for chunk in chunks)])
    return {
        "receivers": [
            {
                "name": site.name,
                "lat": site.lat,
                "lon": float(_unwrapped(network, np.array(site.lon))),
                "altitude_m": site.altitude_m,
                "timed": site.timing is not Timing.none,
            }
            for site in network.sites
        ],
        "levels": LEVELS,
        "flags": FLAGS,
        "without_position": len(columns) - len(order),
        "ellipses": max(0, len(order) - MOST_REGIONS),
        "regions": _regions(network, chunks, order),
        **_fix_columns(network, columns.iloc[order], heard[order]),
    }


def _fix_columns(network: ReceiverNetwork, table: pd.DataFrame, heard: NDArray[np.bool_]) -> dict[str, Any]:
    if table.empty:
        empty: list[Any] = []
        names = "id time seconds lat lon turn probability others flags heard hdop error true_lat true_lon"
        return {"start_s": 0, "fixes": dict.fromkeys(names.split(), empty) | {"axes": [[], []]}}

    def numbers(name: str, decimals: int) -> list[float | None]:
        return _listed(table[name].to_numpy(np.float64), decimals)

    def unwrapped(name: str) -> list[float | None]:
        return _listed(_unwrapped(network, table[name].to_numpy(np.float64)), 6)

    time_ns = table["time_ns"].to_numpy(np.int64)
    others: list[list[Any]] = [[] for _ in range(len(table))]
    for k in range(1, ALTERNATIVES + 1):
        of_rows = zip(
            unwrapped(f"alternative_{k}.longitude"),
            numbers(f"alternative_{k}.latitude", 6),
            numbers(f"alternative_{k}.probability", 4),
            strict=True,
        )
        for row, other in enumerate(of_rows):
            if other[0] is not None:
                others[row].append(other)
    heard_by: list[list[Any]] = [[] for _ in range(len(table))]
    for number, site in enumerate(network.sites):
        weight, residual_ns = numbers(f"{site.name}.weight", 3), numbers(f"{site.name}.residual_ns", 0)
        for row in np.flatnonzero(heard[:, number]).tolist():
            heard_by[row].append([number, weight[row], residual_ns[row]])
    fixes = {
        "id": table["transmission_id"].tolist(),
        "time": table["time"].tolist(),
        "seconds": ((time_ns - time_ns[0]) / 1e9).round(3).tolist(),
        "lat": numbers("latitude", 6),
        "lon": unwrapped("longitude"),
        "axes": [
            list(zip(numbers(f"semi_major_{level}_m", 1), numbers(f"semi_minor_{level}_m", 1), strict=True))
            for level in (50, 95)
        ],
        "turn": numbers("orientation_deg", 1),
        "probability": numbers("probability", 4),
        "others": others,
        "flags": [[flag for flag in flags.split("; ") if flag] for flags in table["flags"]],
        "heard": heard_by,
        "hdop": numbers("hdop", 2),
        "error": numbers("error_m", 1),
        "true_lat": numbers("true_latitude", 6),
        "true_lon": unwrapped("true_longitude"),
    }
    return {"start_s": int(time_ns[0]) / 1e9, "fixes": fixes}


def _unwrapped(network: ReceiverNetwork, lon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes counted from the middle of the network, so that they do not jump at the 180th meridian."""
    turned: NDArray[np.float64] = network.frame.lon + (lon - network.frame.lon + 180) % 360 - 180
    return turned


def _listed(values: NDArray[np.float64], decimals: int) -> list[float | None]:
    """Rounded numbers, None for NaN."""
    return [None if value != value else value for value in values.round(decimals).tolist()]


def _regions(network: ReceiverNetwork, chunks: list[Fixes], order: NDArray[np.int64]) -> list[list[Any]]:
    """For each level the rings of each fix, in the order given: whole steps of a millionth of a degree from corner to
    corner, longitude and latitude in turn; None beyond MOST_REGIONS."""
    found = np.full((len(order), len(LEVELS)), None, dtype=object)
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
    for chunk, start in zip(chunks, starts, strict=False):
        places = np.flatnonzero((order >= start) & (order < start + len(chunk)))
        places = places[places < MOST_REGIONS]
        part = chunk.take(order[places] - start)
        altitude_m = part.columns["altitude_m"]
        found[places] = region_polygons(part.positions, network.frame, altitude_m, LEVELS)
    return [[None if shape is None else _rings(shape) for shape in column] for column in found.T]


def _rings(shape: shapely.MultiPolygon) -> list[list[int]]:
    rings = [ring for part in shape.geoms for ring in (part.exterior, *part.interiors)]
    corners = (np.rint(shapely.get_coordinates(ring) * 10**_REGION_DECIMALS).astype(np.int64) for ring in rings)
    return [np.diff(corner, axis=0, prepend=0).ravel().tolist() for corner in corners]
