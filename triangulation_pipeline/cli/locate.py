"""``triangulation locate``."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
import pandas as pd

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.calibration_file import read_calibration
from triangulation_pipeline.cli.measured import Refusals, check_file, mapping_of, measurement_options
from triangulation_pipeline.cli.options import overrides_of
from triangulation_pipeline.cli.tables import LONGEST_WORD, Row, say, show_rows
from triangulation_pipeline.documents import file_name
from triangulation_pipeline.formats.fixes import FLAGS, LEVELS, Fixes, rows_of, write_csv
from triangulation_pipeline.formats.geojson import write_geojson
from triangulation_pipeline.formats.html_map import MOST_FIXES, write_map
from triangulation_pipeline.formats.kml import write_kml
from triangulation_pipeline.formats.measurement_file import read_measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.outputs import checked_output, replaced_file
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Preset, Scenario, scenario_of

SHOWN_FIXES = 20
"""The table on the terminal has so many rows."""

Writer = Callable[[BinaryIO, ReceiverNetwork, Iterable[Fixes]], None]
WRITERS: Mapping[str, Writer] = {
    ".csv": write_csv,
    ".geojson": write_geojson,
    ".kml": write_kml,
    ".html": write_map,
}
"""What writes fixes, by the ending of the file's name."""


@click.command()
@measurement_options
@click.option(
    "--calibration",
    "calibration_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `triangulation calibrate` found. Without it clocks and gains are uncertain, by the clock of each site.",
)
@click.option(
    "--model",
    "reference",
    default="universal",
    show_default=True,
    metavar="MODEL",
    help="The model: universal, name, name/3, name@production, or a file that ends in .pth.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Write all fixes; the ending of the name says how: {', '.join(WRITERS)}.",
)
@click.option(
    "--map",
    "map_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Write a map as one HTML file that needs no network, of the first {MOST_FIXES:,} fixes.",
)
@click.option(
    "--follow",
    is_flag=True,
    help="FILE is still being written: print each fix as one line of JSON, as soon as the next transmission begins.",
)
def locate(
    file: str,
    network: Path,
    mapping: Path | None,
    file_format: str | None,
    preset: str | None,
    settings: tuple[str, ...],
    calibration_file: Path | None,
    reference: str,
    out: Path | None,
    map_file: Path | None,
    follow: bool,
) -> None:
    """Locate the transmissions of a file.

    FILE is a measurement file, or - for standard input. Each transmission gets a position with its uncertainty. Rows
    that cannot be right are refused, each with a reason, and the others are used.
    """
    if follow and (out is not None or map_file is not None):
        raise click.UsageError("--follow prints fixes: leave out --out and --map")
    check_file(file)
    sites = read_network(network)
    columns = mapping_of(mapping)
    calibration = (
        SiteCalibration.prior(sites) if calibration_file is None else read_calibration(calibration_file, sites)
    )
    place, writer = (None, None) if out is None else _output(out)
    map_place = None if map_file is None else checked_output(map_file)
    overrides = overrides_of(settings)
    told = None if preset is None and not overrides else scenario_of(Preset(preset or Preset.default), overrides)

    # PyTorch takes seconds to import: first of all the other mistakes are found.
    from triangulation_pipeline.model.predict import locate_recordings
    from triangulation_pipeline.models import load_model

    checkpoint = load_model(reference)
    layout = Layout(sites, told or checkpoint.spec.scenario or Scenario())
    refusals = Refusals()
    if follow:
        recordings = refusals.watch(read_measurements(file, layout, columns, file_format, live=True))
        for chunk in locate_recordings(checkpoint, recordings, layout, calibration):
            for row in rows_of(chunk.table):
                click.echo(json.dumps(row, allow_nan=False))
        refusals.show(err=True)
        return
    summary = _Summary(sites, MOST_FIXES if map_place is not None else SHOWN_FIXES)
    recordings = refusals.watch(read_measurements(file, layout, columns, file_format))
    fixes = summary.watch(locate_recordings(checkpoint, recordings, layout, calibration))
    with nullcontext() if place is None else replaced_file(place) as target:
        if writer is not None and target is not None:
            writer(target, sites, fixes)
        for _ in fixes:
            pass
        if not summary.count:
            refusals.show()
            raise ValueError(f"there is nothing to locate in {file}: every row was refused")
    if map_place is not None:
        with replaced_file(map_place) as target:
            write_map(target, sites, summary.kept, summary.further)
    summary.show()
    if calibration_file is None:
        say("not calibrated: the regions are as wide as unknown clocks make them (`triangulation calibrate`)")
    elif unknown := [
        site.name
        for site, sigma_ns in zip(sites.sites, calibration.toa_bias_sigma_ns, strict=True)
        if np.isinf(sigma_ns)
    ]:
        say(f"not calibrated, so that their arrival times count for less: {', '.join(unknown)}")
    refusals.show()
    for written in (place, map_place):
        if written is not None:
            say(f"written: {file_name(written)}")


def _output(path: Path) -> tuple[Path, Writer]:
    """Where fixes are written, and by what. Raises ValueError if that cannot be."""
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ValueError(f"--out: the name must end in {', '.join(WRITERS)}, got {file_name(path)}")
    return checked_output(path), writer


class _Summary:
    """What the terminal and the map show of a stream of fixes."""

    def __init__(self, network: ReceiverNetwork, most_kept: int) -> None:
        self._network, self._most_kept = network, most_kept
        self.kept: list[Fixes] = []
        self.count = self._located = 0
        self._flags = dict.fromkeys(FLAGS, 0)
        self._errors_m: list[np.ndarray] = []
        self._inside = dict.fromkeys(LEVELS, 0)

    @property
    def further(self) -> int:
        """How many fixes were not kept."""
        return self.count - sum(map(len, self.kept))

    def watch(self, chunks: Iterable[Fixes]) -> Iterator[Fixes]:
        """The fixes themselves, which are counted."""
        for chunk in chunks:
            if self.count < self._most_kept:
                self.kept.append(chunk.take(slice(0, self._most_kept - self.count)))
            self.count += len(chunk)
            self._located += int(chunk.table["latitude"].notna().sum())
            for flag in FLAGS:
                self._flags[flag] += int(chunk.table["flags"].str.contains(flag, regex=False).sum())
            self._compare(chunk.take(np.isfinite(chunk.table["error_m"].to_numpy(np.float64))))
            yield chunk

    def _compare(self, known: Fixes) -> None:
        """Counts errors, and truths within the regions."""
        if not len(known):
            return
        self._errors_m.append(known.table["error_m"].to_numpy(np.float64))
        truth = (known.table[name].to_numpy(np.float64) for name in ("true_latitude", "true_longitude", "altitude_m"))
        content = known.positions.content_at(self._network.frame.en_m(*truth))
        for level in LEVELS:
            self._inside[level] += int((content <= level).sum())

    def show(self) -> None:
        """Prints the first fixes, and what all of them have in common."""
        table = pd.concat([chunk.table for chunk in self.kept], ignore_index=True).head(SHOWN_FIXES)
        columns: dict[str, Callable[[Row], Any]] = {
            "transmission": lambda row: row["transmission_id"][:LONGEST_WORD],
            "time": lambda row: row["time"][:19],
            "latitude": lambda row: _number(row["latitude"], 5),
            "longitude": lambda row: _number(row["longitude"], 5),
            "95 % m": lambda row: _number(row["semi_major_95_m"], 0),
            "heard": lambda row: len(row["receivers"].split("; ")),
        }
        if self._errors_m:
            columns |= {"error m": lambda row: _number(row["error_m"], 0)}
        columns |= {"flags": lambda row: row["flags"]}
        show_rows([{str(name): row[name] for name in row} for row in table.to_dict("records")], False, columns)
        if self.count > len(table):
            say(f"({self.count - len(table):,} more; --out writes all)")
        say(f"{self._located:,} of {_transmissions(self.count)} located; 95 % m: half the length of the ellipse")
        for flag, count in self._flags.items():
            if count:
                say(f"{flag}, {count:,}: {FLAGS[flag]}")
        if self._errors_m:
            error_m = np.concatenate(self._errors_m)
            inside = ", ".join(
                f"{count / len(error_m):.1%} within the regions of {level:.0%}" for level, count in self._inside.items()
            )
            say(
                f"{_transmissions(len(error_m))} of known position: median error {np.median(error_m):,.0f} m, RMSE "
                f"{np.sqrt(np.mean(error_m**2)):,.0f} m; {inside}"
            )


def _transmissions(count: int) -> str:
    return "1 transmission" if count == 1 else f"{count:,} transmissions"


def _number(value: float, decimals: int) -> str | None:
    return f"{value:,.{decimals}f}" if np.isfinite(value) else None
