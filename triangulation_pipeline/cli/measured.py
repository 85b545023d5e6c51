"""What commands that read a measurement file have in common."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from triangulation_pipeline.cli.options import set_option
from triangulation_pipeline.cli.tables import say
from triangulation_pipeline.documents import file_name
from triangulation_pipeline.formats.columns import PLAIN, ColumnMapping, read_mapping
from triangulation_pipeline.formats.recording import REFUSED_COLUMNS, Recording
from triangulation_pipeline.formats.sources import STANDARD_INPUT, Format
from triangulation_pipeline.outputs import checked_output, replaced_file
from triangulation_pipeline.physics.scenario import Preset
from triangulation_pipeline.validation import expanded, shown

Command = Callable[..., Any]

_REFUSED_SCHEMA = pa.schema([(name, pa.int64() if name == "line" else pa.string()) for name in REFUSED_COLUMNS])


def measurement_options(command: Command) -> Command:
    """The file, the network, how both are to be read and where refused rows are written: ``file``, ``network``,
    ``mapping``, ``file_format``, ``preset``, ``settings`` and ``refused``."""
    for option in (
        click.option(
            "--refused",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write every refused row as CSV: line, transmission, column, value and reason.",
        ),
        set_option,
        click.option(
            "--preset",
            type=click.Choice([preset.value for preset in Preset]),
            help="The conditions, as in a run. Without it locate takes those of a model that was trained for one "
            "network; else they are default.",
        ),
        click.option(
            "--format",
            "file_format",
            type=click.Choice([form.value for form in Format]),
            help="The format of FILE, instead of what its ending says.",
        ),
        click.option(
            "--mapping",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A mapping file, which names columns, units and missing values of FILE.",
        ),
        click.option(
            "--network", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The network file."
        ),
        click.argument("file", metavar="FILE"),
    ):
        command = option(command)
    return command


def check_file(file: str) -> None:
    """Raises ValueError if the measurement file does not exist, before anything slow is imported."""
    if file != STANDARD_INPUT and not expanded(file).exists():
        raise ValueError(f"{file_name(Path(file))} does not exist")


def mapping_of(path: Path | None) -> ColumnMapping:
    """The mapping of a file, or none. Raises ValueError."""
    return PLAIN if path is None else read_mapping(path)


def checked_outputs(read: Iterable[str | Path | None], **written: Path | None) -> dict[str, Path]:
    """The absolute path of each file that an option names to be written.

    Raises ValueError if one cannot be written, is one of the files that are ``read``, or is written by two options.
    """
    taken = {expanded(path).absolute().resolve(): "the command reads it" for path in read if path is not None}
    places = {}
    for option, path in written.items():
        if path is None:
            continue
        places[option] = checked_output(path)
        place = places[option].resolve()
        if place in taken:
            raise ValueError(f"--{option}: {file_name(path)} cannot be written: {taken[place]}")
        taken[place] = f"--{option} writes it"
    return places


class Refusals:
    """The rows of a file that were refused: how many for each reason, and the first of each."""

    def __init__(self, writer: pa_csv.CSVWriter | None, live: bool) -> None:
        self._found: dict[str, tuple[int, Any]] = {}
        self._writer, self._live = writer, live

    def watch(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """The recordings themselves; what was refused in them is counted, and written into the table. In live use the
        first row of each reason is told on standard error at once."""
        for recording in recordings:
            for reason, rows in recording.refused.groupby("reason", sort=False):
                count, first = self._found.get(str(reason), (0, rows.iloc[0]))
                self._found[str(reason)] = count + len(rows), first
                if self._live and not count:
                    say(f"refused: {reason} ({_where(first)})", err=True)
            if self._writer is not None:
                self._writer.write_table(pa.Table.from_pandas(recording.refused, _REFUSED_SCHEMA, preserve_index=False))
            yield recording

    def document(self) -> list[dict[str, Any]]:
        """Count, reason and the first row of each reason, ready for JSON; the most frequent first."""
        return [
            {
                "rows": count,
                "reason": reason,
                "first": {name: value if isinstance(value, str) else int(value) for name, value in first.items()},
            }
            for reason, (count, first) in sorted(self._found.items(), key=lambda item: -item[1][0])
        ]

    def show(self, *, err: bool = False) -> None:
        """Prints a line for each reason, on standard output or on standard error."""
        for found in self.document():
            rows = "1 row" if found["rows"] == 1 else f"{found['rows']:,} rows"
            say(f"refused {rows}: {found['reason']} (first in {_where(found['first'])})", err=err)


def _where(row: Mapping[str, Any] | pd.Series) -> str:
    """Line, column and value of a refused row."""
    where = f"line {row['line']:,}"
    if row["column"]:
        where += f", {row['column']} {shown(row['value'])}" if row["value"] else f", {row['column']}"
    return where


@contextmanager
def watched_refusals(place: Path | None, live: bool = False) -> Iterator[Refusals]:
    """What is refused while the block runs; its table is written to that file, if there is one. ``live``: the file is
    being written, and its end may be far."""
    if place is None:
        yield Refusals(None, live)
        return
    style = pa_csv.WriteOptions(quoting_style="needed")
    with replaced_file(place) as file, pa_csv.CSVWriter(file, _REFUSED_SCHEMA, write_options=style) as writer:
        yield Refusals(writer, live)
