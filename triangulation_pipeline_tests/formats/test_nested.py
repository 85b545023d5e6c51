"""Rows that hold a list with an entry for each receiver."""

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from triangulation_pipeline.formats.columns import parse_mapping
from triangulation_pipeline.formats.measurement_file import recording_of_frame
from triangulation_pipeline.formats.nested import NO_LIST
from triangulation_pipeline_tests.formats.conftest import LAYOUT, TIME_NS, Read

BY_PLACE: dict[str, Any] = {
    "receptions": "heard",
    "receiver": "heard.0",
    "toa_ns": {"column": "heard.1", "unit": "ns"},
    "toa_sigma_ns": {"constant": 60},
    "altitude_m": "height",
}
BY_KEY = BY_PLACE | {"receiver": "heard.gateway.id", "toa_ns": {"column": "heard.at", "unit": "ns"}}
# 19 digits, which no floating-point number holds.
ROWS = [
    ("a", [["A", TIME_NS + 1, 49], ["B hill", TIME_NS + 250_000, "loud"], ["C, c", TIME_NS + 77]]),
    ("b", [["C, c", TIME_NS + 10**9 + 3, None], ["A", TIME_NS + 10**9, 1.5]]),
]
OBJECTS = [(name, [{"gateway": {"id": one[0]}, "at": one[1], "x": [{}]} for one in found]) for name, found in ROWS]


def as_csv(rows: list[tuple[str, list[Any]]]) -> str:
    cells = [(name, json.dumps(found).replace('"', '""')) for name, found in rows]
    return "id,height,heard\n" + "".join(f'{name},9000.5,"{cell}"\n' for name, cell in cells)


def as_json_lines(rows: list[tuple[str, list[Any]]]) -> str:
    return "".join(json.dumps({"id": name, "height": 9000.5, "heard": found}) + "\n" for name, found in rows)


def as_parquet(rows: list[tuple[str, list[Any]]]) -> bytes:
    target = io.BytesIO()
    names, found = zip(*rows, strict=True)
    pa_parquet.write_table(pa.table({"id": names, "height": [9000.5] * len(rows), "heard": list(found)}), target)
    return target.getvalue()


def test_lists_and_objects_are_read_as_the_long_form(read: Read) -> None:
    lines = [f"{name},{entry[0]!r},{entry[1]},60,9000.5" for name, found in ROWS for entry in found]
    plain = "transmission_id,receiver,toa_ns,toa_sigma_ns,altitude_m\n" + "\n".join(lines).replace("'", '"') + "\n"
    expected = read(plain)
    assert expected.measurements.toa_present.sum() == 5
    texts = [(name, [[str(value) for value in entry[:2]] for entry in found]) for name, found in ROWS]
    slim = [(name, [{key: entry[key] for key in ("gateway", "at")} for entry in found]) for name, found in OBJECTS]
    for document, name, mapping in (
        (as_csv(ROWS), "m.csv", BY_PLACE),
        (as_csv(OBJECTS), "m.csv", BY_KEY),
        (as_json_lines(ROWS), "m.jsonl", BY_PLACE),
        (as_json_lines(OBJECTS), "m.jsonl", BY_KEY),
        (as_parquet(texts), "m.parquet", BY_PLACE),
        (as_parquet(slim), "m.pq", BY_KEY),
    ):
        found = read(document, parse_mapping(mapping), name)
        assert not len(found.refused)
        assert found.transmission_id.tolist() == ["a", "b"]
        assert (found.altitude_m == 9000.5).all()
        for field in ("time_ns", "toa_present", "toa_ns", "toa_sigma_ns", "tx_altitude_m", "signal_present"):
            np.testing.assert_array_equal(
                getattr(found.measurements, field), getattr(expected.measurements, field), err_msg=f"{name} {field}"
            )
        assert np.isnan(found.measurements.power_dbm[found.measurements.signal_present]).all()


def test_a_data_frame_may_hold_lists() -> None:
    frame = pd.DataFrame({"id": ["b"], "height": [1.0], "heard": [[{"gateway": {"id": "A"}, "at": TIME_NS}]]})
    found = recording_of_frame(frame, LAYOUT, parse_mapping(BY_KEY))
    assert found.measurements.time_ns.tolist() == [TIME_NS]


@pytest.mark.parametrize("cell", ["", "7", "{}", "[]", "[[", "null", '""A""'])
def test_a_row_without_a_list_is_refused_and_the_others_stand(cell: str, read: Read) -> None:
    found = read(as_csv(ROWS[:1]) + f'x,1,"{cell}"\n' + as_csv(ROWS[1:]).split("\n")[1] + "\n", parse_mapping(BY_PLACE))
    assert found.transmission_id.tolist() == ["a", "b"]
    assert found.refused[["line", "reason"]].to_numpy().tolist() == [[3, NO_LIST]]


def test_an_entry_that_lacks_something_is_refused(read: Read) -> None:
    found = read(as_csv([("a", [["A", TIME_NS], ["B hill"], 7, {"0": "C, c"}, []])]), parse_mapping(BY_PLACE))
    assert found.measurements.toa_present.sum() == 1
    assert found.refused["line"].tolist() == [2, 2, 2, 2]


def test_parts_of_objects_have_names_too(read: Read) -> None:
    """As The Things Stack writes its uplinks: the list is in an object, as are names and the carrier."""
    mapping = parse_mapping(
        {
            "transmission_id": "ids.device",
            "receptions": "up.heard",
            "receiver": "up.heard.gateway.id",
            "toa_ns": {"column": "up.heard.at", "unit": "ns"},
            "toa_sigma_ns": {"constant": 60},
            "frequency_hz": "up.settings.frequency",
        }
    )
    lines = [
        {"ids": {"device": name}, "up": {"heard": found, "settings": {"frequency": "868100000"}}}
        for name, found in OBJECTS
    ]
    expected = read(as_csv(OBJECTS), parse_mapping(BY_KEY)).measurements
    frame = pd.DataFrame(lines)
    for found in (
        read("".join(json.dumps(line) + "\n" for line in lines), mapping, "m.jsonl"),
        recording_of_frame(frame, LAYOUT, mapping),
        read(frame.map(json.dumps).to_csv(index=False), mapping),
    ):
        assert found.transmission_id.tolist() == ["a", "b"]
        assert found.measurements.frequency_hz.tolist() == [868100000] * 2
        np.testing.assert_array_equal(found.measurements.toa_ns, expected.toa_ns)


def test_what_no_entry_has_is_a_mistake(read: Read) -> None:
    typo = parse_mapping(BY_KEY | {"toa_ns": "heard.time"})
    with pytest.raises(
        ValueError, match=r"no entry of 'heard' has 'heard.time'; the first is \{'gateway': \{'id': 'A'\}"
    ):
        read(as_csv(OBJECTS * 4), typo)


def test_the_column_must_be_there_and_the_receiver_named(read: Read) -> None:
    with pytest.raises(ValueError, match=r"the column 'heard' of receptions is missing; the columns are 'id', 'seen'$"):
        read("id,seen\n1,[]\n", parse_mapping(BY_PLACE))
    for wrong, sentence in (
        ({"receptions": "heard"}, "receptions: name the receiver of an entry too, as in 'receiver: heard.0'"),
        ({"receptions": "heard", "receiver": "gate"}, "receptions: name the receiver of an entry too"),
        ({"receptions": ["heard"], "receiver": "heard.0"}, "receptions must be the name of a column, got a list"),
    ):
        with pytest.raises(ValueError, match=sentence):
            parse_mapping(wrong)
