"""Times and numbers of files."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triangulation_pipeline.formats.instants import LATEST_NS, numbers, texts, times

INSTANTS = st.lists(st.integers(0, LATEST_NS - 1), min_size=1, max_size=20)


def as_seconds(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09d}"


def as_iso(ns: int, offset_min: int) -> str:
    """ISO 8601 in another time zone."""
    zone = timezone(timedelta(minutes=offset_min))
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ns // 10**9)
    text = moment.astimezone(zone).strftime("%Y-%m-%dT%H:%M:%S")
    sign = "-" if offset_min < 0 else "+"
    return f"{text}.{ns % 10**9:09d}{sign}{abs(offset_min) // 60:02d}:{abs(offset_min) % 60:02d}"


@given(INSTANTS, st.integers(-720, 840))
def test_all_writings_of_an_instant_are_the_same_integer(instants: list[int], offset_min: int) -> None:
    # In another zone the year may be 1969 or 2200.
    instants = [ns % (LATEST_NS - 2 * 86_400 * 10**9) + 86_400 * 10**9 for ns in instants]
    writings = {
        "19 digits": (pa.array([str(ns) for ns in instants]), 0),
        "integers": (pa.array(instants), 0),
        "seconds": (pa.array([as_seconds(ns) for ns in instants]), 9),
        "microseconds": (pa.array([f"{ns // 1000}.{ns % 1000:03d}" for ns in instants]), 3),
        "milliseconds": (pa.array([f" +{ns // 10**6}.{ns % 10**6:06d} " for ns in instants]), 6),
        "seconds of protobuf": (pa.array([as_seconds(ns) + "s" for ns in instants]), 0),
        "ISO 8601": (pa.array([as_iso(ns, offset_min) for ns in instants]), 0),
        "ISO 8601 with Z": (pa.array([as_iso(ns, 0).replace("+00:00", "Z").replace("T", " ") for ns in instants]), 9),
        "time stamps": (pa.array(instants).cast(pa.timestamp("ns", "UTC")), 9),
        "text of a dictionary": (pa.array([str(ns) for ns in instants]).dictionary_encode().dictionary_decode(), 0),
    }
    for name, (column, places) in writings.items():
        found = times(column, places)
        assert found.ns.tolist() == instants, name
        assert found.valid.all(), name
        assert not found.part_ns.any(), name


@given(st.lists(st.decimals(-(10**9), 10**18, places=6), min_size=1), st.sampled_from([0, 3, 6, 9]))
def test_decimals_are_split_exactly(values: list[Decimal], places: int) -> None:
    found = times(pa.array([f"{value:f}" for value in values]), places)
    for i, value in enumerate(values):
        exact = value.scaleb(places)
        assert bool(found.valid[i]) == (abs(exact) < LATEST_NS)
        if found.valid[i]:
            assert Decimal(int(found.ns[i])) + Decimal(round(found.part_ns[i] * 10**6)) / 10**6 == exact
            assert 0 <= found.part_ns[i] < 1


@pytest.mark.parametrize(
    "text",
    [
        *(
            "abc",
            "1e30",
            "--1",
            "1.2.3",
            "1,5",
            "0x10",
            "1_000",
            "12:00",
            "9223372036854775808",
            "9" * 40,
            "-" + "9" * 19,
        ),
        *("7258118400000000000", "1e19", "inf", "\u0661", "1 2", ".", "-"),
        *("2026-11-26T10:00:00", "2026-11-26", "2026-02-30T10:00:00Z", "2026-13-01T10:00:00Z", "2026-00-01T00:00:00Z"),
        *("2026-11-26T24:00:00Z", "2026-11-26T10:60:00Z", "2026-11-26T23:59:60Z", "2026-11-26T10:00:00+25:00"),
        *("1969-12-31T23:59:59Z", "2200-01-01T00:00:00Z", "2026-11-00T10:00:00Z", "2026-11-26T10:00:00.Z"),
    ],
)
def test_what_is_no_time_is_not_valid(text: str) -> None:
    found = times(pa.array(["5", text]), 0)
    assert found.given.all()
    assert found.valid.tolist() == [True, False]
    assert found.ns.tolist() == [5, 0]


def test_more_digits_than_are_read_are_exact_only_if_small() -> None:
    text = pa.array(["1764151200.1234567890123456789"])
    assert times(text, 9).valid.tolist() == [False]
    assert times(text, 0).approximate_ns.tolist() == [1764151200.1234567890123456789]


def test_a_day_and_a_year_that_leap() -> None:
    column = pa.array(
        ["2024-02-29T23:59:59.5+05:30", "2000-02-29T00:00z", "1970-01-01T00:00:00-0100", "2026-11-26T10:00+02"]
    )
    expected = ["2024-02-29T18:29:59.5", "2000-02-29T00:00", "1970-01-01T01:00", "2026-11-26T08:00"]
    found = times(column, 0)
    assert found.ns.astype("datetime64[ns]").tolist() == np.array(expected, "datetime64[ns]").tolist()
    assert found.valid.all()


def test_missing_times_are_not_given() -> None:
    found = times(pa.array(["", " NaN ", None, "null", "3"]), 0)
    assert found.given.tolist() == [False] * 4 + [True]
    assert not times(pa.nulls(3, pa.string()), 0).given.any()
    assert times(pa.array([np.nan, 2.5]), 0).given.tolist() == [False, True]


def test_floats_are_exact_only_as_far_as_they_go() -> None:
    found = times(pa.array([2.5, -0.25, 1e30]), 3)
    assert found.ns.tolist() == [2500, -250, 0]
    assert found.valid.tolist() == [True, True, False]
    assert found.is_float


@pytest.mark.parametrize(
    ("write", "places"),
    [
        (lambda s: repr(s), 9),
        (lambda s: f"{s:.9f}", 9),
        (lambda s: f"{s:.6f}", 9),
        (lambda s: str(int(s * 1e9)), 0),
        (lambda s: datetime.fromtimestamp(s, UTC).isoformat(), 0),
    ],
    ids=["repr", "nine places", "six places", "integers", "ISO of datetime"],
)
def test_times_that_were_floats_are_found_out(write, places: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(5)
    seconds = [float(s) for s in 1764151200 + np.sort(rng.uniform(0, 100, 8))]
    assert times(pa.array([write(s) for s in seconds]), places).too_few_digits()
    assert times(pa.array(seconds), 9).too_few_digits() == "are floating-point numbers"


@pytest.mark.parametrize(("unit", "places", "found"), [("us", 3, 6), ("ms", 6, 3), ("s", 9, 0)])
def test_whole_numbers_of_larger_units_have_too_few_digits(unit: str, places: int, found: int) -> None:
    whole = pa.array([1764151200 * 10 ** (9 - places) + i for i in range(9)])
    sentence = f"have {found} decimal places of a second"
    assert times(whole, places).too_few_digits() == sentence
    assert times(whole.cast(pa.timestamp(unit, "UTC")), 0).too_few_digits() == sentence


@given(st.lists(st.integers(1764151200 * 10**9, 1764151300 * 10**9), min_size=6, max_size=20, unique=True))
def test_times_with_all_digits_are_not(instants: list[int]) -> None:
    instants = [ns - ns % 256 + 1 for ns in instants] + [1764151200 * 10**9 + 17]
    assert times(pa.array(instants), 0).too_few_digits() is None
    assert times(pa.array([as_seconds(ns) for ns in instants]), 9).too_few_digits() is None
    assert times(pa.array([as_iso(ns, 60) for ns in instants]), 0).too_few_digits() is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1))
def test_numbers_are_read_as_python_reads_them(values: list[float]) -> None:
    found, bad = numbers(pa.array([repr(value) for value in values]))
    assert found.tolist() == values
    assert not bad.any()


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_none(text: str) -> None:
    found, bad = numbers(pa.array([text, "1"]))
    assert found[1] == 1
    if bad[0] or texts(pa.array([text]))[0].as_py() is None:
        assert np.isnan(found[0])
    else:
        assert found[0] == float(text)


def test_infinite_numbers_are_bad() -> None:
    for column in (pa.array([np.inf, -np.inf, np.nan, 1.0]), pa.array(["inf", "-Infinity", "nan", "1"])):
        found, bad = numbers(column)
        assert bad.tolist() == [True, True, False, False]
        assert np.isnan(found).tolist() == [True, True, True, False]
    assert numbers(pa.array([1, None], pa.int64()))[0].tolist()[0] == 1
