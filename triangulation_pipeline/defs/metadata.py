"""Values in the form in which Dagster shows them."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from triangulation_pipeline.storage.views import MEASURED

# With more rows the event would be too large.
EPOCH_TABLE_ROWS = 500

# The characters that begin code, emphasis, a link, a picture, a tag, an entity or a bare address in a line of Markdown.
_MARKDOWN = re.compile(
    r"[\\`*\[\]~|@]|(?<![^\W_])_|_(?![^\W_])|<(?=[a-z/!?])|&(?=[#a-z])|:(?=//)|(?<=www)\.", re.IGNORECASE
)


def escape_markdown(text: str) -> str:
    """A line of text, escaped so that Markdown shows it as it is written.

    Dagster renders the descriptions of check results as Markdown. Without this, a name with a link to a picture in it
    would make browsers load that picture.
    """
    return _MARKDOWN.sub(r"\\\g<0>", text)


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A picture that is shown on the page. The event contains it, so it should be small (see ``plots.style.png``)."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """A table of rows that have the same keys."""
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its numbers rounded to five digits: a table of all digits would be wider than the page."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}


def epoch_table(history: Sequence[Mapping[str, Any]]) -> dict[str, dg.TableMetadataValue]:
    """The epochs, one or more, as a table named ``epochs``.

    A long history is thinned to every nth epoch and the last; the table is then named ``epochs_every_{n}``.
    """
    every = -(-len(history) // EPOCH_TABLE_ROWS)
    return {"epochs" if every == 1 else f"epochs_every_{every}": table(history[::-every][::-1])}


def drop_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without those of value None, which would break Dagster's plots."""
    return {name: value for name, value in values.items() if value is not None}


def plotted(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    """The few numbers of a model's headline that the SQL views have too. The tables have them all.

    Dagster draws each number of an asset's events over time, for all runs and networks together. So only numbers that
    are worth a line from version to version are given as numbers.
    """
    return {name: numbers[name] for name in MEASURED}
