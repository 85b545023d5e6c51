"""Values as Dagster shows them."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A picture shown in place, within the event itself (kept small by ``evaluation.plots``)."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows with the same keys as a table."""
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that have a value; Dagster shows None as a null entry of no type, which breaks its plots."""
    return {name: value for name, value in values.items() if value is not None}
