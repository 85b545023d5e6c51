import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from triangulation_pipeline.storage.columns import ReceiverArray, UtcDateTime, checked_json

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


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="timezone"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 1), DIALECTS[0])


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("dtype", ["|b1", "<f4", "<f8"])
def test_receiver_arrays_come_back(dialect, dtype: str) -> None:
    values = np.array([0, 1.5, -2.25], dtype)
    column = ReceiverArray(dtype)
    back = column.process_result_value(column.process_bind_param(values, dialect), dialect)
    assert back is not None
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back, values)


def test_json_is_given_back_as_it_will_be_read() -> None:
    assert checked_json("config", {"a": (1, 2.5, None), "b": {"c": "d"}}) == {"a": [1, 2.5, None], "b": {"c": "d"}}


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
    ],
)
def test_what_json_cannot_hold_is_refused(value: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked_json("config", value)
