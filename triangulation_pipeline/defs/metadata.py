"""Values as Dagster shows them."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

# A longer table makes the event unwieldy.
EPOCH_TABLE_ROWS = 500

# What begins code, emphasis, a link, a picture, a tag, an entity or a bare address in Markdown, within a line.
_MARKDOWN = re.compile(
    r"[\\`*\[\]~|@]|(?<![^\W_])_|_(?![^\W_])|<(?=[a-z/!?])|&(?=[#a-z])|:(?=//)|(?<=www)\.", re.IGNORECASE
)


def words(text: str) -> str:
    """A line with users' text in it, for where Dagster renders Markdown (descriptions of check results): shown as it is
    written, and no browser fetches a picture that a name asks for."""
    return _MARKDOWN.sub(r"\\\g<0>", text)


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A picture shown in place, within the event itself (kept small by ``plots.style.png``)."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows with the same keys as a table."""
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers to five digits, for reading: a table of all digits is wider than the page, and pushes out what is
    beside it."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}


def epoch_table(history: Sequence[Mapping[str, Any]]) -> dict[str, dg.TableMetadataValue]:
    """The epochs, one or more, as a table named ``epochs``; of very many only every so manyth and the last, as the name
    then says."""
    every = -(-len(history) // EPOCH_TABLE_ROWS)
    return {"epochs" if every == 1 else f"epochs_every_{every}": table(history[::-every][::-1])}


def drop_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that have a value; Dagster shows None as a null entry of no type, which breaks its plots."""
    return {name: value for name, value in values.items() if value is not None}


# Dagster draws every number of an asset's events by the time of the event, all runs and networks together: so only
# those are given as numbers that are worth a line from version to version. They are the columns of the SQL views.
PLOTTED = (
    "test_rmse_good_geom_m",
    "test_p50_good_geom_m",
    "test_p95_good_geom_m",
    "test_coverage_95_good_geom",
    "huber_gauss_newton_p95_good_geom_m",
    "crlb_rms_good_geom_m",
    "test_rmse_m",
)


def plotted(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    """Of a model's headline the few numbers that Dagster draws from version to version; the tables have all."""
    return {name: numbers[name] for name in PLOTTED}
