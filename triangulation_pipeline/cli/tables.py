"""Rows on the terminal, and as JSON."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table


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
        table.add_row(*(escape(_cell(row[name])) for name in shown))
    # A pipe or a file gets whole lines.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def show_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
