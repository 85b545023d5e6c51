"""``triangulation plan``."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import click

from triangulation_pipeline.cli.options import json_option, overrides_of, set_option
from triangulation_pipeline.cli.tables import Columns, say, show_json, show_rows
from triangulation_pipeline.documents import file_name
from triangulation_pipeline.formats.plan import COLUMNS, LEGEND, PlanReport, conditions_words
from triangulation_pipeline.network import MOST_SITES
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.physics.plan import best_further_site, check_plan, plan_network
from triangulation_pipeline.physics.plan_cells import service_cells
from triangulation_pipeline.physics.scenario import Preset, Scenario, scenario_of
from triangulation_pipeline.validation import expanded

_SHOWN_LOSSES = 10


@click.command()
@click.argument("network", metavar="NETWORK", type=click.Path(path_type=Path))
@click.option(
    "--preset",
    type=click.Choice([preset.value for preset in Preset]),
    default=Preset.default.value,
    show_default=True,
    help="The conditions, as in a run.",
)
@click.option(
    "--power-w",
    type=click.FloatRange(0.001, 10_000),
    help="Plan for transmitters of this power alone, watts, instead of the mix of the preset.",
)
@set_option
@click.option(
    "--compare",
    "compared",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Another network file, to be seen beside the first over the area of both.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the page plan.html (to send; it needs no network), its maps as PNG, cells.geojson and plan.json.",
)
@json_option
def plan(
    network: Path,
    preset: str,
    power_w: float | None,
    settings: tuple[str, ...],
    compared: Path | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Show how well a network can locate.

    NETWORK is a network file. For each place of its service area the bound of the position error in metres is computed,
    with the geometry and the receivers that hear. Then each site is left out, and the best place for one more is found.
    Nothing has to be trained or measured before.
    """
    scenario = _scenario(Preset(preset), power_w, settings)
    first = read_network(network)
    second = None if compared is None else read_network(compared)
    place = None if folder is None else _checked_folder(folder)

    networks = [first] if second is None else [first, second]
    for each in networks:
        check_plan(each, scenario)
    cells = service_cells(networks, scenario)
    planned = plan_network(first, scenario, cells)
    report = PlanReport(
        planned,
        best_further_site(planned) if len(first.sites) < MOST_SITES else None,
        None if second is None else plan_network(second, scenario, cells),
    )
    if place is not None:
        _write(place, _files(report))
    if as_json:
        show_json(report.document() | {"warnings": first.oddities()})
        return
    _show(report)
    for oddity in first.oddities():
        say(f"odd: {oddity}")
    if place is not None:
        say(f"written: {file_name(place / 'plan.html')}, and beside it the maps, cells.geojson and plan.json")


def _scenario(preset: Preset, power_w: float | None, settings: tuple[str, ...]) -> Scenario:
    overrides = overrides_of(settings)
    if power_w is not None:
        if any(name.startswith("tx_power") for name in overrides):
            raise click.UsageError("--power-w is the one power: leave out --set tx_power_w and tx_power_share")
        overrides |= {"tx_power_w": [power_w], "tx_power_share": [1.0]}
    return scenario_of(preset, overrides)


def _checked_folder(folder: Path) -> Path:
    """The folder to write into. Raises ValueError if it cannot become one."""
    folder = expanded(folder).absolute()
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    if not nearest.is_dir():
        raise ValueError(f"--out: {file_name(nearest)} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"--out: {file_name(nearest)} cannot be written to")
    return folder


def _files(report: PlanReport) -> dict[str, bytes]:
    """The files of a plan, by their names."""
    from triangulation_pipeline.plots.plan import bound_map, difference_map, hdop_map, receiver_map
    from triangulation_pipeline.plots.style import png

    plan, other = report.plan, report.other
    named = {"bound.png": ("bound of the position error", bound_map(plan, report.further, other))}
    if other is not None:
        named |= {
            "other_bound.png": ("bound with the other network", bound_map(other, None, plan)),
            "difference.png": (
                "bound with the other network over the bound with this one",
                difference_map(plan, other),
            ),
        }
    named |= {
        "hdop.png": ("horizontal dilution of precision", hdop_map(plan)),
        "receivers.png": ("receivers that hear", receiver_map(plan)),
    }
    pictures = {name: (alt, png(figure)) for name, (alt, figure) in named.items()}
    return {
        "plan.html": report.page(dict(pictures.values())).encode(),
        "plan.json": json.dumps(report.document(), indent=2, allow_nan=False).encode(),
        "cells.geojson": json.dumps(report.geojson(), allow_nan=False).encode(),
        **{name: content for name, (_, content) in pictures.items()},
    }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes each file whole. Raises ValueError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            unfinished = folder / f".{name}.{os.getpid()}"
            try:
                unfinished.write_bytes(content)
                unfinished.replace(folder / name)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--out: {file_name(folder)} cannot be written to: {error.strerror}") from None


def _show(report: PlanReport) -> None:
    for line in conditions_words(report.plan):
        say(line)
    rows = report.rows()
    losses = [row for row in rows if row["kind"] == "without"]
    rows = [row for row in rows if row["kind"] != "without"] + losses[:_SHOWN_LOSSES]
    columns: Columns = {"": lambda row: row["sites"], **COLUMNS}
    show_rows(rows, False, columns)
    if len(losses) > _SHOWN_LOSSES:
        say(f"({len(losses) - _SHOWN_LOSSES} more sites would be missed less; --json and --out list them all)")
    for line in (*LEGEND, *report.sentences()):
        say(line)
