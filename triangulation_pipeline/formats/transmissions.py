"""Receptions that belong together, checked, as transmissions."""

import unicodedata
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from triangulation_pipeline.formats.columns import FIELDS, PLACE_FIELDS, UNITS, ColumnMapping, Silence, Source
from triangulation_pipeline.formats.groups import Groups
from triangulation_pipeline.formats.instants import NS_PER_S, Times, numbers, texts, times
from triangulation_pipeline.formats.receptions import Receptions
from triangulation_pipeline.formats.recording import Recording
from triangulation_pipeline.formats.refusals import (
    ANOTHER_FREQUENCY,
    ANOTHER_PLACE,
    ANOTHER_SPELLING,
    ANOTHER_TIME,
    APART,
    FAR_PLACE,
    FAR_TIME,
    FAR_TOA,
    HALF_PLACE,
    LATE,
    LIMITS,
    NO_ID,
    NO_NUMBER,
    NO_RECEIVER,
    NO_SIGMA,
    NO_TIME,
    NO_TIME_TEXT,
    NO_UTF8,
    NO_VALUE,
    NOT_TIMED,
    REPEATED,
    TWICE,
    UNKNOWN_RECEIVER,
    Refused,
)
from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import CLOCK_SIGMA_NS, REACH_M, folded_name
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import noise_floor_dbm
from triangulation_pipeline.validation import shown

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.int64]

# A block has so many transmissions at most, and so many pairs of a transmission and a site.
BLOCK_TRANSMISSIONS, MOST_CELLS = 8192, 1_000_000
# A transmission and its arrival times lie within a light second, 300,000 km.
LONGEST_FLIGHT_NS = NS_PER_S
# Receivers tune to the nominal carrier or measure it; what differs by more is another transmission.
FREQUENCY_SPREAD = 1e-3
# So many transmissions that have ended are remembered, 8 bytes each, to know their late rows.
_REMEMBERED = 2**20
# Among so many transmissions arrival times differ, by half, by more than this share of the distance between the sites.
_LEAST_SPREADS, _LEAST_SPREAD = 10, 2e-3
# In place of a time that does not exist.
_NONE_NS = np.iinfo(np.int64).max


class TransmissionReader:
    """Gathers the receptions of a file into recordings. What it learned of the first ones holds for the others."""

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
        self._ended = np.zeros(_REMEMBERED, np.uint64)  # hashes of ids, each in the place of its last bits
        self._site_m = layout.network.site_enu_m
        self._units_checked: set[str] = set()
        self._spread_checked = False
        self._from_time: bool | None = None  # whether arrival times count from the time of their transmission
        self._own_epoch = False  # whether they count from a moment of their own, as those of GPS from 1980

    def finished(self, rows: Receptions) -> Bool:
        """(n,) whether the transmission of each row is whole: no further row can belong to it."""
        if not len(rows.line):
            return np.zeros(0, bool)
        groups = Groups.of(rows)
        if self._live:
            return groups.of_row != groups.of_row[-1]
        first_line = np.append(groups.first_line, 0)[groups.of_row]
        return first_line < rows.line[-1] - self._window

    def recordings(self, rows: Receptions, broken: list[tuple[int, str, str]]) -> Iterator[Recording]:
        """The transmissions of these rows, which are whole."""
        if not len(rows.line):
            if broken:
                yield self._empty(Refused(rows).table(broken))
            return
        refused, groups = Refused(rows), Groups.of(rows)
        refused.add(groups.of_row < 0, "transmission_id", NO_ID)
        late = np.append(self._has_ended(groups.ids), False)[groups.of_row]
        late |= rows.line - np.append(groups.first_line, 0)[groups.of_row] > self._window
        refused.add(late, "transmission_id", APART if self._live else LATE)
        site = self._site(refused, rows)
        values = {field: self._numbers(refused, rows, field) for field in FIELDS if field in LIMITS}
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
        told = np.stack([np.where(toa.given, toa_ns, np.nan), sigma_ns, *values.values()], axis=1)
        refused.add(_repeats(pair, told, refused.good), "receiver", REPEATED)
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
        dropped = ~refused.good & np.isin(groups.of_row, kept)
        dropped_of, dropped_site = np.searchsorted(kept, groups.of_row[dropped]), site[dropped]
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
            lost = (begin <= dropped_of) & (dropped_of < begin + step)
            measurements = self._measurements(
                of_row[low:high] - begin,
                site[at],
                {name: column[at] for name, column in reported.items()},
                (dropped_of[lost] - begin, dropped_site[lost]),
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
        measurements = self._measurements(none, none, {}, (none, none), none, none, nan)
        return Recording(self._sites, measurements, np.zeros(0, object), nan, nan, nan, none, refused)

    def _has_ended(self, ids: NDArray[np.object_]) -> Bool:
        """(g,) whether a transmission of each id came before; from now on, these did."""
        hashed = pd.util.hash_array(ids, categorize=False)
        place = hashed % np.uint64(_REMEMBERED)
        ended = self._ended[place] == hashed
        self._ended[place] = hashed
        return np.asarray(ended)

    def _site(self, refused: Refused, rows: Receptions) -> Int:
        """(n,) the site of each row; -1 where it is refused."""
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
        return found

    def _numbers(self, refused: Refused, rows: Receptions, field: str) -> Float:
        """(n,) values of a field in its unit; NaN where there is none."""
        source = self._sources.get(field, Source(column=field))
        factor = 1.0
        if source.unit is not None:
            power = UNITS[field][source.unit]
            factor = 10.0**power if field == "toa_sigma_ns" else power
        low, high, reason = LIMITS[field]
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

    def _times(self, refused: Refused, rows: Receptions, field: str) -> Times:
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

    def _arrivals(self, refused: Refused, groups: Groups, toa: Times, time: Times | None) -> tuple[Int, Float]:
        """(g,) times of transmissions, and (n,) arrival times from them, ns."""
        if time is not None:
            refused.add(~time.given, "time", NO_TIME)
        timed = toa.given & refused.good
        if self._from_time is None and timed.any():
            small = np.median(np.abs(toa.ns[timed])) <= LONGEST_FLIGHT_NS
            self._from_time = time is not None and bool(small)
            far = time is not None and np.median(np.abs(toa.ns - time.ns)[timed]) > LONGEST_FLIGHT_NS
            self._own_epoch = not self._from_time and bool(far)
        if not self._from_time and timed.any() and (fault := toa.too_few_digits()):
            raise ValueError(
                f"its arrival times {fault}, which has too few digits for TDOA: such a number holds a time since 1970 "
                "only to 238 ns, or 71 m; write whole nanoseconds, or seconds as text with nine decimals"
            )
        first_ns = self._first_arrivals(refused, groups, toa) if time is None or self._own_epoch else None
        if time is None:
            assert first_ns is not None
            refused.add(first_ns[groups.of_row] == _NONE_NS, "toa_ns", NO_TIME)
            time_ns = np.where(first_ns == _NONE_NS, 0, first_ns)
        else:
            time_ns = np.append(groups.middle(time.ns, refused.good), 0)
            away_ns = time.ns - time_ns[groups.of_row]
            if self._from_time:
                refused.add(toa.given & (away_ns != 0), "time", ANOTHER_TIME)
            refused.add(np.abs(away_ns) > LONGEST_FLIGHT_NS, "time", FAR_TIME)
        if self._from_time:
            toa_ns = toa.approximate_ns
        else:
            from_ns = time_ns if first_ns is None else np.where(first_ns == _NONE_NS, 0, first_ns)
            toa_ns = (toa.ns - from_ns[groups.of_row]).astype(np.float64) + toa.part_ns
        refused.add(toa.given & (np.abs(toa_ns) > LONGEST_FLIGHT_NS), "toa_ns", FAR_TOA)
        return time_ns[:-1], np.where(toa.given, toa_ns, 0.0)

    def _first_arrivals(self, refused: Refused, groups: Groups, toa: Times) -> Int:
        """(g + 1,) the first arrival of each transmission, ``_NONE_NS`` if it has none; the last one is of rows without
        an id. Rows that are far from the others are refused."""
        middle_ns = np.append(groups.middle(toa.ns, toa.given & refused.good), 0)[groups.of_row]
        refused.add(toa.given & (np.abs(toa.ns - middle_ns) > LONGEST_FLIGHT_NS), "toa_ns", FAR_TOA)
        timed = toa.given & refused.good
        first_ns = np.full(len(groups) + 1, _NONE_NS)
        np.minimum.at(first_ns, groups.of_row[timed], toa.ns[timed])
        return first_ns

    def _measurements(
        self,
        row: Int,
        site: Int,
        reported: Mapping[str, NDArray],
        dropped: tuple[Int, Int],
        time_ns: Int,
        frequency_hz: Int,
        altitude_m: Float,
    ) -> Measurements:
        """Receptions at (row, site) as arrays (n, r).

        ``dropped`` are the transmissions and sites of refused rows. Such a site heard something that nobody knows, so
        its level is NaN, as if it had not listened. A refused row without a site, -1, may be of any site, so all sites
        of that transmission without a row have the level NaN.
        """
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
        dropped_row, dropped_site = dropped
        columns["power_dbm"][dropped_row[dropped_site < 0]] = np.nan
        columns["power_dbm"][dropped_row[dropped_site >= 0], dropped_site[dropped_site >= 0]] = np.nan
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


def _repeats(pair: Int, told: Float, rows: Bool) -> Bool:
    """(n,) whether a row tells (n, k) the same as the first one, among these rows, of its receiver and transmission."""
    at = np.flatnonzero(rows)
    _, first, of_pair = np.unique(pair[at], return_index=True, return_inverse=True)
    before = at[first][of_pair]
    found = np.zeros(len(pair), bool)
    found[at] = (at != before) & ((told[at] == told[before]) | np.isnan(told[at]) & np.isnan(told[before])).all(1)
    return found
