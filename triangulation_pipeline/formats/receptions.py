"""Receptions as they stand in a measurement file: which column holds what, row by row."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from triangulation_pipeline.formats.columns import Form, Source, form_of, missing_column
from triangulation_pipeline.formats.instants import is_number, texts
from triangulation_pipeline.formats.sources import Piece, readable
from triangulation_pipeline.network import CLOCK_SIGMA_NS, ReceiverNetwork, Timing
from triangulation_pipeline.validation import shown

Bool = NDArray[np.bool_]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Receptions:
    """Receptions, as they were read: columns by field."""

    columns: dict[str, pa.Array]
    line: Int

    def take(self, rows: Bool) -> "Receptions":
        mask = pa.array(rows)
        return Receptions({field: column.filter(mask) for field, column in self.columns.items()}, self.line[rows])

    def joined(self, *others: "Receptions") -> "Receptions":
        """These rows and others after them. A column that one lacks has no values there."""
        parts = [rows for rows in (self, *others) if len(rows.line)]
        if len(parts) < 2:
            return parts[0] if parts else self

        def column(field: str) -> pa.Array:
            found = [rows.columns.get(field, pa.nulls(len(rows.line), pa.string())) for rows in parts]
            if len({part.type for part in found}) > 1:
                found = [texts(part) for part in found]
            return pa.concat_arrays(found)

        fields = dict.fromkeys(field for rows in parts for field in rows.columns)
        return Receptions({field: column(field) for field in fields}, np.concatenate([rows.line for rows in parts]))


class ReceptionReader:
    """Finds the fields of the pieces of a file."""

    def __init__(self, network: ReceiverNetwork, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self._unknown_clocks = [
            site.name for site in network.sites if site.timing is not Timing.none and site.timing not in CLOCK_SIGMA_NS
        ]
        self._form: tuple[list[str], Form] | None = None
        self.has_rows = False

    def of_piece(self, piece: Piece) -> Receptions:
        """The rows by field; of the wide form one for each receiver that has a value."""
        self.has_rows = self.has_rows or len(piece.line) > 0 or len(piece.broken) > 0
        names = list(piece.columns)
        if not names:
            return Receptions({}, piece.line)
        if self._form is None or self._form[0] != names:
            form = form_of(names, self._sources)
            if self._form is None:
                self._check_columns(names, form)
            self._form = names, form
        form = self._form[1]
        columns = {field: self._column(field, name, piece) for field, name in form.columns.items()}
        if not form.of_receiver:
            return Receptions(columns, piece.line)
        columns.setdefault("transmission_id", pa.array(piece.line).cast(pa.string()))
        parts = []
        for receiver, names_of in form.of_receiver.items():
            own = {field: self._column(field, name, piece) for field, name in names_of.items()}
            heard = np.zeros(len(piece.line), bool)
            for column in own.values():
                heard |= has_value(column)
            whole = Receptions(columns | own | {"receiver": pa.repeat(receiver, len(piece.line))}, piece.line)
            parts.append(whole.take(heard))
        rows = parts[0].joined(*parts[1:])
        order = np.argsort(rows.line, kind="stable")
        return Receptions(
            {field: column.take(pa.array(order)) for field, column in rows.columns.items()}, rows.line[order]
        )

    def _column(self, field: str, name: str, piece: Piece) -> pa.Array:
        """A column of a file, without the values that are declared as missing."""
        column = readable(name, piece.columns[name])
        missing = self._sources[field].missing if field in self._sources else ()
        if not missing:
            return column
        if is_number(column.type):
            numeric = pa.array([float(value) for value in missing if isinstance(value, float)], pa.float64())
            absent = pc.is_in(column.cast(pa.float64(), safe=False), numeric)
        else:
            written = {str(value) for value in missing} | {f"{v:g}" for v in missing if isinstance(v, float)}
            absent = pc.is_in(texts(column), pa.array(sorted(written)))
        return pc.if_else(absent, pa.scalar(None, column.type), column)

    def _check_columns(self, names: list[str], form: Form) -> None:
        """Raises ValueError if what every file needs is missing."""
        found = {*form.columns, *self._sources}
        if not found:
            raise ValueError(f"its first line names no column that is known, it begins with {shown(names[0])}")
        if form.of_receiver:
            found |= {"transmission_id", "receiver"}.union(*form.of_receiver.values())
        needed = {
            "transmission_id": ("transmission_id",),
            "receiver": ("receiver",),
            "toa_ns or rssi_dbm": ("toa_ns", "rssi_dbm"),
            "time (one for a transmission) or toa_ns (one for each receiver)": ("time", "toa_ns"),
        }
        for what, fields in needed.items():
            if found.isdisjoint(fields):
                raise missing_column(names, what)
        if "toa_ns" in found and "toa_sigma_ns" not in found and self._unknown_clocks:
            raise ValueError(
                f"it has no column toa_sigma_ns, and the clock of site {shown(self._unknown_clocks[0])} has "
                "no known standard deviation; give one in a mapping file, as in toa_sigma_ns: {constant: 50}, or name "
                f"the clock in the network file, timing: {' or '.join(CLOCK_SIGMA_NS)}"
            )


def has_value(column: pa.Array) -> Bool:
    """(n,) whether there is a value in each row."""
    column = column if is_number(column.type) else texts(column)
    return ~np.asarray(pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False))
