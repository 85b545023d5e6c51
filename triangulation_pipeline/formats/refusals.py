"""Why rows of measurement files are refused."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from triangulation_pipeline.formats.receptions import Receptions
from triangulation_pipeline.formats.recording import REFUSED_COLUMNS
from triangulation_pipeline.validation import printable

Bool = NDArray[np.bool_]
Int = NDArray[np.int64]

WINDOW_LINES = 10_000
"""The rows of a transmission stand within so many lines."""
_SHOWN_CHARACTERS = 40
_NOTHING = pd.DataFrame(columns=list(REFUSED_COLUMNS))

# What is possible. Thermal noise in 1 Hz is -174 dBm; 50 dBm are 100 W into the receiver.
LIMITS: dict[str, tuple[float, float, str]] = {
    "toa_sigma_ns": (1e-3, 1e9, "a standard deviation must be a picosecond to a second"),
    "rssi_dbm": (-174.0, 50.0, "a level must be -174 to 50 dBm; a mapping file declares what stands for no value"),
    "snr_db": (-60.0, 150.0, "a signal-to-noise ratio must be -60 to 150 dB"),
    "frequency_hz": (1e3, 3e11, "a carrier must be 1 kHz to 300 GHz"),
    "frequency_offset_hz": (-1e8, 1e8, "a frequency offset must be at most 100 MHz"),
    "latitude": (-90.0, 90.0, "a latitude must be -90 to 90 degrees"),
    "longitude": (-180.0, 180.0, "a longitude must be -180 to 180 degrees"),
    "altitude_m": (-1000.0, 100_000.0, "an altitude must be -1 to 100 km"),
}
NO_NUMBER = "not a number such as -91.5 (a decimal has a point)"
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
REPEATED = "a row that repeats an earlier one"
TWICE = "two different rows of one receiver in one transmission"
LATE = f"more than {WINDOW_LINES:,} lines after the first row of its transmission"
APART = "apart from the other rows of its transmission"
ANOTHER_TIME = "another time than the rest of its transmission, from which arrival times count"
FAR_TIME = "a time more than a second from the rest of its transmission"
FAR_TOA = "an arrival time more than a light second from its transmission"
ANOTHER_FREQUENCY = "another frequency than the rest of its transmission"
FAR_PLACE = "a place of the transmitter beyond the reach of the network; latitude and longitude may be swapped"
ANOTHER_PLACE = "another place of the transmitter than in an earlier row of its transmission"
HALF_PLACE = "a latitude without a longitude, or the other way round"


class Refused:
    """Which rows are refused, and why. The first reason counts."""

    def __init__(self, rows: Receptions) -> None:
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
            return _NOTHING.copy()
        return pd.concat(parts, ignore_index=True).sort_values("line", kind="stable", ignore_index=True)
