"""Measurement files: one row for each reception (long form), or one for each transmission (wide form).

Rows of one transmission have one ``transmission_id`` and stand within ``WINDOW_LINES`` lines of its first row; others
may stand between them. A row that cannot be right is refused with a reason, and the others are used.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from triangulation_pipeline.formats.columns import (
    FIELDS,
    PLACE_FIELDS,
    PLAIN,
    UNITS,
    ColumnMapping,
    Form,
    Silence,
    Source,
    form_of,
    missing_column,
)
from triangulation_pipeline.formats.instants import NS_PER_S, Times, is_number, numbers, texts, times
from triangulation_pipeline.formats.nested import unnested
from triangulation_pipeline.formats.recording import REFUSED_COLUMNS, Recording
from triangulation_pipeline.formats.sources import Format, Piece, format_of, named, piece_of, pieces, readable
from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import CLOCK_SIGMA_NS, REACH_M, folded_name
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import noise_floor_dbm
from triangulation_pipeline.validation import printable, shown

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.int64]

WINDOW_LINES = 10_000
# A block has so many transmissions at most, and so many pairs of a transmission and a site.
BLOCK_TRANSMISSIONS, MOST_CELLS = 8192, 1_000_000
# A transmission and its arrival times lie within a light second, 300,000 km.
LONGEST_FLIGHT_NS = NS_PER_S
# Receivers tune to the nominal carrier or measure it; what differs by more is another transmission.
FREQUENCY_SPREAD = 1e-3
# So many transmissions that have ended are remembered, 8 bytes each, to know their late rows.
_REMEMBERED = 2**20
_SHOWN_CHARACTERS = 40
# Among so many transmissions arrival times differ, by half, by more than this share of the distance between the sites.
_LEAST_SPREADS, _LEAST_SPREAD = 10, 2e-3

# What is possible. Thermal noise in 1 Hz is -174 dBm; 50 dBm are 100 W into the receiver.
_LIMITS: dict[str, tuple[float, float, str]] = {
    "toa_sigma_ns": (1e-3, 1e9, "a standard deviation must be a picosecond to a second"),
    "rssi_dbm": (-174.0, 50.0, "a level must be -174 to 50 dBm; a mapping file declares what stands for no value"),
    "snr_db": (-60.0, 150.0, "a signal-to-noise ratio must be -60 to 150 dB"),
    "frequency_hz": (1e3, 3e11, "a carrier must be 1 kHz to 300 GHz"),
    "frequency_offset_hz": (-1e8, 1e8, "a frequency offset must be at most 100 MHz"),
    "latitude": (-90.0, 90.0, "a latitude must be -90 to 90 degrees"),
    "longitude": (-180.0, 180.0, "a longitude must be -180 to 180 degrees"),
    "altitude_m": (-1000.0, 100_000.0, "an altitude must be -1 to 100 km"),
}
NO_NUMBER = "not a number such as -91.5"
NO_TIME_TEXT = "not a time: a number with all its digits, or ISO 8601 with Z or an offset, of the years 1970 to 2199"
NO_ID = "no transmission_id"
NO_RECEIVER = "no receiver"
UNKNOWN_RECEIVER = "no site of the network has this name"
ANOTHER_SPELLING = "no site of the network has this name; one has it with other capitals or blanks"
NO_UTF8 = "a receiver's name that is not UTF-8 text"
NO_VALUE = "neither an arrival time nor a level"
NO_TIME = "no time"
NO_SIGMA = "an arrival time without toa_sigma_ns, from a site whose clock has no known standard deviation"
NOT_TIMED = "an arrival time from a site with timing: none"
TWICE = "two rows of one receiver in one transmission"
LATE = f"more than {WINDOW_LINES:,} lines after the first row of its transmission"
APART = "apart from the other rows of its transmission"
ANOTHER_TIME = "another time than the rest of its transmission, from which arrival times count"
FAR_TIME = "a time more than a second from the rest of its transmission"
FAR_TOA = "an arrival time more than a light second from its transmission"
ANOTHER_FREQUENCY = "another frequency than the rest of its transmission"
FAR_PLACE = "a place of the transmitter beyond the reach of the network; latitude and longitude may be swapped"
ANOTHER_PLACE = "another place of the transmitter than in an earlier row of its transmission"
HALF_PLACE = "a latitude without a longitude, or the other way round"


def read_measurements(
    path: str | Path,
    layout: Layout,
    mapping: ColumnMapping = PLAIN,
    file_format: str | None = None,
    live: bool = False,
) -> Iterator[Recording]:
    """Reads a measurement file in blocks of at most 8192 transmissions. The memory that it takes does not grow.

    The columns of the long form are ``transmission_id, time, receiver, toa_ns, toa_sigma_ns, rssi_dbm, snr_db,
    frequency_hz, frequency_offset_hz``, and ``latitude, longitude, altitude_m`` of transmitters that are known. The
    wide form has ``<receiver>.toa_ns`` and so on, in one row for each transmission. Names are case-blind, and the usual
    other names are known (``columns.ALIASES``).

    ``toa_ns`` are whole or decimal numbers of nanoseconds since 1970, or from the ``time`` of the transmission. Which
    of the two is decided once for a file, by the size of its first numbers. If there is no column ``time``, a
    transmission has the time of its first arrival.

    What a file leaves out: carrier and altitude of a transmitter are those of the scenario, a standard deviation is
    that of the site's clock (``timing`` in the network file), a frequency offset is 0; a level (``power_dbm``) and
    ``snr_db`` are NaN. A site without a row heard nothing, and has its noise floor,
    or NaN if the mapping says that its silence is unknown.

    Parameters
    ----------
    path : str or Path
        CSV, JSON lines or Parquet by its ending, also gzip; ``-`` is standard input.
    layout : Layout
        The network that measured, and the scenario that holds there.
    mapping : ColumnMapping, optional
        Other columns, units, constants and missing values, and what silence means (``read_mapping``).
    file_format : str, optional
        ``csv``, ``jsonl`` or ``parquet``, in place of the ending. Without it, standard input is CSV.
    live : bool, optional
        Whether the file is being written: a transmission is given as soon as a row of another one follows. Its rows
        then stand directly one after the other. Parquet cannot be read so.

    Yields
    ------
    Recording
        In the order of the transmissions' first rows. Each refused row is in one block; blocks may have nothing else.

    Raises
    ------
    ValueError
        With one sentence that names the file, if it is not what it says, lacks a column that is needed, or if its
        arrival times have too few digits.
    """
    place = named(str(path))
    try:
        kind = format_of(str(path), file_format)
        if live and kind is Format.parquet:
            raise ValueError("Parquet cannot be read while it is written, as its index is at the end")
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    rows = unnested(pieces(str(path), kind, live), mapping)
    return _with_place(place, _blocks(rows, _Reader(layout, mapping, WINDOW_LINES, live)))


def recording_of_frame(frame: pd.DataFrame, layout: Layout, mapping: ColumnMapping = PLAIN) -> Recording:
    """Measurements of a data frame, with the columns of a measurement file.

    Parameters
    ----------
    frame : DataFrame
        One row for each reception, in any order, or the wide form. The index is not used.
    layout : Layout
        The network that measured, and the scenario that holds there.
    mapping : ColumnMapping, optional
        As in ``read_measurements``.

    Returns
    -------
    Recording
        ``line`` is the number of the row, from 1.

    Raises
    ------
    ValueError
        As ``read_measurements``.
    """
    try:
        table = pa.Table.from_pandas(frame.rename(columns=str), preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"data frame: a column has values of different kinds ({shown(str(error))})") from None
    # All rows are at hand, so those of a transmission may stand anywhere.
    reader = _Reader(layout, mapping, window=len(frame), live=False)
    return Recording.concatenate(
        list(_with_place("data frame", _blocks(unnested([piece_of(table, 1)], mapping), reader)))
    )


def _with_place(place: str, blocks: Iterator[Recording]) -> Iterator[Recording]:
    try:
        yield from blocks
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _blocks(source: Iterable[Piece], reader: "_Reader") -> Iterator[Recording]:
    held = _Rows({}, np.zeros(0, np.int64))
    for piece in source:
        held = held.joined(reader.receptions(piece))
        finished = reader.finished(held)
        yield from reader.recordings(held.take(finished), piece.broken)
        held = held.take(~finished)
    if not reader.has_rows:
        raise ValueError("it has no rows")
    yield from reader.recordings(held, [])


@dataclass(frozen=True)
class _Rows:
    """Receptions, as they were read: columns by field."""

    columns: dict[str, pa.Array]
    line: Int

    def take(self, rows: Bool) -> "_Rows":
        mask = pa.array(rows)
        return _Rows({field: column.filter(mask) for field, column in self.columns.items()}, self.line[rows])

    def joined(self, *others: "_Rows") -> "_Rows":
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
        return _Rows({field: column(field) for field in fields}, np.concatenate([rows.line for rows in parts]))


class _Refused:
    """Which rows are refused, and why. The first reason counts."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self.good = np.ones(len(rows.line), bool)
        self._found: list[pd.DataFrame] = []

    def add(self, which: Bool, field: str, reason: str) -> None:
        hit = np.flatnonzero(which & self.good)
        if len(hit):
            ids, values = self._shown("transmission_id", hit), self._shown(field, hit)
            found = (self._rows.line[hit], ids, field, values, reason)
            self._found.append(pd.DataFrame(dict(zip(REFUSED_COLUMNS, found, strict=True))))
            self.good[hit] = False

    def _shown(self, field: str, rows: Int) -> list[str]:
        column = self._rows.columns.get(field)
        if column is None:
            return [""] * len(rows)
        text = column.take(pa.array(rows)).cast(pa.string()).fill_null("")
        return [printable(value) for value in pc.utf8_slice_codeunits(text, 0, _SHOWN_CHARACTERS).to_pylist()]

    def table(self, broken: list[tuple[int, str, str]]) -> pd.DataFrame:
        """All of them, and the lines that are no rows, in the order of the lines."""
        lines = [(line, "", "", printable(text[:_SHOWN_CHARACTERS]), reason) for line, text, reason in broken]
        parts = [*self._found, *([pd.DataFrame(lines, columns=list(REFUSED_COLUMNS))] if lines else [])]
        if not parts:
            return pd.DataFrame(columns=list(REFUSED_COLUMNS))
        return pd.concat(parts, ignore_index=True).sort_values("line", kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _Groups:
    """Rows of g transmissions: which one each row belongs to, its id and first line. A row without an id has -1."""

    of_row: Int  # (n,)
    ids: NDArray[np.object_]  # (g,)
    first_line: Int  # (g,)

    @classmethod
    def of(cls, rows: _Rows) -> "_Groups":
        encoded = pc.dictionary_encode(texts(rows.columns["transmission_id"]))
        of_row = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        ids = encoded.dictionary.to_numpy(zero_copy_only=False)
        known = of_row >= 0
        first_line = np.full(len(ids), np.iinfo(np.int64).max)
        np.minimum.at(first_line, of_row[known], rows.line[known])
        return cls(of_row, ids, first_line)

    def __len__(self) -> int:
        return len(self.ids)

    def middle(self, values: NDArray, rows: Bool) -> NDArray:
        """(g,) the median of some rows of each transmission, the lower of two; 0 if there are none."""
        at, found = self.of_row[rows], np.zeros(len(self), values.dtype)
        order = np.lexsort((values[rows], at))
        group, start, count = np.unique(at[order], return_index=True, return_counts=True)
        found[group] = values[rows][order][start + (count - 1) // 2]
        return found

    def first(self, values: Float, rows: Bool) -> Float:
        """(g,) the first value of each transmission among some rows that is no NaN; NaN if there is none."""
        at = np.flatnonzero(rows & ~np.isnan(values))
        group, start = np.unique(self.of_row[at], return_index=True)
        found = np.full(len(self), np.nan)
        found[group] = values[at[start]]
        return found


class _Reader:
    """What is the same for all parts of a file."""

    def __init__(self, layout: Layout, mapping: ColumnMapping, window: int, live: bool) -> None:
        sites = layout.network.sites
        self._scenario, self._frame = layout.scenario, layout.network.frame
        self._sources = mapping.sources
        self._window, self._live = window, live
        self._sites = tuple(site.name for site in sites)
        # A name is the same in whatever way its accents are encoded; a file system may have changed it.
        self._site_of = {_composed(name): number for number, name in enumerate(self._sites)}
        self._site_of |= {name: number for number, name in enumerate(self._sites)}
        self._has_timing = layout.network.has_timing
        self._clock_sigma_ns = np.array([CLOCK_SIGMA_NS.get(site.timing, np.nan) for site in sites])
        self._floor_dbm = noise_floor_dbm(layout.scenario, [site.noise_figure_db for site in sites])
        if mapping.silence is Silence.unknown:
            self._floor_dbm = np.full(len(sites), np.nan)
        self._form: tuple[list[str], Form] | None = None
        self._ended = np.zeros(_REMEMBERED, np.uint64)  # hashes of ids, each in the place of its last bits
        self._site_m = layout.network.site_enu_m
        self._units_checked: set[str] = set()
        self._spread_checked = False
        self._from_time: bool | None = None  # whether arrival times count from the time of their transmission
        self.has_rows = False

    def receptions(self, piece: Piece) -> _Rows:
        """The rows by field; of the wide form one for each receiver that has a value."""
        self.has_rows = self.has_rows or len(piece.line) > 0 or len(piece.broken) > 0
        names = list(piece.columns)
        if not names:
            return _Rows({}, piece.line)
        if self._form is None or self._form[0] != names:
            form = form_of(names, self._sources)
            if self._form is None:
                self._check_columns(names, form)
            self._form = names, form
        form = self._form[1]
        columns = {field: self._column(field, name, piece) for field, name in form.columns.items()}
        if not form.of_receiver:
            return _Rows(columns, piece.line)
        columns.setdefault("transmission_id", pa.array(piece.line).cast(pa.string()))
        parts = []
        for receiver, names_of in form.of_receiver.items():
            own = {field: self._column(field, name, piece) for field, name in names_of.items()}
            heard = np.zeros(len(piece.line), bool)
            for column in own.values():
                heard |= _has_value(column)
            whole = _Rows(columns | own | {"receiver": pa.repeat(receiver, len(piece.line))}, piece.line)
            parts.append(whole.take(heard))
        rows = parts[0].joined(*parts[1:])
        order = np.argsort(rows.line, kind="stable")
        return _Rows({field: column.take(pa.array(order)) for field, column in rows.columns.items()}, rows.line[order])

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
        for fields in (("transmission_id",), ("receiver",), ("toa_ns", "rssi_dbm"), ("time", "toa_ns")):
            if found.isdisjoint(fields):
                raise missing_column(names, " or ".join(fields))
        unknown = self._has_timing & np.isnan(self._clock_sigma_ns)
        if "toa_ns" in found and "toa_sigma_ns" not in found and unknown.any():
            raise ValueError(
                f"it has no column toa_sigma_ns, and the clock of site {shown(self._sites[int(unknown.argmax())])} has "
                "no known standard deviation; give one in a mapping file, as in toa_sigma_ns: {constant: 50}, or name "
                f"the clock in the network file, timing: {' or '.join(CLOCK_SIGMA_NS)}"
            )

    def finished(self, rows: _Rows) -> Bool:
        """(n,) whether the transmission of each row is whole: no further row can belong to it."""
        if not len(rows.line):
            return np.zeros(0, bool)
        groups = _Groups.of(rows)
        if self._live:
            return groups.of_row != groups.of_row[-1]
        first_line = np.append(groups.first_line, 0)[groups.of_row]
        return first_line < rows.line[-1] - self._window

    def recordings(self, rows: _Rows, broken: list[tuple[int, str, str]]) -> Iterator[Recording]:
        """The transmissions of these rows, which are whole."""
        if not len(rows.line):
            if broken:
                yield self._empty(_Refused(rows).table(broken))
            return
        refused, groups = _Refused(rows), _Groups.of(rows)
        refused.add(groups.of_row < 0, "transmission_id", NO_ID)
        late = np.append(self._has_ended(groups.ids), False)[groups.of_row]
        late |= rows.line - np.append(groups.first_line, 0)[groups.of_row] > self._window
        refused.add(late, "transmission_id", APART if self._live else LATE)
        site = self._site(refused, rows)
        values = {field: self._numbers(refused, rows, field) for field in FIELDS if field in _LIMITS}
        refused.add(np.isnan(values["latitude"]) != np.isnan(values["longitude"]), "latitude", HALF_PLACE)
        away_m = haversine_m(values["latitude"], values["longitude"], self._frame.lat, self._frame.lon)
        refused.add(away_m > REACH_M, "latitude", FAR_PLACE)
        toa, time = self._times(refused, rows, "toa_ns"), self._times(refused, rows, "time")
        refused.add(toa.given & ~self._has_timing[site], "toa_ns", NOT_TIMED)
        refused.add(~toa.given & np.isnan(values["rssi_dbm"]), "toa_ns", NO_VALUE)
        sigma_ns = np.where(np.isnan(values["toa_sigma_ns"]), self._clock_sigma_ns[site], values["toa_sigma_ns"])
        refused.add(toa.given & np.isnan(sigma_ns), "toa_sigma_ns", NO_SIGMA)
        time_ns, toa_ns = self._arrivals(refused, groups, toa, time if "time" in rows.columns else None)
        hz = np.where(np.isnan(values["frequency_hz"]), self._scenario.frequency_hz, values["frequency_hz"])
        middle_hz = groups.middle(hz, refused.good)
        away_hz = np.abs(hz - np.append(middle_hz, 0.0)[groups.of_row])
        refused.add(away_hz > FREQUENCY_SPREAD * hz, "frequency_hz", ANOTHER_FREQUENCY)
        for field in PLACE_FIELDS:
            first = np.append(groups.first(values[field], refused.good), 0.0)[groups.of_row]
            refused.add(~np.isnan(values[field]) & (values[field] != first), field, ANOTHER_PLACE)
        pair = groups.of_row * len(self._sites) + site
        pairs, times_seen = np.unique(pair[refused.good], return_counts=True)
        refused.add(np.isin(pair, pairs[times_seen > 1]), "receiver", TWICE)

        good = np.flatnonzero(refused.good)
        table = refused.table(broken)
        if not len(good):
            if len(table):
                yield self._empty(table)
            return
        good = good[np.argsort(groups.of_row[good], kind="stable")]
        kept, of_row = np.unique(groups.of_row[good], return_inverse=True)
        places = {field: groups.first(values[field], refused.good) for field in PLACE_FIELDS}
        reported = {
            "snr_db": values["snr_db"],
            "power_dbm": values["rssi_dbm"],
            "frequency_offset_hz": np.nan_to_num(values["frequency_offset_hz"]),
            "toa_present": toa.given,
            "toa_ns": toa_ns,
            "toa_sigma_ns": np.where(toa.given, sigma_ns, 0.0),
        }
        step = max(1, min(BLOCK_TRANSMISSIONS, MOST_CELLS // len(self._sites)))
        for begin in range(0, len(kept), step):
            some = kept[begin : begin + step]
            low, high = np.searchsorted(of_row, [begin, begin + step])
            at = good[low:high]
            measurements = self._measurements(
                of_row[low:high] - begin,
                site[at],
                {name: column[at] for name, column in reported.items()},
                time_ns[some],
                np.rint(middle_hz[some]).astype(np.int64),
                places["altitude_m"][some],
            )
            self._check_spread(measurements)
            yield Recording(
                receivers=self._sites,
                measurements=measurements,
                transmission_id=groups.ids[some],
                line=groups.first_line[some],
                refused=table if begin == 0 else table.iloc[:0],
                **{field: place[some] for field, place in places.items()},
            )

    def _check_spread(self, seen: Measurements) -> None:
        """Raises ValueError if arrival times differ so little between receivers that they have a larger unit."""
        several = seen.toa_present.sum(1) > 1
        if self._spread_checked or several.sum() < _LEAST_SPREADS:
            return
        self._spread_checked = True
        timed = seen.toa_present[several]
        place_m = np.where(timed[..., None], self._site_m, np.nan)
        apart_ns = np.linalg.norm(np.nanmax(place_m, 1) - np.nanmin(place_m, 1), axis=1) / SPEED_OF_LIGHT_M_PER_NS
        toa_ns = np.where(timed, seen.toa_ns[several], np.nan)
        spread_ns = np.nanmax(toa_ns, 1) - np.nanmin(toa_ns, 1)
        if np.median(spread_ns / apart_ns) < _LEAST_SPREAD:
            raise ValueError(
                f"its arrival times differ between receivers by only {np.median(spread_ns):.3g} ns, and the sites are "
                f"{np.median(apart_ns):,.0f} ns apart; if these are not nanoseconds, name the unit in a mapping file, "
                "as in toa_ns: {column: ..., unit: us}"
            )

    def _empty(self, refused: pd.DataFrame) -> Recording:
        """A block of refused rows alone."""
        none, nan = np.zeros(0, np.int64), np.zeros(0)
        measurements = self._measurements(none, none, {}, none, none, nan)
        return Recording(self._sites, measurements, np.zeros(0, object), nan, nan, nan, none, refused)

    def _has_ended(self, ids: NDArray[np.object_]) -> Bool:
        """(g,) whether a transmission of each id came before; from now on, these did."""
        hashed = pd.util.hash_array(ids, categorize=False)
        place = hashed % np.uint64(_REMEMBERED)
        ended = self._ended[place] == hashed
        self._ended[place] = hashed
        return np.asarray(ended)

    def _site(self, refused: _Refused, rows: _Rows) -> Int:
        """(n,) the site of each row; 0 where it is refused."""
        encoded = pc.dictionary_encode(texts(rows.columns["receiver"]))
        names = encoded.dictionary.to_pylist()
        folded = {folded_name(name) for name in self._sites}
        site_of_name = [self._site_of.get(name, self._site_of.get(_composed(name), -1)) for name in names]
        reasons = [
            NO_UTF8 if "\ufffd" in name else ANOTHER_SPELLING if folded_name(name) in folded else UNKNOWN_RECEIVER
            for name in names
        ]
        code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        refused.add(code < 0, "receiver", NO_RECEIVER)
        found = np.array([*site_of_name, -1])[code]
        for reason in (UNKNOWN_RECEIVER, ANOTHER_SPELLING, NO_UTF8):
            refused.add(
                (found < 0) & np.array([*(each == reason for each in reasons), False])[code], "receiver", reason
            )
        return np.maximum(found, 0)

    def _numbers(self, refused: _Refused, rows: _Rows, field: str) -> Float:
        """(n,) values of a field in its unit; NaN where there is none."""
        source = self._sources.get(field, Source(column=field))
        factor = 1.0
        if source.unit is not None:
            power = UNITS[field][source.unit]
            factor = 10.0**power if field == "toa_sigma_ns" else power
        low, high, reason = _LIMITS[field]
        if source.constant is not None:
            value = source.constant * factor
            if not low <= value <= high:
                raise ValueError(f"the constant {shown(source.constant)} of {field} is refused: {reason}")
            return np.full(len(rows.line), value)
        if field not in rows.columns:
            return np.full(len(rows.line), np.nan)
        values, bad = numbers(rows.columns[field])
        values = values * factor
        refused.add(bad, field, NO_NUMBER)
        refused.add((values < low) | (values > high), field, reason)
        return values

    def _times(self, refused: _Refused, rows: _Rows, field: str) -> Times:
        source = self._sources.get(field)
        places = 0 if source is None or source.unit is None else int(UNITS[field][source.unit])
        found = times(rows.columns.get(field, pa.nulls(len(rows.line), pa.string())), places)
        if field not in self._units_checked and (source is None or source.unit is None) and found.valid.any():
            self._units_checked.add(field)
            if (unit := found.likely_unit()) is not None:
                raise ValueError(
                    f"the numbers of {field} look like times in {unit}, and without a unit they are nanoseconds; name "
                    f"it in a mapping file, as in {field}: {{column: ..., unit: {unit}}}"
                )
        before_1970 = (found.ns < 0) & (field == "time")
        refused.add(found.given & (~found.valid | before_1970), field, NO_TIME_TEXT)
        return found

    def _arrivals(self, refused: _Refused, groups: _Groups, toa: Times, time: Times | None) -> tuple[Int, Float]:
        """(g,) times of transmissions, and (n,) arrival times from them, ns."""
        if time is not None:
            refused.add(~time.given, "time", NO_TIME)
        timed = toa.given & refused.good
        if self._from_time is None and timed.any():
            small = np.median(np.abs(toa.ns[timed])) <= LONGEST_FLIGHT_NS
            self._from_time = time is not None and bool(small)
        if not self._from_time and timed.any() and (fault := toa.too_few_digits()):
            raise ValueError(
                f"its arrival times {fault}, which has too few digits for TDOA: such a number holds a time since 1970 "
                "only to 238 ns, or 71 m; write whole nanoseconds, or seconds as text with nine decimals"
            )
        if time is None:
            middle_ns = np.append(groups.middle(toa.ns, timed), 0)[groups.of_row]
            refused.add(toa.given & (np.abs(toa.ns - middle_ns) > LONGEST_FLIGHT_NS), "toa_ns", FAR_TOA)
            timed = toa.given & refused.good
            time_ns = np.full(len(groups) + 1, np.iinfo(np.int64).max)
            np.minimum.at(time_ns, groups.of_row[timed], toa.ns[timed])
            refused.add(time_ns[groups.of_row] == np.iinfo(np.int64).max, "toa_ns", NO_TIME)
            time_ns[time_ns == np.iinfo(np.int64).max] = 0
        else:
            time_ns = np.append(groups.middle(time.ns, refused.good), 0)
            away_ns = time.ns - time_ns[groups.of_row]
            if self._from_time:
                refused.add(toa.given & (away_ns != 0), "time", ANOTHER_TIME)
            refused.add(np.abs(away_ns) > LONGEST_FLIGHT_NS, "time", FAR_TIME)
        if self._from_time:
            toa_ns = toa.approximate_ns
        else:
            toa_ns = (toa.ns - time_ns[groups.of_row]).astype(np.float64) + toa.part_ns
        refused.add(toa.given & (np.abs(toa_ns) > LONGEST_FLIGHT_NS), "toa_ns", FAR_TOA)
        return time_ns[:-1], np.where(toa.given, toa_ns, 0.0)

    def _measurements(
        self,
        row: Int,
        site: Int,
        reported: Mapping[str, NDArray],
        time_ns: Int,
        frequency_hz: Int,
        altitude_m: Float,
    ) -> Measurements:
        """Receptions at (row, site) as arrays (n, r)."""
        shape = (len(time_ns), len(self._sites))
        columns: dict[str, NDArray] = {
            "signal_present": np.zeros(shape, bool),
            "toa_present": np.zeros(shape, bool),
            "snr_db": np.zeros(shape, np.float32),
            "power_dbm": np.tile(self._floor_dbm.astype(np.float32), (len(time_ns), 1)),
            "frequency_offset_hz": np.zeros(shape, np.float32),
            "toa_ns": np.zeros(shape),
            "toa_sigma_ns": np.zeros(shape, np.float32),
        }
        columns["signal_present"][row, site] = True
        for name, values in reported.items():
            columns[name][row, site] = values
        assumed = self._scenario.transmitter_altitude_m
        return Measurements(
            time_ns=time_ns,
            frequency_hz=frequency_hz,
            tx_altitude_m=np.where(np.isnan(altitude_m), assumed, altitude_m),
            **columns,
        )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _has_value(column: pa.Array) -> Bool:
    """(n,) whether there is a value in each row."""
    column = column if is_number(column.type) else texts(column)
    return ~np.asarray(pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False))
