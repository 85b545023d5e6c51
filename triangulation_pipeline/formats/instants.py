"""Texts and numbers of files as arrays: times by integer arithmetic, other numbers as floats.

A float64 holds Unix seconds only to 238 ns (71 m of range), so no absolute time passes through one.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.int64]

NS_PER_S = 10**9
# Beyond it, differences of times might not fit into 64 bits.
LATEST_NS = 7_258_118_400 * NS_PER_S  # 2200-01-01
# Times of our days in seconds since 1970 or 1980, from 2001 on.
_TODAY_S = (1_000_000_000, 2_500_000_000)
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6}  # so many are a second
# Written as a number of 64 bits, whatever the digits.
_FITS = r"^-?0*[0-8]?[0-9]{0,18}$"
_DECIMAL = r"^-?[0-9]{1,19}(\.[0-9]{0,18})?$"
# As protobuf writes durations in JSON (google.protobuf.Duration), and LoRaWAN servers the times of gateways.
_SECONDS = r"^-?[0-9]{1,10}(\.[0-9]{0,18})?s$"
_NUMBER = r"^-?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?$"
_ISO = (
    r"^(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})[Tt ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})"
    r"(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,18}))?)? ?(?P<zone>[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)$"
)
# What stands for no value in any column.
_EMPTY = pa.array(["", "nan", "NaN", "NAN", "null", "NULL", "Null", "none", "None", "NONE", "NA", "N/A", "n/a"])
# So many different times must all be numbers that a float64 holds, before they are taken to come from one.
_LEAST_TIMES = 4


@dataclass(frozen=True)
class Times:
    """n times of a column. Where ``valid`` is false, the other arrays hold 0."""

    ns: Int  # (n,) whole nanoseconds, rounded down
    part_ns: Float  # (n,) what is left, 0 to 1
    given: Bool  # (n,) whether there is a value
    valid: Bool  # (n,) whether it can be read
    approximate_ns: Float  # (n,) the value as a float64: exact if it is small, as from the time of a transmission
    places: int | None  # the most decimal places of a second; None of float64 and where no value can be read
    is_float: bool  # whether the column has float64
    is_number: bool  # whether the column has numbers of the unit, and no dates

    def too_few_digits(self) -> str | None:
        """What is wrong if these are absolute times whose digits do not suffice for TDOA; None if they do."""
        if self.is_float:
            return "are floating-point numbers"
        if self.places is not None and self.places <= 7:
            return f"have {self.places} decimal places of a second"
        times = np.unique(self.ns[self.valid & (self.ns > 2**60)])
        if len(times) >= _LEAST_TIMES:
            # As integers they were float64, or they are decimals printed from one.
            seconds = times // NS_PER_S
            ticks = np.rint((times - seconds * NS_PER_S) * (2.0**22 / NS_PER_S))
            from_seconds = np.rint(ticks * (NS_PER_S / 2.0**22)).astype(np.int64) + seconds * NS_PER_S
            if (times % 256 == 0).all() or (times == from_seconds).all():
                return "went through floating-point numbers"
        return None

    def likely_unit(self) -> str | None:
        """The unit in which these numbers would be times of our days, if they are taken for nanoseconds and are not."""
        if not self.is_number or not self.valid.any():
            return None
        middle, (low, high) = np.median(np.abs(self.ns[self.valid])), _TODAY_S
        return next((unit for unit, count in _UNITS.items() if low * count <= middle < high * count), None)


def texts(column: pa.Array) -> pa.Array:
    """The values of a column as texts without blanks around them; null where there is no value."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_string(column.type):
        column = column.cast(pa.string())
    column = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(column, _EMPTY), pa.scalar(None, pa.string()), column)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of that type has numbers that need no reading."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def numbers(column: pa.Array) -> tuple[Float, Bool]:
    """(n,) float64, NaN where there is no value; and (n,) whether the value is no finite number."""
    if is_number(column.type):
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return np.where(np.isinf(values), np.nan, values), np.isinf(values)
    text = pc.replace_substring_regex(texts(column), r"^\+", "")
    good = _mask(pc.match_substring_regex(text, _NUMBER))
    values = pc.if_else(pa.array(good), text, pa.scalar(None, pa.string())).cast(pa.float64())
    return values.to_numpy(zero_copy_only=False), ~good & _mask(pc.is_valid(text))


def times(column: pa.Array, places: int) -> Times:
    """Times of a column.

    Parameters
    ----------
    column : pyarrow.Array, shape (n,)
        Integers, decimal text or floats in a unit of ``10**places`` ns, seconds with an s behind them, ISO 8601 with an
        offset or Z, or time stamps with a time zone.
    places : int
        0 for nanoseconds, 9 for seconds.

    Returns
    -------
    Times
    """
    if pa.types.is_floating(column.type):
        return _of_floats(column, places)
    if pa.types.is_timestamp(column.type):
        unit = {"s": 9, "ms": 6, "us": 3, "ns": 0}[column.type.unit]
        return replace(times(column.cast(pa.int64()), unit), is_number=False)
    text = texts(column)
    # Rows of one transmission repeat its time.
    encoded = pc.dictionary_encode(text)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    found = _of_texts(encoded.dictionary, places)
    given = codes >= 0
    if not len(found.ns):
        zero = np.zeros(len(codes))
        return Times(zero.astype(np.int64), zero, given, given, zero, None, False, False)
    valid = found.valid[codes] & given
    return Times(
        np.where(valid, found.ns[codes], 0),
        np.where(valid, found.part_ns[codes], 0.0),
        given,
        valid,
        np.where(valid, found.approximate_ns[codes], 0.0),
        found.places,
        False,
        found.is_number,
    )


def _of_floats(column: pa.Array, places: int) -> Times:
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    given = ~np.isnan(values)
    approximate_ns = values * 10.0**places
    valid = given & (np.abs(approximate_ns) < LATEST_NS)
    approximate_ns = np.where(valid, approximate_ns, 0.0)
    whole = np.floor(approximate_ns)
    return Times(whole.astype(np.int64), approximate_ns - whole, given, valid, approximate_ns, None, True, True)


def _of_texts(text: pa.Array, places: int) -> Times:
    """Times of texts without blanks, none of them null."""
    text = pc.replace_substring_regex(text, r"^\+", "")
    decimal = _mask(pc.match_substring_regex(text, _DECIMAL))
    ns, part, digits, valid = _decimal(pc.if_else(pa.array(decimal), text, "0"), places)
    digits += 9 - places
    valid &= decimal
    number = _mask(pc.match_substring_regex(text, _NUMBER))
    approximate_ns = pc.if_else(pa.array(number), text, "0").cast(pa.float64()).to_numpy(zero_copy_only=False).copy()
    approximate_ns *= 10.0**places
    # With an exponent only small numbers are exact.
    small = number & ~decimal & (np.abs(approximate_ns) <= 1e15)
    ns[small] = np.floor(approximate_ns[small])
    part[small] = approximate_ns[small] - ns[small]
    valid |= small
    seconds = _mask(pc.match_substring_regex(text, _SECONDS))
    if (rest := np.flatnonzero(~decimal & ~number & ~seconds)).size:
        ns[rest], part[rest], digits[rest], valid[rest] = _iso(text.take(pa.array(rest)))
        approximate_ns[rest] = ns[rest]
    if (rest := np.flatnonzero(seconds)).size:
        written = pc.utf8_rtrim(text.take(pa.array(rest)), "s")
        ns[rest], part[rest], digits[rest], valid[rest] = _decimal(written, 9)
        approximate_ns[rest] = written.cast(pa.float64()).to_numpy(zero_copy_only=False) * 1e9
    valid &= np.abs(ns) < LATEST_NS
    counted = valid & ~small
    most = int(digits[counted].max()) if counted.any() else None
    return Times(
        np.where(valid, ns, 0),
        np.where(valid, part, 0.0),
        np.ones(len(ns), bool),
        valid,
        np.where(valid, approximate_ns, 0.0),
        most,
        False,
        bool(2 * decimal.sum() > len(decimal)),
    )


def _decimal(text: pa.Array, places: int) -> tuple[Int, Float, Int, Bool]:
    """Whole nanoseconds, the rest, the number of decimals, and whether it fits, of decimal numbers."""
    negative = _mask(pc.starts_with(text, "-"))
    if not _mask(pc.match_substring(text, ".")).any():
        whole, zero = pc.binary_join_element_wise(text, "0" * places, ""), np.zeros(len(text))
        fits = _mask(pc.match_substring_regex(whole, _FITS))
        return _integers(whole, fits), zero, zero.astype(np.int64), fits
    decimals = pc.replace_substring_regex(text, r"^[^.]*\.?", "")
    digits = pc.utf8_length(decimals).to_numpy(zero_copy_only=False).astype(np.int64)
    decimals = pc.utf8_rpad(decimals, 18, "0")
    whole = pc.replace_substring_regex(text, r"\..*$", "")
    whole = pc.binary_join_element_wise(whole, pc.utf8_slice_codeunits(decimals, 0, places), "")
    fits = _mask(pc.match_substring_regex(whole, _FITS))
    ns = _integers(whole, fits)
    rest = pc.utf8_slice_codeunits(decimals, places, 18).cast(pa.int64()).to_numpy(zero_copy_only=False)
    part = rest / 10.0 ** (18 - places)
    below = negative & (rest > 0)
    return ns - below, np.where(below, 1.0 - part, part), digits, fits


def _integers(text: pa.Array, fits: Bool) -> Int:
    return pc.if_else(pa.array(fits), text, "0").cast(pa.int64()).to_numpy(zero_copy_only=False).copy()


def _iso(text: pa.Array) -> tuple[Int, Float, Int, Bool]:
    """The same of ISO 8601 times with an offset or Z."""
    found = pc.extract_regex(text, _ISO)
    valid = _mask(pc.is_valid(found))

    def field(name: str) -> pa.Array:
        part = pc.struct_field(found, name)
        return pc.if_else(pa.array(valid), part, "")

    def number(name: str) -> Int:
        part = field(name)
        return pc.if_else(pc.equal(part, ""), "0", part).cast(pa.int64()).to_numpy(zero_copy_only=False)

    year, month, day = number("year"), number("month"), number("day")
    hour, minute, second = number("hour"), number("minute"), number("second")
    valid &= (year >= 1970) & (year < 2200) & (month >= 1) & (month <= 12) & (day >= 1)
    valid &= (hour < 24) & (minute < 60) & (second < 60)
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + np.where(valid, day - 1, 0)
    valid &= days.astype("datetime64[M]") == months
    zone = pc.replace_substring_regex(field("zone"), r"[:Zz]", "")
    sign = np.where(_mask(pc.starts_with(zone, "-")), -1, 1)
    zone = pc.utf8_rpad(pc.replace_substring_regex(zone, r"^[+-]", ""), 4, "0")
    clock = zone.cast(pa.int64()).to_numpy(zero_copy_only=False)
    valid &= (clock // 100 < 24) & (clock % 100 < 60)
    offset_s = sign * (clock // 100 * 3600 + clock % 100 * 60)
    seconds = days.astype(np.int64) * 86400 + hour * 3600 + minute * 60 + second - offset_s
    fraction = field("fraction")
    digits = pc.utf8_length(fraction).to_numpy(zero_copy_only=False).astype(np.int64)
    fraction = pc.utf8_rpad(fraction, 18, "0").cast(pa.int64()).to_numpy(zero_copy_only=False)
    ns = np.where(valid, seconds, 0) * NS_PER_S + np.where(valid, fraction // NS_PER_S, 0)
    return ns, np.where(valid, fraction % NS_PER_S / 1e9, 0.0), digits, valid


def _mask(values: pa.Array) -> Bool:
    """(n,) true where the value is true, false where it is null."""
    return values.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
