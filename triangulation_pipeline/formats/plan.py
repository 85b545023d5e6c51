"""A plan as numbers and sentences, as GeoJSON, and as one HTML page that needs no network."""

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import antimeridian
import numpy as np
import shapely

from triangulation_pipeline.physics.plan import GOOD_HDOP, FurtherSite, NetworkPlan, PlanNumbers

Row = Mapping[str, Any]

_CORNERS = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5))


@dataclass(frozen=True, eq=False)
class PlanReport:
    """What is told of a network: its plan, the best place for one more site, and another network beside it."""

    plan: NetworkPlan
    further: FurtherSite | None = None  # None: the network has as many sites as it can
    other: NetworkPlan | None = None  # over the same cells

    def rows(self) -> list[dict[str, Any]]:
        """The numbers of the network, of the other one, without each site (the worst loss first), and with one more
        site. A bound that does not exist is None.

        Returns
        -------
        list of dict
            ``sites`` in words, ``kind`` (``all``, ``other``, ``without`` or ``further``), the site's ``name``, the
            share of transmissions that it hears, and the fields of ``PlanNumbers``.
        """
        plan = self.plan
        rows = [_row("all", f"all {len(plan.network.sites)} sites", plan.numbers)]
        if self.other is not None:
            rows.append(_row("other", self.other.network.name, self.other.numbers))
        if self.further is not None:
            rows.append(_row("further", "with one more", self.further.numbers))
        for site in plan.losses:
            name = plan.network.sites[site].name
            hears = round(float(plan.heard_share[site]), 4)
            rows.append(_row("without", f"without {name}", plan.without[site], name=name, heard_share=hears))
        return rows

    def sentences(self) -> list[str]:
        """What the numbers say, in words: of the other network, of the site that would be missed most, and of the best
        place for one more."""
        plan, found = self.plan, []
        if self.other is not None:
            found.append(_change(f"with {self.other.network.name}", plan.numbers, self.other.numbers))
        worst = plan.losses[0]
        found.append(_change(f"without {plan.network.sites[worst].name}", plan.numbers, plan.without[worst]))
        if self.further is not None:
            where = place_words(self.further.site.lat, self.further.site.lon)
            found.append(_change(f"with one more site at {where}", plan.numbers, self.further.numbers))
        return found

    def document(self) -> dict[str, Any]:
        """All numbers and sentences as one JSON document.

        Returns
        -------
        dict
            Numbers, texts and None only; lengths in metres with ``_m``, shares from 0 to 1.
        """
        plan, area = self.plan, self.plan.cells.area
        return {
            "network": plan.network.name,
            "network_digest": plan.network.digest,
            "scenario": plan.scenario.model_dump(mode="json", exclude_none=True),
            "east_west_km": round((area.east_max_m - area.east_min_m) / 1e3, 1),
            "north_south_km": round((area.north_max_m - area.north_min_m) / 1e3, 1),
            "cells": int(plan.covered.sum()),
            "other_network": None if self.other is None else self.other.network.name,
            "other_network_digest": None if self.other is None else self.other.network.digest,
            "further_site": None if self.further is None else self.further.site.model_dump(mode="json"),
            "rows": self.rows(),
            "sentences": self.sentences(),
        }

    def geojson(self) -> dict[str, Any]:
        """The sites as points, and the cells as polygons with their numbers.

        Returns
        -------
        dict
            A FeatureCollection (RFC 7946), longitude before latitude, split at the 180th meridian.
        """
        plan = self.plan
        features = [
            _point(site.lat, site.lon, {"kind": "site", "name": site.name, "heard_share": round(float(hears), 4)})
            for site, hears in zip(plan.network.sites, plan.heard_share, strict=True)
        ]
        if self.further is not None:
            site = self.further.site
            features.append(_point(site.lat, site.lon, {"kind": "further site", "name": site.name}))
        for cell, geometry in zip(np.flatnonzero(plan.covered), _polygons(plan), strict=True):
            numbers = {"bound_m": plan.bound_m[cell], "hdop": plan.hdop[cell], "receivers": plan.receivers[cell]}
            if self.other is not None:
                numbers["other_bound_m"] = self.other.bound_m[cell]
            properties = {name: _number(value) for name, value in numbers.items()}
            features.append({"type": "Feature", "geometry": geometry, "properties": {"kind": "cell", **properties}})
        return {"type": "FeatureCollection", "features": features}

    def page(self, pictures: Mapping[str, bytes]) -> str:
        """One HTML page with tables and pictures in it. It has no script and loads nothing.

        Parameters
        ----------
        pictures : mapping of str to bytes
            PNG files by what they show.

        Returns
        -------
        str
        """
        plan = self.plan
        return _PAGE.format(
            title=escape(f"Plan of {plan.network.name}"),
            conditions=escape("; ".join(conditions_words(plan))),
            sentences="".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences()),
            head="".join(f"<th>{escape(title)}</th>" for title in ("", *COLUMNS)),
            body="".join(_table_row(row) for row in self.rows()),
            sites="".join(
                f"<tr><td>{escape(site.name)}</td><td>{site.lat:.4f}</td><td>{site.lon:.4f}</td>"
                f"<td>{site.altitude_m:g}</td><td>{site.timing.value}</td><td>{100 * hears:.0f}</td></tr>"
                for site, hears in zip(plan.network.sites, plan.heard_share, strict=True)
            ),
            pictures="".join(
                f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
                for alt, png in pictures.items()
            ),
            legend=escape("; ".join(LEGEND)),
        )


COLUMNS: dict[str, Callable[[Row], str]] = {
    "p50 m": lambda row: bound_words(row["p50_m"]),
    "p95 m": lambda row: bound_words(row["p95_m"]),
    "hull m": lambda row: bound_words(row["hull_p50_m"]),
    "area %": lambda row: f"{100 * row['located_share']:.0f}",
    f"HDOP<{GOOD_HDOP:g}": lambda row: f"{100 * row['good_hdop_share']:.0f}",
    "hear 3": lambda row: f"{100 * row['heard_by_3']:.0f}",
    "hear 4": lambda row: f"{100 * row['heard_by_4']:.0f}",
}
"""Titles of the table of a plan, and what they show of a row."""

LEGEND = (
    "p50 m, p95 m: the bound that 50 % and 95 % of the area stay below",
    "hull m: the bound that 50 % of the area inside the hull of the sites stay below",
    f"area %, HDOP<{GOOD_HDOP:g}: per cent of the area with a bound, and with such an HDOP",
    "hear 3, hear 4: per cent of the transmissions that 3 (4) receivers or more hear",
)
"""What the titles mean."""


def conditions_words(plan: NetworkPlan) -> tuple[str, ...]:
    """The network and its area, the transmitters and the clocks of a plan, in a line each."""
    scenario, area = plan.scenario, plan.cells.area
    powers = " / ".join(f"{power:g}" for power in scenario.tx_power_w)
    model = scenario.path_loss.value.replace("_", "-")
    law = f"exponent {scenario.path_loss_exponent:g}" if model == "log-distance" else model
    return (
        f"{plan.network.name} ({plan.network.digest[:8]}): {len(plan.network.sites)} sites, area of "
        f"{(area.east_max_m - area.east_min_m) / 1e3:.0f} x {(area.north_max_m - area.north_min_m) / 1e3:.0f} km",
        f"transmitters of {powers} W at {scenario.frequency_mhz:g} MHz, path loss: {law}",
        f"clocks {scenario.clock_sigma_ns:g} ns, residual bias {scenario.site_bias_sigma_ns:g} ns, "
        f"{100 * scenario.nlos_probability:g} % of the paths late by {scenario.nlos_mean_ns:g} ns on average",
    )


def bound_words(value_m: float | None) -> str:
    """A bound in whole metres, with one decimal below 10; a dash if there is none."""
    return "-" if value_m is None else f"{value_m:,.0f}" if value_m >= 10 else f"{value_m:.1f}"


def place_words(lat: float, lon: float) -> str:
    """A place in degrees, as in 44.2639 N 7.1145 E."""
    return f"{abs(lat):.4f} {'NS'[lat < 0]} {abs(lon):.4f} {'EW'[lon < 0]}"


def _row(kind: str, sites: str, numbers: PlanNumbers, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "sites": sites, **more, **{name: _number(value) for name, value in asdict(numbers).items()}}


def _number(value: float) -> float | None:
    """Five digits; None if it is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _change(what: str, before: PlanNumbers, after: PlanNumbers) -> str:
    """How the bounds change, in one sentence."""
    told = []
    if math.isfinite(before.p95_m) and math.isfinite(after.p95_m):
        told.append(_moves("the bound of 95 % of the area", before.p95_m, after.p95_m))
    else:
        shares = f"{100 * before.located_share:.0f} % to {100 * after.located_share:.0f} %"
        told.append(f"the part of the area that has a bound goes from {shares}")
        if math.isfinite(after.p95_m):
            told.append(f"95 % of the area gets a bound below {bound_words(after.p95_m)} m")
    if math.isfinite(before.p50_m) and math.isfinite(after.p50_m):
        told.append(_moves("the bound of 50 %", before.p50_m, after.p50_m))
    return f"{what}, {', '.join(told)}"


def _moves(what: str, before_m: float, after_m: float) -> str:
    factor = after_m / before_m
    times = f"{factor:.1f} times" if factor >= 1.5 else f"{100 * (factor - 1):+.0f} %"
    return f"{what} goes from {bound_words(before_m)} m to {bound_words(after_m)} m ({times})"


def _table_row(row: Row) -> str:
    cells = "".join(f"<td>{escape(show(row))}</td>" for show in COLUMNS.values())
    return f"<tr><td>{escape(row['sites'])}</td>{cells}</tr>"


def _point(lat: float, lon: float, properties: Row) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": "Point", "coordinates": [lon, lat]}, "properties": properties}


def _polygons(plan: NetworkPlan) -> list[dict[str, Any]]:
    """GeoJSON of the covered cells."""
    cells, area = plan.cells, plan.cells.area
    size_m = np.array([area.east_max_m - area.east_min_m, area.north_max_m - area.north_min_m]) / cells.per_side
    corner_m = cells.en_m[plan.covered, None] + np.array(_CORNERS) * size_m
    lat, lon = cells.frame.geodetic(corner_m, cells.altitude_m)
    rings = np.round(np.stack([(lon + 180) % 360 - 180, lat], axis=-1), 5)
    jumps = np.abs(np.diff(rings[..., 0], axis=1)).max(1) > 180
    return [
        antimeridian.fix_polygon(shapely.Polygon(ring)).__geo_interface__
        if split
        else {"type": "Polygon", "coordinates": [ring.tolist()]}
        for ring, split in zip(rings, jumps, strict=True)
    ]


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1560px; margin: 1.5rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 1.8rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
.wide {{ overflow-x: auto; }}
.maps {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }}
.maps img {{ width: 100%; max-width: 740px; }}
.small {{ color: #555; font-size: 0.9rem; max-width: 60rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{conditions}</p>
<ul>{sentences}</ul>
<div class="maps">{pictures}</div>
<h2>Numbers</h2>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p class="small">The bound of a place is the Cramér-Rao bound: half of the transmissions from there cannot be located
with a smaller rms error. It includes late arrivals and what calibration leaves of the clocks' biases. It knows nothing
of a second place that fits three arrival times as well. {legend}.</p>
<h2>Sites</h2>
<div class="wide"><table>
<thead><tr><th>name</th><th>lat</th><th>lon</th><th>altitude m</th><th>timing</th><th>hears %</th></tr></thead>
<tbody>{sites}</tbody>
</table></div>
</body>
</html>
"""
