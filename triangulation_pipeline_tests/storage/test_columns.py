import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite

from triangulation_pipeline.storage.columns import ReceiverArray, UtcDateTime, checked_json, now

DIALECTS = [sqlite.dialect(), postgresql.dialect()]
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1970, 1, 2), datetime(2900, 1, 1), timezones=zones)


@settings(max_examples=50)
@given(moments, moments)
def test_times_come_back_in_utc_and_sort_as_stored(first: datetime, second: datetime) -> None:
    column = UtcDateTime()
    for dialect in DIALECTS:
        stored = column.process_bind_param(first, dialect)
        back = column.process_result_value(stored, dialect)
        assert back == first
        assert back is not None
        assert back.tzinfo is UTC
        assert (stored < column.process_bind_param(second, dialect)) == (first < second)


def test_a_time_is_text_of_one_width_in_utc_on_sqlite() -> None:
    """So that it sorts as time does, and a person can read it."""
    summer = timezone(timedelta(hours=2))
    for moment, text in (
        (datetime(2026, 7, 1, 1, 30, tzinfo=summer), "2026-06-30T23:30:00.000000Z"),
        (datetime(2026, 7, 1, 1, 30, 15, 7, tzinfo=UTC), "2026-07-01T01:30:15.000007Z"),
    ):
        assert UtcDateTime().process_bind_param(moment, DIALECTS[0]) == text
    for dialect in DIALECTS:
        assert UtcDateTime().process_bind_param(None, dialect) is None
        assert UtcDateTime().process_result_value(None, dialect) is None


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_time_without_zone_is_refused(dialect: Dialect) -> None:
    with pytest.raises(ValueError, match=r"a time must have a timezone, got 2026-01-01T00:00:00"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 1), dialect)


def test_the_present_is_in_utc() -> None:
    moment = datetime(2026, 7, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    with time_machine.travel(moment, tick=False):
        assert now() == moment
        assert now().tzinfo is UTC


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("dtype", ["|b1", "<f4", "<f8"])
def test_receiver_arrays_come_back(dialect, dtype: str) -> None:
    values = np.array([0, 1.5, -2.25], dtype)
    column = ReceiverArray(dtype)
    back = column.process_result_value(column.process_bind_param(values, dialect), dialect)
    assert back is not None
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back, values)
    assert column.process_bind_param(None, dialect) is column.process_result_value(None, dialect) is None
    # Whatever the array's own order of bytes, and of its elements.
    other = values.astype(np.dtype(dtype).newbyteorder(">"))[::-1][::-1]
    np.testing.assert_array_equal(
        column.process_result_value(column.process_bind_param(other, dialect), dialect), values
    )
    if dialect.name == "sqlite":
        assert column.process_bind_param(other, dialect) == values.tobytes()


def test_json_is_given_back_as_it_will_be_read() -> None:
    given = {"a": (1, 2.5, None, -0.5, True), "b": {"c": "d", "ä\u202e": []}, "": [[], {}], "e": 2**70}
    read = {"a": [1, 2.5, None, -0.5, True], "b": {"c": "d", "ä\u202e": []}, "": [[], {}], "e": 2**70}
    assert checked_json("config", given) == read
    assert [type(value) for value in checked_json("config", given)["a"]] == [int, float, type(None), float, bool]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": {"b": [1.0, math.nan]}}, r"config\.a\.b\[1\] must be a finite number or null, got nan"),
        ({"a": -math.inf}, r"config\.a must be a finite number or null, got -inf"),
        ({"a": np.float64("nan")}, r"config\.a must be a finite number"),
        ({"a": np.zeros(2)}, r"config\.a must be .*, got ndarray"),
        ({"a": "b\0"}, r"config\.a must be text without zero characters"),
        ({"a": ["\ud800"]}, r"config\.a\[0\] must be text without .* half characters"),
        ({"a": {"\udfff": 1}}, r"config\.a must be text without .* half characters"),
        ({1: 2}, "config must have text keys, got 1"),
        ({"a": {None: 2}}, r"config\.a must have text keys, got None"),
        ({"a": [{"b": (0, {"c": math.inf})}]}, r"config\.a\[0\]\.b\[1\]\.c must be a finite number or null, got inf"),
        ({"a": {1, 2}}, r"config\.a must be null, text, a number, a list or a dict, got set"),
        ({"a": b"b"}, r"config\.a must be null, text, a number, a list or a dict, got bytes"),
        ({"a": np.int64(1)}, r"config\.a must be null, text, a number, a list or a dict, got int64"),
    ],
)
def test_what_json_cannot_hold_is_refused(value: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked_json("config", value)
