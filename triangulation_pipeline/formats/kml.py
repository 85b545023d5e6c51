"""Fixes as KML, for Google Earth and other globes."""

import re
from collections.abc import Iterable
from html import escape
from typing import Any, BinaryIO

import numpy as np
import shapely
import simplekml

from triangulation_pipeline.formats.fixes import ALTERNATIVES, FLAGS, LEVELS, Fixes, rows_of
from triangulation_pipeline.formats.regions import region_polygons, within_180
from triangulation_pipeline.network import ReceiverNetwork

# Characters that XML 1.0 does not allow.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Colours are Okabe and Ito's, as aabbggrr.
_BLUE, _VERMILION, _GREEN, _BLACK = "ffb27200", "ff005ed5", "ff739e00", "ff000000"
_ICON = "https://maps.google.com/mapfiles/kml/shapes/{}.png"


def write_kml(file: BinaryIO, network: ReceiverNetwork, chunks: Iterable[Fixes]) -> None:
    """Writes receivers and fixes as KML 2.2, in folders that can be switched on and off.

    Every placemark of a fix has its time, which the time slider of Google Earth follows. A transmission without a
    position has none. The whole document is held in memory.

    Parameters
    ----------
    file : binary file
        Open for writing.
    network : ReceiverNetwork
        The network that measured the fixes.
    chunks : iterable of Fixes
        All are written to one document.
    """
    kml = simplekml.Kml(name=_text(f"Fixes of {network.name}"))
    # Texts come escaped: simplekml would let through what looks like a CDATA section.
    kml.parsetext(False)
    names = ("Receivers", "Fixes", "Regions, 50 %", "Regions, 95 %", "Other places", "Errors")
    receivers, fixes, *regions, others, errors = (kml.newfolder(name=name) for name in names)
    styles = {
        "receiver": _point_style("triangle", _BLACK, 0.8),
        "fix": _point_style("placemark_circle", _BLUE),
        "alternative": _point_style("open-diamond", _VERMILION),
        "region": simplekml.Style(
            linestyle=simplekml.LineStyle(color=_BLUE, width=1.5), polystyle=simplekml.PolyStyle(color="33b27200")
        ),
        "error": simplekml.Style(linestyle=simplekml.LineStyle(color=_GREEN, width=2)),
    }
    for site in network.sites:
        point = receivers.newpoint(name=_text(site.name), coords=[(site.lon, site.lat)])
        point.style = styles["receiver"]
    for chunk in chunks:
        altitude_m = chunk.columns["altitude_m"]
        polygons = region_polygons(chunk.positions, network.frame, altitude_m, LEVELS)
        for row, of_level in zip(rows_of(chunk), polygons, strict=True):
            if "latitude" not in row:
                continue
            name, place = _text(row["transmission_id"]), (row["longitude"], row["latitude"])
            made = [fixes.newpoint(name=name, description=_description(row), coords=[place])]
            made[0].style = styles["fix"]
            for folder, level, region in zip(regions, LEVELS, of_level, strict=True):
                made.append(_add_region(folder, f"{name}: {level:.0%}", region, styles["region"]))
            for number in range(1, ALTERNATIVES + 1):
                if f"alternative_{number}.longitude" in row:
                    lon, lat = row[f"alternative_{number}.longitude"], row[f"alternative_{number}.latitude"]
                    share = f"{row[f'alternative_{number}.probability']:.0%}"
                    made.append(others.newpoint(name=f"{name}: {share}", coords=[(lon, lat)]))
                    made[-1].style = styles["alternative"]
            if "error_m" in row:
                truth = (row["true_longitude"], row["true_latitude"])
                line = errors.newlinestring(name=f"{name}: {row['error_m']:.0f} m", coords=[truth, place])
                line.tessellate, line.style = 1, styles["error"]
                made.append(line)
            for placemark in made:
                # KML knows microseconds at best.
                placemark.timestamp.when = row["time"][:26] + "Z"
    file.write(b'<?xml version="1.0" encoding="UTF-8"?>\n' + _as_the_schema_wants(kml.kml(format=False)).encode())


def _as_the_schema_wants(document: str) -> str:
    """simplekml writes numbers as ids, which XML does not allow, and styles before names. In texts there is no bracket
    and no quote: they are escaped."""
    document = re.sub(r' id="(\d+)"', r' id="i\1"', document)
    document = re.sub(r"<styleUrl>#(\d+)<", r"<styleUrl>#i\1<", document)
    return re.sub(r"((?:<Style .*?</Style>)+)(<name>.*?</name>)", r"\2\1", document)


def _point_style(icon: str, colour: str, label_scale: float = 0.0) -> simplekml.Style:
    icon_style = simplekml.IconStyle(color=colour, scale=0.7, icon=simplekml.Icon(href=_ICON.format(icon)))
    return simplekml.Style(iconstyle=icon_style, labelstyle=simplekml.LabelStyle(scale=label_scale))


def _add_region(folder: Any, name: str, region: shapely.MultiPolygon, style: simplekml.Style) -> Any:
    shape = folder.newmultigeometry(name=name)
    shape.style = style
    for part in within_180(region).geoms:
        shape.newpolygon(
            outerboundaryis=np.round(shapely.get_coordinates(part.exterior), 7).tolist(),
            innerboundaryis=[np.round(shapely.get_coordinates(ring), 7).tolist() for ring in part.interiors],
        )
    return shape


def _description(row: dict[str, Any]) -> str:
    """What the balloon of a fix says: HTML as the text of an XML element, so what comes from files is escaped twice."""
    lines = [
        row["time"],
        f"95 % ellipse: {row['semi_major_95_m']:.0f} m by {row['semi_minor_95_m']:.0f} m (half axes)",
        f"probability of this place: {row['probability']:.0%}",
        f"heard by: {row.get('receivers', 'none')}",
        *(FLAGS[flag] for flag in row.get("flags", "").split("; ") if flag),
    ]
    return _text("<br/>".join(escape(line) for line in lines))


def _text(value: str) -> str:
    """A text for an XML element."""
    return escape(_NOT_XML.sub("\ufffd", value))
