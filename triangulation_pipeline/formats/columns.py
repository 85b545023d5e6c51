"""The columns of measurement files: their names, other names, units, and the mapping file that declares others."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from triangulation_pipeline.documents import file_name, is_name, parse_yaml, read_text
from triangulation_pipeline.validation import expanded, one_sentence, refuse_booleans, shown

RECEPTION_FIELDS = ("toa_ns", "toa_sigma_ns", "rssi_dbm", "snr_db", "frequency_offset_hz")
"""What a receiver reports; in the wide form each is a column for each receiver."""
PLACE_FIELDS = ("latitude", "longitude", "altitude_m")
FIELDS = (
    "transmission_id",
    "time",
    "receiver",
    *RECEPTION_FIELDS[:4],
    "frequency_hz",
    "frequency_offset_hz",
    *PLACE_FIELDS,
)
"""The columns of the long form, in the order in which they are written."""

# Names in other files, in lower case. A name without a unit is here only if all who use it mean the same unit.
_OTHER_NAMES = {
    "transmission_id": "id deduplicationid message_id uuid",
    "receiver": "gateway gateway_id gatewayid station station_id sensor serial hotspot anchor bs",
    "rssi_dbm": "rssi power power_dbm rss",
    "snr_db": "snr lorasnr",
    "latitude": "lat",
    "longitude": "lon lng long",
}
ALIASES = {alias: field for field, names in _OTHER_NAMES.items() for alias in names.split()}

_TIME_UNITS = {"ns": 0, "us": 3, "ms": 6, "s": 9}
"""Decimal places between each unit and the nanosecond."""
_FREQUENCY_UNITS = {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6}
UNITS: dict[str, Mapping[str, float]] = {
    "time": _TIME_UNITS,
    "toa_ns": _TIME_UNITS,
    "toa_sigma_ns": _TIME_UNITS,
    "frequency_hz": _FREQUENCY_UNITS,
    "frequency_offset_hz": _FREQUENCY_UNITS,
    "altitude_m": {"m": 1.0, "ft": 0.3048},
}
_NO_CONSTANT = ("transmission_id", "time", "receiver", "toa_ns")
# A wrong name is close to the right one if their likeness (``difflib``) is at least this.
_CLOSE = 0.8


class Source(BaseModel):
    """Where the values of a field come from: a column of the file, or one value for all rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str | None = None
    constant: float | None = None
    unit: str | None = None
    missing: tuple[float | str, ...] = ()

    _no_booleans = model_validator(mode="before")(refuse_booleans)

    @field_validator("missing", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)

    def is_within(self, receptions: str) -> bool:
        """Whether the column is a part of the entries of such a column."""
        return self.column is not None and self.column.startswith(f"{receptions}.")

    @model_validator(mode="after")
    def _column_or_constant(self) -> Self:
        if (self.column is None) == (self.constant is None):
            raise ValueError("must have a column or a constant, and not both")
        if self.constant is not None and self.missing:
            raise ValueError("a constant has no missing values")
        return self


class Silence(StrEnum):
    """What it means that a site has no row of a transmission: it heard nothing, or nobody knows whether it listened."""

    heard_nothing = "heard_nothing"
    unknown = "unknown"


@dataclass(frozen=True)
class ColumnMapping:
    """What a mapping file says of measurement files."""

    sources: Mapping[str, Source]  # by field
    silence: Silence = Silence.heard_nothing
    receptions: str | None = None  # the column of a list with an entry for each receiver

    def may_name(self, column: str) -> bool:
        """Whether a column of that name may hold a field, in either form, or a part of one that is named here."""
        suffix = column.rpartition(".")[2]
        if not {column.strip().casefold(), suffix.strip().casefold()}.isdisjoint((*FIELDS, *ALIASES)):
            return True
        named = (self.receptions, *(source.column for source in self.sources.values()))
        return any(name in (column, suffix) or name.startswith(f"{column}.") for name in named if name is not None)


PLAIN = ColumnMapping({})
"""The mapping of files that need none."""


def read_mapping(path: str | Path) -> ColumnMapping:
    """Reads a mapping file: which column, unit and missing values each field of a measurement file has.

    It is YAML. Each key is a field (``toa_ns``), its value the name of a column, or a mapping of ``column`` or
    ``constant``, ``unit`` and ``missing``::

        receiver: station name
        toa_ns: {column: fine time, unit: s}
        toa_sigma_ns: {constant: 50}
        rssi_dbm: {column: power, missing: [-200, 100]}

    Two further keys are known. ``silence: unknown`` says that a site without a row may not have listened at all, as in
    recordings of volunteers. Otherwise it listened and heard nothing (``silence: heard_nothing``), which tells where a
    transmitter is not. ``receptions`` names a column that holds a list with an entry for each receiver. What is in an
    entry is named after a point, by its place from 0 or by its key::

        receptions: measurements
        receiver: measurements.0
        toa_ns: measurements.1

    Units are ns, us, ms, s of times; Hz, kHz, MHz of frequencies; m, ft of altitudes. In the wide form, ``column`` is
    what follows the last point of a column's name.

    Parameters
    ----------
    path : str or Path
        The file; ``~`` is replaced by the home folder.

    Returns
    -------
    ColumnMapping

    Raises
    ------
    ValueError
        With one sentence that names the file, the field and what would be right.
    """
    try:
        path = expanded(path)
        text = read_text(path)
    except ValueError as error:
        raise ValueError(f"mapping file {error}") from None
    try:
        return parse_mapping(parse_yaml(text))
    except ValueError as error:
        raise ValueError(f"mapping file {file_name(path)}: {error}") from None


def parse_mapping(document: Any) -> ColumnMapping:
    """What the content of a mapping file says. Raises ValueError with one sentence."""
    if not isinstance(document, Mapping):
        raise ValueError(f"it must have a line for each field, as in 'receiver: station', it is {shown(document)}")
    found, silence, receptions = {}, Silence.heard_nothing, None
    for field, value in document.items():
        if field == "silence":
            if value not in list(Silence):
                raise ValueError(f"silence must be one of {', '.join(Silence)}, got {shown(value)}")
            silence = Silence(value)
            continue
        if field == "receptions":
            if not isinstance(value, str):
                raise ValueError(f"receptions must be the name of a column, got {shown(value)}")
            receptions = value
            continue
        if field not in FIELDS:
            close = (
                difflib.get_close_matches(field.lower(), (*FIELDS, "silence", "receptions"), 1)
                if is_name(field)
                else []
            )
            raise ValueError(
                f"unknown field{f' {field!r}' if is_name(field) else ''}; "
                + (f"meant {close[0]}?" if close else f"known are {', '.join(FIELDS)}")
            )
        if not isinstance(value, str | Mapping):
            raise ValueError(f"{field}: must be the name of a column, or a mapping, got {shown(value)}")
        try:
            source = Source.model_validate({"column": value} if isinstance(value, str) else value)
        except ValidationError as error:
            raise ValueError(f"{field}: {one_sentence(error)}") from None
        _check_source(field, source)
        found[field] = source
    if receptions is not None and not ((receiver := found.get("receiver")) and receiver.is_within(receptions)):
        raise ValueError(f"receptions: name the receiver of an entry too, as in 'receiver: {receptions}.0'")
    return ColumnMapping(found, silence, receptions)


def _check_source(field: str, source: Source) -> None:
    units = UNITS.get(field, {})
    if source.unit is not None and source.unit not in units:
        choice = f"must be one of {', '.join(units)}" if units else "does not exist for this field"
        raise ValueError(f"{field}: the unit {choice}, got {shown(source.unit)}")
    if source.constant is not None and field in _NO_CONSTANT:
        raise ValueError(f"{field}: it cannot be a constant, because it differs between rows; name a column")


@dataclass(frozen=True)
class Form:
    """Which column holds which field: in the long form for all rows, in the wide form also for each receiver."""

    columns: dict[str, str]  # by field
    of_receiver: dict[str, dict[str, str]]  # receiver, then field; empty in the long form


def form_of(names: Iterable[str], mapping: Mapping[str, Source]) -> Form:
    """The form of a file with these columns. Raises ValueError with one sentence if it cannot be told."""
    names = list(names)
    receivers: dict[str, dict[str, str]] = {}
    for name in names:
        receiver, point, suffix = name.rpartition(".")
        if point:
            receivers.setdefault(receiver, {})[suffix] = name
    in_mapping = {source.column for field, source in mapping.items() if field in RECEPTION_FIELDS}
    folded = {name.strip().casefold() for name in names}
    is_long = "receiver" in mapping or not folded.isdisjoint(_names_of("receiver"))
    known = set().union(*(_names_of(field) for field in RECEPTION_FIELDS))
    suffixes = {suffix for by_suffix in receivers.values() for suffix in by_suffix}
    if is_long or not any(suffix in in_mapping or suffix.strip().casefold() in known for suffix in suffixes):
        return Form(_columns_of_fields(names, mapping, FIELDS), {})
    common = [field for field in FIELDS if field not in RECEPTION_FIELDS and field != "receiver"]
    return Form(
        _columns_of_fields(names, mapping, common),
        {
            receiver: {
                field: by_suffix[suffix]
                for field, suffix in _columns_of_fields(
                    by_suffix,
                    {field: source for field, source in mapping.items() if source.column in by_suffix},
                    RECEPTION_FIELDS,
                ).items()
            }
            for receiver, by_suffix in receivers.items()
        },
    )


def _names_of(field: str) -> set[str]:
    return {field, *_OTHER_NAMES.get(field, "").split()}


def _bare(name: str) -> str:
    """A name in lower case without a unit in brackets, blanks and hyphens: ``Power [dBm]`` is ``power``."""
    return re.sub(r"[ -]+", "_", re.sub(r"[\[(].*?[\])]", "", name).strip().casefold())


def _bare_names_of(field: str) -> set[str]:
    """The names of a field as ``_bare`` makes them, also without the unit."""
    return {*_names_of(field), field.removesuffix("_ns").removesuffix("_hz").removesuffix("_m")}


def _columns_of_fields(names: Iterable[str], mapping: Mapping[str, Source], fields: Iterable[str]) -> dict[str, str]:
    """Which column holds which field. A mapping goes first, then the field's own name, then another name of it.

    Raises ValueError with one sentence if a column of the mapping is missing, if two columns may hold one field, or if
    a name is close to that of a field which no column holds.
    """
    names = list(names)
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.strip().casefold(), []).append(name)
    mapped = {source.column for source in mapping.values()}
    found: dict[str, str] = {}
    unclear: dict[str, str] = {}
    for field in fields:
        if field in mapping:
            column = mapping[field].column
            if column is not None and column not in names:
                raise without_column(names, column, field)
            if column is not None:
                found[field] = column
            continue
        others = [name for alias in sorted(_names_of(field) - {field}) for name in folded.get(alias, [])]
        candidates = folded.get(field) or [name for name in others if name not in mapped]
        if len(candidates) > 1:
            raise ValueError(
                f"the columns {shown(candidates[0])} and {shown(candidates[1])} may both be {field}; name one in a "
                "mapping file"
            )
        if candidates:
            found[field] = candidates[0]
        else:
            meant = [name for name in folded if _bare(name) in _bare_names_of(field)]
            unclear |= dict.fromkeys(meant[:1] or difflib.get_close_matches(field, folded, 1, _CLOSE), field)
    for name, field in unclear.items():
        if name not in {*ALIASES, *FIELDS} and mapped.isdisjoint(folded[name]):
            raise ValueError(
                f"unknown column {shown(folded[name][0])}; meant {field}? Rename it, or name it in a mapping file"
            )
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"the columns are {', '.join(shown(name) for name in names[:8])}{more}"


def without_column(names: Iterable[str], column: str, field: str) -> ValueError:
    """The error on a column of a mapping file that a measurement file does not have."""
    return ValueError(f"the column {shown(column)} of {field} is missing; {_listed(list(names))}")


def missing_column(names: Iterable[str], what: str) -> ValueError:
    """The error on a column that every file needs."""
    return ValueError(f"it has no column {what}; {_listed(list(names))}; other names are declared in a mapping file")
