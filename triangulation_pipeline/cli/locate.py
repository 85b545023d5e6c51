"""``triangulation locate``."""

import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
import pandas as pd

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.calibration_file import read_calibration
from triangulation_pipeline.cli.measured import (
    Refusals,
    check_file,
    checked_outputs,
    mapping_of,
    measurement_options,
    watched_refusals,
)
from triangulation_pipeline.cli.options import json_option, overrides_of
from triangulation_pipeline.cli.tables import DAY_S, HOUR_S, LONGEST_WORD, MINUTE_S, Row, say, show_json, show_rows
from triangulation_pipeline.documents import file_name
from triangulation_pipeline.formats.columns import Silence
from triangulation_pipeline.formats.fixes import FLAGS, LEVELS, Fixes, rows_of, write_csv
from triangulation_pipeline.formats.geojson import write_geojson
from triangulation_pipeline.formats.html_map import MOST_FIXES, write_map
from triangulation_pipeline.formats.kml import write_kml
from triangulation_pipeline.formats.measurement_file import read_measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.outputs import replaced_file
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Preset, scenario_of

SHOWN_FIXES = 20
"""The table on the terminal has so many rows."""
MOST_WORKERS = 4
"""More threads than these wait for each other."""

Writer = Callable[[BinaryIO, ReceiverNetwork, Iterable[Fixes]], None]
WRITERS: Mapping[str, Writer] = {
    ".csv": write_csv,
    ".geojson": write_geojson,
    ".kml": write_kml,
}
"""What writes fixes, by the ending of the file's name."""


@click.command()
@measurement_options
@click.option(
    "--calibration",
    "calibrated_by",
    metavar="CALIBRATION",
    help="What `triangulation calibrate` found: a file; stored, the newest of this network in the project's database; "
    "or stored/ID, the one whose id begins so. Without it clocks and gains are uncertain, by the clock of each site.",
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
@json_option
def locate(
    file: str,
    network: Path,
    mapping: Path | None,
    file_format: str | None,
    preset: str | None,
    settings: tuple[str, ...],
    refused: Path | None,
    calibrated_by: str | None,
    reference: str,
    out: Path | None,
    map_file: Path | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Locate the transmissions of a file.

    FILE is a measurement file, or - for standard input. Each transmission gets a position with its uncertainty. Rows
    that cannot be right are refused, each with a reason, and the others are used. With --json the summary is printed;
    --out writes the fixes.
    """
    if follow and (out is not None or map_file is not None or as_json):
        raise click.UsageError("--follow prints fixes: leave out --out, --map and --json")
    check_file(file)
    sites = read_network(network)
    columns = mapping_of(mapping)
    known = _calibration(calibrated_by, sites)
    if out is not None and out.suffix.lower() not in WRITERS:
        raise ValueError(f"--out: the name must end in {', '.join(WRITERS)}, got {file_name(out)}")
    if map_file is not None and map_file.suffix.lower() not in {".html", ".htm"}:
        raise ValueError(f"--map: the name must end in .html, got {file_name(map_file)}")
    sources = (file, network, mapping, None if known is None else known.file)
    places = checked_outputs(sources, out=out, map=map_file, refused=refused)
    overrides = overrides_of(settings)
    scenario = scenario_of(Preset(preset or Preset.default), overrides)

    # PyTorch takes seconds to import: first of all the other mistakes are found.
    import torch

    from triangulation_pipeline.model.predict import locate_recordings
    from triangulation_pipeline.models import load_model

    checkpoint = load_model(reference)
    if preset is None and (its_own := checkpoint.spec.scenario) is not None:
        scenario = scenario_of(its_own, overrides)
    layout = Layout(sites, scenario)
    calibration = SiteCalibration.prior(sites) if known is None else known.calibration
    with watched_refusals(places.get("refused"), live=follow) as refusals:
        recordings = refusals.watch(read_measurements(file, layout, columns, file_format, live=follow))
        # Threads of PyTorch's own would do less, and for one transmission harm: blocks of a file are shared instead.
        workers = 1 if follow else min(MOST_WORKERS, torch.get_num_threads())
        torch.set_num_threads(1)
        # oneDNN keeps a program for each number of rows that it meets: memory would grow.
        torch.backends.mkldnn.set_flags(_enabled=False)
        fixes = locate_recordings(checkpoint, recordings, layout, calibration, workers)
        summary = _Summary(sites, MOST_FIXES if map_file is not None else SHOWN_FIXES)
        if follow:
            # What is loaded stays, and the collector of garbage would look at all of it now and then, for 50 ms.
            gc.freeze()
            ended_by = _print_each(fixes, refusals)
        else:
            seen = summary.watch(fixes)
            # Nothing is written before there is a fix.
            if (first := next(seen, None)) is not None:
                _write(places.get("out"), sites, chain([first], seen))
    if follow:
        if ended_by is not None:
            raise ended_by
        return
    if not summary.count:
        refusals.show()
        raise ValueError(f"there is nothing to locate in {file}: every row was refused")
    if "map" in places:
        with replaced_file(places["map"]) as target:
            write_map(target, sites, summary.kept, summary.further)
    written = [file_name(place) for place in places.values()]
    if as_json:
        described = {"network": sites.name, "network_digest": sites.digest, "model": reference}
        show_json(
            described
            | {"calibration": None if known is None else known.document(sites, summary)}
            | summary.document()
            | {"refused": refusals.document(), "written": written}
        )
        return
    summary.show()
    if known is None:
        say("not calibrated: the regions are as wide as unknown clocks make them (`triangulation calibrate`)")
    else:
        known.show(sites, summary)
    if columns.silence is Silence.heard_nothing and (without := summary.sites_without_rows()):
        say(
            f"no row is of {', '.join(without)}. This counts as having heard nothing: if a receiver was off, write "
            "`silence: unknown` into a mapping file; if it has another name in FILE, correct that"
        )
    refusals.show()
    for name in written:
        say(f"written: {name}")


def _write(place: Path | None, network: ReceiverNetwork, fixes: Iterable[Fixes]) -> None:
    """Writes fixes as they come; without a place they are only made."""
    if place is None:
        for _ in fixes:
            pass
        return
    with replaced_file(place) as target:
        WRITERS[place.suffix.lower()](target, network, fixes)


def _print_each(fixes: Iterable[Fixes], refusals: Refusals) -> BaseException | None:
    """Prints each fix as a line of JSON, and what was refused. Returns what ended it before the file did: Ctrl-C, or
    that nobody reads on. Live use ends so, and the table of refused rows is to be kept."""
    try:
        for chunk in fixes:
            for row in rows_of(chunk):
                click.echo(json.dumps(row, allow_nan=False))
    except (KeyboardInterrupt, BrokenPipeError) as ended_by:
        return ended_by
    finally:
        refusals.show(err=True)
    return None


@dataclass(frozen=True)
class _Calibration:
    """A calibration that was named, and where it is from."""

    calibration: SiteCalibration
    source: str
    file: Path | None

    def document(self, network: ReceiverNetwork, summary: "_Summary") -> dict[str, Any]:
        """Ready for JSON. ``age_s`` is that of the last transmission."""
        return {
            "source": self.source,
            "from_ns": self.calibration.from_ns,
            "to_ns": self.calibration.to_ns,
            "age_s": self.calibration.age_s(summary.to_ns),
            "not_calibrated": self._unknown(network),
        }

    def show(self, network: ReceiverNetwork, summary: "_Summary") -> None:
        """Prints where it is from, how old it was when it was used, and which sites it does not know."""
        told, from_ns = f"calibrated by {self.source}", self.calibration.from_ns
        age_s = self.calibration.age_s(summary.to_ns)
        if age_s is not None and age_s >= MINUTE_S:
            told += f", whose last measurement was {_duration(age_s)} before the last transmission"
        elif from_ns is not None and (ahead_s := (from_ns - summary.from_ns) / 1e9) >= MINUTE_S:
            told += f", whose first measurement was {_duration(ahead_s)} after the first transmission"
        say(told)
        if unknown := self._unknown(network):
            say(f"not calibrated, so that their arrival times count for less: {', '.join(unknown)}")

    def _unknown(self, network: ReceiverNetwork) -> list[str]:
        known = np.isfinite(self.calibration.toa_bias_sigma_ns)
        return [site.name for site, is_known in zip(network.sites, known, strict=True) if not is_known]


def _calibration(reference: str | None, network: ReceiverNetwork) -> _Calibration | None:
    """The calibration that --calibration names. Raises ValueError and StorageError."""
    if reference is None:
        return None
    stored = re.fullmatch("stored(?:/(.+))?", reference)
    if stored is None:
        path = Path(reference)
        return _Calibration(read_calibration(path, network), file_name(path), path)

    from triangulation_pipeline.storage.calibrations import find_calibration
    from triangulation_pipeline.storage.engine import open_existing_database
    from triangulation_pipeline.storage.settings import read_settings

    engine = open_existing_database(read_settings().database_url, "a calibration")
    try:
        found = find_calibration(engine, network, stored.group(1))
    finally:
        engine.dispose()
    return _Calibration(found.calibration, f"stored/{found.id}", None)


class _Summary:
    """What the terminal and the map show of a stream of fixes."""

    def __init__(self, network: ReceiverNetwork, most_kept: int) -> None:
        self._network, self._most_kept = network, most_kept
        self.kept: list[Fixes] = []
        self.count = self._located = 0
        self.from_ns, self.to_ns = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self._heard = np.zeros(len(network.sites), bool)
        self._flags = dict.fromkeys(FLAGS, 0)
        self._errors_m: list[np.ndarray] = []
        self._inside_count = dict.fromkeys(LEVELS, 0)

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
            self.from_ns = min(self.from_ns, int(chunk.columns["time_ns"].min()))
            self.to_ns = max(self.to_ns, int(chunk.columns["time_ns"].max()))
            self._heard |= chunk.heard.any(0)
            self._located += int(np.isfinite(chunk.columns["latitude"]).sum())
            # There are few combinations of flags.
            for flags, count in Counter(chunk.columns["flags"].tolist()).items():
                for flag in filter(None, flags.split("; ")):
                    self._flags[flag] += count
            if len(known := np.flatnonzero(np.isfinite(chunk.columns["error_m"]))):
                self._compare(chunk.take(known))
            yield chunk

    def _compare(self, known: Fixes) -> None:
        """Counts errors, and truths within the regions."""
        self._errors_m.append(known.columns["error_m"])
        truth = (known.columns[name] for name in ("true_latitude", "true_longitude", "altitude_m"))
        content = known.positions.content_at(self._network.frame.en_m(*truth))
        for level in LEVELS:
            self._inside_count[level] += int((content <= level).sum())

    def show(self) -> None:
        """Prints the first fixes, and what all of them have in common."""
        tables = [chunk.table.assign(num_heard=chunk.heard.sum(1)) for chunk in self.kept]
        table = pd.concat(tables, ignore_index=True).head(SHOWN_FIXES)
        columns: dict[str, Callable[[Row], Any]] = {
            "transmission": lambda row: row["transmission_id"][:LONGEST_WORD],
            "time": lambda row: row["time"][:19],
            "latitude": lambda row: _number(row["latitude"], 5),
            "longitude": lambda row: _number(row["longitude"], 5),
            "95 % m": lambda row: _number(row["semi_major_95_m"], 0),
            "heard": lambda row: row["num_heard"],
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
        if (known := self._known()) is not None:
            inside = ", ".join(f"{known[_inside(level)]:.1%} within the regions of {level:.0%}" for level in LEVELS)
            say(
                f"{_transmissions(known['transmissions'])} of known position: median error "
                f"{known['median_error_m']:,.0f} m, RMSE {known['rmse_m']:,.0f} m; {inside}"
            )

    def document(self) -> dict[str, Any]:
        """Counts and errors, ready for JSON."""
        return {
            "from_ns": self.from_ns,
            "to_ns": self.to_ns,
            "transmissions": self.count,
            "located": self._located,
            "sites_without_rows": self.sites_without_rows(),
            "flags": self._flags,
            "known": self._known(),
        }

    def sites_without_rows(self) -> list[str]:
        """The names of the sites that heard none of the transmissions."""
        return [site.name for site, heard in zip(self._network.sites, self._heard, strict=True) if not heard]

    def _known(self) -> dict[str, Any] | None:
        """The errors of the fixes whose true place is known, None if there are none."""
        if not self._errors_m:
            return None
        error_m = np.concatenate(self._errors_m)
        return {
            "transmissions": len(error_m),
            "median_error_m": round(float(np.median(error_m)), 1),
            "rmse_m": round(float(np.sqrt(np.mean(error_m**2))), 1),
            **{_inside(level): round(self._inside_count[level] / len(error_m), 4) for level in LEVELS},
        }


def _inside(level: float) -> str:
    return f"within_{100 * level:.0f}"


def _duration(seconds: float) -> str:
    """A length of time of a minute or more, in one unit."""
    unit, length = next(each for each in (("d", DAY_S), ("h", HOUR_S), ("min", MINUTE_S)) if seconds >= each[1])
    return f"{seconds / length:,.0f} {unit}"


def _transmissions(count: int) -> str:
    return "1 transmission" if count == 1 else f"{count:,} transmissions"


def _number(value: float, decimals: int) -> str | None:
    return f"{value:,.{decimals}f}" if np.isfinite(value) else None
