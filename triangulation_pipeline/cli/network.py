"""``triangulation network``."""

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from triangulation_pipeline.cli.tables import plain, say, show_json
from triangulation_pipeline.network import FEWEST_SITES, MOST_SITES, NORTH_WEST_ITALY, ReceiverNetwork, random_network
from triangulation_pipeline.network_file import read_network


@click.command()
@click.option(
    "--check",
    "checked",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check a network file: show where on earth its sites are, and warn of what is unusual.",
)
@click.option(
    "--random-sites",
    type=click.IntRange(FEWEST_SITES, MOST_SITES),
    help="Print a random network with this number of sites instead.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the random network. The default is 0.")
@click.option("--json", "as_json", is_flag=True, help="Print what --check finds as JSON.")
def network(checked: Path | None, random_sites: int | None, seed: int | None, as_json: bool) -> None:
    """Print a network file, or check one.

    Without an option it prints the default network, as a start for your own file.
    """
    if seed is not None and random_sites is None:
        raise click.UsageError("--seed goes with --random-sites")
    if as_json and checked is None:
        raise click.UsageError("--json goes with --check")
    if checked is not None:
        if random_sites is not None:
            raise click.UsageError("--check looks at a file: leave out --random-sites")
        found = _findings(read_network(checked))
        if as_json:
            show_json(found)
        else:
            _show(found)
        return
    described = NORTH_WEST_ITALY if random_sites is None else random_network(random_sites, seed or 0)
    document = described.model_dump(mode="json", exclude_none=True)
    YAML(pure=True).dump(document, sys.stdout)


def _findings(described: ReceiverNetwork) -> dict[str, Any]:
    """What a person should know of a network before a model is trained for it."""
    place_m = described.site_enu_m
    apart_m = np.linalg.norm(place_m[:, None] - place_m[None], axis=-1)
    np.fill_diagonal(apart_m, np.inf)
    area = described.service_area(0.0)
    frame = described.frame
    return {
        "name": described.name,
        "digest": described.digest,
        "lat": round(frame.lat, 4),
        "lon": round(frame.lon, 4),
        "east_west_km": round((area.east_max_m - area.east_min_m) / 1e3, 1),
        "north_south_km": round((area.north_max_m - area.north_min_m) / 1e3, 1),
        "map": f"https://www.openstreetmap.org/?mlat={frame.lat:.4f}&mlon={frame.lon:.4f}#map=8/{frame.lat:.4f}/{frame.lon:.4f}",
        "num_timed_sites": int(described.has_timing.sum()),
        "locates_by_time": described.locates_by_time,
        "warnings": described.oddities(),
        "sites": [
            {
                "name": site.name,
                "lat": site.lat,
                "lon": site.lon,
                "altitude_m": site.altitude_m,
                "timing": site.timing.value,
                "nearest": described.sites[int(apart_m[i].argmin())].name,
                "nearest_km": round(float(apart_m[i].min()) / 1e3, 3),
            }
            for i, site in enumerate(described.sites)
        ],
    }


def _show(found: dict[str, Any]) -> None:
    say(
        f"{found['name']} ({found['digest'][:8]}): {len(found['sites'])} sites, {found['east_west_km']:g} km west to "
        f"east, {found['north_south_km']:g} km south to north,"
    )
    say(f"around {_degrees(found['lat'], 'NS')} {_degrees(found['lon'], 'EW')}: {found['map']}")
    table = Table(show_edge=False)
    for heading in ("site", "lat", "lon", "m", "timing", "nearest", "km"):
        table.add_column(heading, justify="right" if heading in {"lat", "lon", "m", "km"} else "left", overflow="fold")
    for site in found["sites"]:
        numbers = (f"{site['lat']:.4f}", f"{site['lon']:.4f}", f"{site['altitude_m']:g}")
        cells = (site["name"], *numbers, site["timing"], site["nearest"], f"{site['nearest_km']:g}")
        table.add_row(*(plain(cell) for cell in cells))
    Console().print(table)
    timed = found["num_timed_sites"]
    say(
        f"{timed} sites measure arrival times, so the network can locate by time"
        if found["locates_by_time"]
        else f"{timed} sites measure arrival times: too few to locate by time, which takes three"
    )
    for warning in found["warnings"]:
        say(f"odd: {warning}")


def _degrees(value: float, names: str) -> str:
    return f"{abs(value):.4f} {names[value < 0]}"
