"""Rows and lines on the terminal, and as JSON.

Stored names, reasons and a server's messages may come from other people. They are printed by ``say`` or ``plain``: the
terminal gets printable characters only, and rich reads no markup and no emoji codes in them.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from triangulation_pipeline.validation import printable

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
# If the terminal is narrow, a longer cell continues on the next line. A shorter one is never broken.
LONGEST_WORD = 12

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], Any]]
"""Title of each column, and what it shows of a row."""


def say(text: str, *, err: bool = False) -> None:
    """Prints one line on standard output, or on standard error."""
    click.echo(printable(text), err=err)


def short(full_id: str) -> str:
    """The first characters of an id, which every command accepts instead of the whole."""
    return full_id[:8]


def plain(text: str) -> Text:
    """A text that rich shows as it is."""
    return Text(printable(text))


def show_rows(
    rows: list[dict[str, Any]],
    as_json: bool,
    columns: Columns,
    note: Callable[[Row], str | None] = lambda row: None,
) -> None:
    """Prints rows as JSON, with all their columns, or as a table of ``columns``.

    The table is as narrow as it can be without cutting anything. Under it come the sentences that ``note`` gives, each
    after the first cell of its row.
    """
    if as_json:
        show_json(rows)
        return
    if not rows:
        click.echo("none")
        return
    # The first column names the row, even if it consists of digits.
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    cells = [[_cell(make(row)) for make in columns.values()] for row in rows]
    for number, title in enumerate(columns):
        column = [line[number] for line in cells]
        are_numbers = number > 0 and all(re.fullmatch(r"-|[\d.,/e+-]*\d", cell) for cell in column)
        folds = max(map(len, column)) > LONGEST_WORD
        table.add_column(title, justify="right" if are_numbers else "left", overflow="fold", no_wrap=not folds)
    for line in cells:
        table.add_row(*map(plain, line))
    console = Console()
    if not sys.stdout.isatty():
        # In a pipe or a file lines are not broken.
        console.width = console.measure(table, options=console.options.update(max_width=100_000)).maximum
    console.print(table)
    for row, (first, *_) in zip(rows, cells, strict=True):
        if (sentence := note(row)) is not None:
            console.print(plain(f"{first}: {sentence}"), soft_wrap=not sys.stdout.isatty())


def ago(moment: str | None) -> str | None:
    """How long ago a moment (ISO 8601) was, in one unit. For 30 days and more it is the date."""
    if moment is None:
        return None
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    if seconds >= 30 * DAY_S:
        return moment[:10]
    for unit, length in (("d", DAY_S), ("h", HOUR_S), ("min", MINUTE_S)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def epochs_done(row: Row) -> str:
    """The epochs done and the epochs in all, of a row of ``job_overview``."""
    return f"{row['current_epoch']}/{row['total_epochs']}"


def tenths(value: float | None) -> str | None:
    """A number with one decimal, as for errors in metres."""
    return None if value is None else f"{value:,.1f}"


def percent(fraction: float | None) -> str | None:
    """A fraction in percent, with one decimal."""
    return None if fraction is None else f"{100 * fraction:.1f}"


def show_json(value: Any) -> None:
    """Prints one JSON document on standard output. Characters outside ASCII are escaped."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
