"""Rows and lines on the terminal, and as JSON.

Whatever is printed may come from somebody else: stored names, reasons, a server's messages. It goes through ``say`` or
``plain``: the terminal gets printable characters only, and rich reads no markup and no emoji codes in them.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from triangulation_pipeline.validation import printable


def say(text: str, *, err: bool = False) -> None:
    """One line on standard output, or standard error."""
    click.echo(printable(text), err=err)


def short(full_id: str) -> str:
    """The beginning of an id, which every command takes for the whole."""
    return full_id[:8]


def plain(text: str) -> Text:
    """A text for rich, shown as it is."""
    return Text(printable(text))


def show_rows(rows: list[dict[str, Any]], as_json: bool, shown: Sequence[str]) -> None:
    """All columns as JSON, or those ``shown`` as a table."""
    if as_json:
        show_json(rows)
        return
    if not rows:
        click.echo("none")
        return
    table = Table(show_edge=False)
    for name in shown:
        number = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(plain(_cell(row[name])) for name in shown))
    console = Console()
    if not sys.stdout.isatty():
        # A pipe or a file gets whole lines.
        console.width = console.measure(table, options=console.options.update(max_width=100_000)).maximum
    console.print(table)


def show_json(value: Any) -> None:
    """One JSON document on standard output; what is not ASCII in it is escaped."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
