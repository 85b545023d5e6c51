"""Measurement files: their forms, and the rows and files that are refused."""

import gzip
import io
import json
import os
import signal
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triangulation_pipeline.formats import measurement_file, refusals, sources, transmissions
from triangulation_pipeline.formats.columns import ALIASES, FIELDS, parse_mapping
from triangulation_pipeline.formats.lines import CUT_OFF, LONG_LINE
from triangulation_pipeline.formats.measurement_file import read_measurements, recording_of_frame
from triangulation_pipeline.formats.recording import Recording
from triangulation_pipeline.network import ReceiverNetwork, Site
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import noise_floor_dbm
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline_tests.formats.conftest import LAYOUT, NETWORK, TIME_NS, Read

LONG = f"""{",".join(FIELDS)}
t1,{TIME_NS},A,1000.25,50,-90.5,20,145000000,12.5,45.1,7.5,300
t1,{TIME_NS},"C, c",250000,60,-100,9,145000000,-3,45.1,7.5,300
t2,{TIME_NS + 10**9},B hill,77,,-80,,,,,,
t1,{TIME_NS},D,,,-110,1,145000000,0,,,
t2,{TIME_NS + 10**9},A,99,40,,,,,,,
"""
HEADER = "transmission_id,time,receiver,toa_ns,toa_sigma_ns,rssi_dbm"
SIGMA: dict[str, Any] = {"toa_sigma_ns": {"constant": 50}}


def rows(*lines: str, header: str = HEADER) -> str:
    return "\n".join([header, *lines, ""])


def same(one: Recording, other: Recording, silence: bool = True) -> bool:
    """To the bit; without ``silence`` but for the levels of sites that have no row."""

    def values(recording: Recording, name: str) -> np.ndarray:
        seen = recording.measurements
        found: np.ndarray = getattr(seen, name)
        return found if silence or name != "power_dbm" else np.where(seen.signal_present, found, np.nan)

    for name in one.measurements.__dataclass_fields__:
        if not np.array_equal(values(one, name), values(other, name), equal_nan=True):
            return False
    names = ("latitude", "longitude", "altitude_m")
    return list(one.transmission_id) == list(other.transmission_id) and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in names
    )


def test_long_form(read: Read) -> None:
    found = read(LONG)
    seen = found.measurements
    assert found.receivers == ("A", "B hill", "C, c", "D")
    assert found.transmission_id.tolist() == ["t1", "t2"]
    assert found.line.tolist() == [2, 4]
    assert not len(found.refused)
    assert seen.time_ns.tolist() == [TIME_NS, TIME_NS + 10**9]
    assert seen.signal_present.tolist() == [[True, False, True, True], [True, True, False, False]]
    assert seen.toa_present.tolist() == [[True, False, True, False], [True, True, False, False]]
    assert seen.toa_ns.tolist() == [[1000.25, 0, 250000, 0], [99, 77, 0, 0]]
    # B has no standard deviation of its own, but its clock has.
    assert seen.toa_sigma_ns.tolist() == [[50, 0, 60, 0], [40, 15, 0, 0]]
    floor_dbm = noise_floor_dbm(LAYOUT.scenario, [5.5, 5.5, 8, 5.5]).astype(np.float32)
    np.testing.assert_array_equal(
        seen.power_dbm, np.float32([[-90.5, floor_dbm[1], -100, -110], [np.nan, -80, floor_dbm[2], floor_dbm[3]]])
    )
    np.testing.assert_array_equal(seen.snr_db, [[20, 0, 9, 1], [np.nan, np.nan, 0, 0]])
    assert seen.frequency_hz.tolist() == [145000000, LAYOUT.scenario.frequency_hz]
    assert seen.frequency_offset_hz.tolist() == [[12.5, 0, -3, 0], [0, 0, 0, 0]]
    assert found.is_known.tolist() == [True, False]
    assert (found.latitude[0], found.longitude[0], found.altitude_m[0]) == (45.1, 7.5, 300)
    assert seen.tx_altitude_m.tolist() == [300, LAYOUT.scenario.transmitter_altitude_m]


def test_containers_and_separators_change_nothing(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    long = read(LONG)
    frame = pd.read_csv(io.StringIO(LONG), dtype=str)
    lines = [{k: v for k, v in row.items() if isinstance(v, str)} for row in frame.to_dict("records")]
    numbers = [
        {k: v if k in {"receiver", "transmission_id"} else json.loads(v) for k, v in row.items()} for row in lines
    ]
    typed = pd.read_csv(io.StringIO(LONG))
    buffer = io.BytesIO()
    typed.to_parquet(buffer)
    tabs = frame.to_csv(index=False, sep="\t", lineterminator="\r\n")
    quoted = frame.to_csv(index=False, quoting=1)
    jsonl = "\n".join(map(json.dumps, numbers))
    for name, content in {
        "m.tsv": tabs,
        "bom.csv": "\ufeff\n\n" + frame.to_csv(index=False, sep=";"),
        "quoted.csv": quoted,
        "old mac.csv": LONG.replace("\n", "\r"),
        "m.CSV.gz": gzip.compress(LONG.encode()),
        "m.jsonl": "\n".join(map(json.dumps, lines)),
        "m.ndjson.gz": gzip.compress(jsonl.encode()),
        "m.parquet": buffer.getvalue(),
        "m.pq.gz": gzip.compress(buffer.getvalue()),
    }.items():
        assert same(read(content, name=name), long), name
    assert same(recording_of_frame(typed, LAYOUT), long)
    for content, kind in (
        (LONG.encode(), None),
        (gzip.compress(jsonl.encode()), "jsonl"),
        (buffer.getvalue(), "parquet"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))  # type: ignore[type-var]
        assert same(Recording.concatenate(list(read_measurements("-", LAYOUT, file_format=kind))), long)
    assert same(read(LONG, name="data", file_format="csv"), long)


def test_objects_may_differ_in_their_keys(read: Read) -> None:
    one = {"id": 1, "time": TIME_NS, "Gateway": "A", "rssi": -90.5}
    two = {"ID": "1", "time": str(TIME_NS), "gateway": "D", "RSSI": "-80", "lat": 45.5, "lon": 7, "more": {"x": [1]}}
    damaged = ["[]", "{", "1,2", '{"id":"1"},{"id":"1"}', '{"id": "\\ud800", "gateway": true}', "[" * 100_000]
    text = "\n".join([json.dumps(one), *damaged, json.dumps(two)])
    found = read(text, name="m.jsonl")
    assert found.measurements.power_dbm[0, [0, 3]].tolist() == [-90.5, -80]
    assert found.latitude.tolist() == [45.5]
    assert found.refused.sort_values("line")[["line", "reason"]].to_numpy().tolist() == [
        *([line, sources.NO_OBJECT] for line in (2, 3, 4, 5)),
        [6, refusals.UNKNOWN_RECEIVER],
        [7, sources.NO_OBJECT],
    ]


def test_damaged_keys_are_no_columns(tmp_path: Path) -> None:
    """A column for each of them would fill the memory; what has a name that is known is kept, however rare."""
    lines = [{"id": i, "at": TIME_NS, "receiver": "A", f"r\ufffd{i}": -90} for i in range(300)]
    lines[-1] |= {"lat": 45.5, "site.rssi": 1, "level": 2, "heard": {"x": 3}}
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mapping = parse_mapping({"time": "at", "rssi_dbm": "level", "snr_db": "heard.x"})
    (piece,) = sources.pieces(str(path), sources.Format.jsonl, False, mapping)
    assert list(piece.columns) == ["id", "at", "receiver", "lat", "site.rssi", "level", "heard"]


def test_wide_form(read: Read) -> None:
    header = 'Transmission_ID,time,A.toa_ns,A.RSSI,B hill.toa_ns,D.rssi_dbm,"C, c.toa_ns",x.y.rssi'
    found = read(
        rows(f"t1,{TIME_NS},5,-90,,,7,", f"t2,{TIME_NS},,,8,-70,,-50", f"t3,{TIME_NS},,,,,,", header=header),
        parse_mapping(SIGMA),
    )
    seen = found.measurements
    assert found.transmission_id.tolist() == ["t1", "t2"]
    assert seen.toa_ns.tolist() == [[5, 0, 7, 0], [0, 8, 0, 0]]
    assert seen.toa_sigma_ns[seen.toa_present].tolist() == [50] * 3
    assert seen.signal_present.tolist() == [[True, False, True, False], [False, True, False, True]]
    assert seen.power_dbm[0, 0] == -90
    assert seen.power_dbm[1, 3] == -70
    assert found.refused.to_dict("records") == [
        {
            "line": 3,
            "transmission_id": "t2",
            "column": "receiver",
            "value": "x.y",
            "reason": refusals.UNKNOWN_RECEIVER,
        }
    ]


def test_wide_form_without_ids_has_the_line_as_id(read: Read) -> None:
    mapping = parse_mapping(
        {"toa_ns": {"column": "fine", "unit": "s"}, "toa_sigma_ns": {"constant": 0.05, "unit": "us"}}
    )
    found = read("A.fine,D.rss\n1764151200.123456789,-90\n\n1764151201.000000001,\n", mapping)
    assert found.transmission_id.tolist() == ["2", "4"]
    assert found.measurements.time_ns.tolist() == [TIME_NS, 1764151201 * 10**9 + 1]
    assert found.measurements.toa_sigma_ns[:, 0].tolist() == [50, 50]


@pytest.mark.parametrize("alias", ALIASES)
def test_other_names_of_columns(alias: str, read: Read) -> None:
    header, *lines = LONG.split("\n")
    for written in (alias, alias.upper()):
        other = header.replace(ALIASES[alias], f" {written}")
        assert other != header
        assert same(read("\n".join([other, *lines])), read(LONG))


def test_the_silence_of_sites_may_be_unknown(read: Read) -> None:
    known = read(LONG).measurements
    found = read(LONG, parse_mapping({"silence": "unknown"})).measurements
    assert np.isnan(found.power_dbm[~found.signal_present]).all()
    np.testing.assert_array_equal(found.power_dbm[found.signal_present], known.power_dbm[known.signal_present])
    assert np.isfinite(known.power_dbm[~known.signal_present]).all()


def test_a_mapping_names_columns_units_and_missing_values(read: Read) -> None:
    mapping = parse_mapping(
        {
            "transmission_id": "n",
            "receiver": "who",
            "time": {"column": "t", "unit": "ms"},
            "toa_ns": {"column": "arrival", "unit": "us", "missing": -1},
            "toa_sigma_ns": {"column": "err", "unit": "us"},
            "rssi_dbm": {"column": "level", "missing": [-200, 100, "off"]},
            "frequency_hz": {"column": "f", "unit": "MHz"},
            "altitude_m": {"column": "ft", "unit": "ft"},
            "latitude": {"constant": 45.5},
            "longitude": {"constant": 7.5},
        }
    )
    header = "n,who,t,arrival,err,level,f,ft,rssi,id"
    moment = f"{TIME_NS // 10**6}.456789"
    text = rows(
        f"1,A,{moment},12.345,0.05,-200,868.1,1000,-7,x",
        f"1,B hill,{moment},-1,,-90,868.1,1000,-7,x",
        f"1,D,{moment},-1,,-200.0,868.1,1000,-7,x",
        f'1,"C, c",{moment},3,0.05,off,868.1,1000,-7,x',
        header=header,
    )
    found = read(text, mapping)
    seen = found.measurements
    assert seen.time_ns.tolist() == [TIME_NS]
    np.testing.assert_allclose(seen.toa_ns, [[12345, 0, 3000, 0]])
    assert seen.toa_present.tolist() == [[True, False, True, False]]
    np.testing.assert_allclose(seen.toa_sigma_ns, [[50, 0, 50, 0]], rtol=1e-6)
    np.testing.assert_array_equal(seen.power_dbm[0, :3], np.float32([np.nan, -90, np.nan]))
    assert seen.frequency_hz.tolist() == [868_100_000]
    np.testing.assert_allclose([found.altitude_m[0], found.latitude[0], found.longitude[0]], [304.8, 45.5, 7.5])
    assert found.refused["reason"].tolist() == [refusals.NO_VALUE]
    typed = pd.read_csv(io.StringIO(text.replace(",off,", ",-200,")), dtype={"t": str})
    assert same(recording_of_frame(typed, LAYOUT, mapping), found)


@pytest.mark.parametrize("with_time", [True, False])
def test_absolute_times_in_any_writing_give_the_same_arrival_times(with_time: bool, read: Read) -> None:
    arrivals = [TIME_NS + late for late in (3, 250_004, 1_000_017)]
    moment = np.datetime64(TIME_NS, "ns")
    writings = {
        "ns": [str(ns) for ns in arrivals],
        "s": [f"{ns // 10**9}.{ns % 10**9:09d}" for ns in arrivals],
        "us": [f"{ns // 1000}.{ns % 1000:03d}" for ns in arrivals],
        "iso": [f"{np.datetime64(ns, 'ns')}Z" for ns in arrivals],
    }
    found = []
    for unit, written in writings.items():
        mapping = parse_mapping(SIGMA | {"toa_ns": {"column": "toa", "unit": "ns" if unit == "iso" else unit}})
        time = f"{moment}+00:00" if with_time else ""
        lines = [f"t,{time},{r},{toa}" for r, toa in zip(("A", "B hill", '"C, c"'), written, strict=True)]
        header = "transmission_id,time,receiver,toa" if with_time else "transmission_id,_,receiver,toa"
        found.append(read(rows(*lines, header=header), mapping))
    assert all(same(one, found[0]) for one in found)
    begin = TIME_NS if with_time else arrivals[0]
    assert found[0].measurements.time_ns.tolist() == [begin]
    assert found[0].measurements.toa_ns[0, :3].tolist() == [ns - begin for ns in arrivals]
    assert not len(found[0].refused)


def test_arrival_times_may_count_from_an_epoch_of_their_own(read: Read) -> None:
    """As those of GPS, beside times of servers in UTC: what is far from the others of its transmission is refused."""
    heard = [("A", 1448186418, 125212346), ("B hill", 1448186418, 125300000), ("D", 0, 0), ("A", 1448186420, 5)]
    lines = [f"t,{TIME_NS},{r},{f'{s}.{ns:09d}s' if s else ''},50,-90" for r, s, ns in heard]
    found = read(rows(*lines))
    assert found.measurements.time_ns.tolist() == [TIME_NS]
    assert found.measurements.toa_ns.tolist() == [[0, 87654, 0, 0]]
    assert found.refused[["line", "reason"]].to_numpy().tolist() == [[5, refusals.FAR_TOA]]


def test_fractions_of_absolute_nanoseconds_are_kept(read: Read) -> None:
    found = read(rows(f"t,,A,{TIME_NS}.25,5,", f"t,,B hill,{TIME_NS + 7}.75,5,").replace(",time,", ",_,"))
    assert found.measurements.toa_ns[0, :2].tolist() == [0.25, 7.75]


def test_floating_point_times_are_refused_with_the_reason(read: Read, tmp_path: Path) -> None:
    seconds = [1764151200.1234567 + i / 7 for i in range(6)]
    mapping = parse_mapping(SIGMA | {"toa_ns": {"column": "toa", "unit": "s"}})
    frame = pd.DataFrame({"transmission_id": range(6), "receiver": "A", "toa": seconds})
    for write in (lambda: read(frame.to_csv(), mapping), lambda: recording_of_frame(frame, LAYOUT, mapping)):
        with pytest.raises(
            ValueError, match=r"too few digits for TDOA: .* to 238 ns, or 71 m; write whole nanoseconds"
        ):
            write()
    frame["toa"] = (frame["toa"] * 1e9).astype(int)
    with pytest.raises(ValueError, match="its arrival times went through floating-point numbers"):
        recording_of_frame(frame, LAYOUT, parse_mapping(SIGMA | {"toa_ns": "toa"}))
    # A rough time is enough if arrival times count from it.
    lines = [f"{i},{s},A,5" for i, s in enumerate(seconds)]
    mapping = parse_mapping(SIGMA | {"time": {"column": "time", "unit": "s"}})
    assert len(read(rows(*lines, header="transmission_id,time,receiver,toa_ns"), mapping)) == 6


GOOD = f"t,{TIME_NS},A,5,50,-90"


@pytest.mark.parametrize(
    ("line", "column", "value", "reason"),
    [
        (f",{TIME_NS},B hill,5,50,-90", "transmission_id", "", refusals.NO_ID),
        (f"t,{TIME_NS},,5,50,-90", "receiver", "", refusals.NO_RECEIVER),
        (f"t,{TIME_NS},b hill,5,50,-90", "receiver", "b hill", refusals.ANOTHER_SPELLING),
        (f"t,{TIME_NS},B\u00a0hill,5,50,-90", "receiver", "B\\xa0hill", refusals.ANOTHER_SPELLING),
        (f"t,{TIME_NS},M\ufffdnchen,5,50,-90", "receiver", "M\ufffdnchen", refusals.NO_UTF8),
        (f"t,{TIME_NS},{'x' * 99},5,50,-90", "receiver", "x" * 40, refusals.UNKNOWN_RECEIVER),
        (f"t,{TIME_NS},\x1b[2J,5,50,-90", "receiver", "\\x1b[2J", refusals.UNKNOWN_RECEIVER),
        (f"t,{TIME_NS},B hill,,,", "toa_ns", "", refusals.NO_VALUE),
        (f"t,{TIME_NS},B hill,five,50,-90", "toa_ns", "five", refusals.NO_TIME_TEXT),
        (f"t,{TIME_NS},B hill,5,50,-9O", "rssi_dbm", "-9O", refusals.NO_NUMBER),
        (f"t,{TIME_NS},B hill,5,inf,-90", "toa_sigma_ns", "inf", refusals.NO_NUMBER),
        (f"t,{TIME_NS},B hill,5,0,-90", "toa_sigma_ns", "0", refusals.LIMITS["toa_sigma_ns"][2]),
        (f"t,{TIME_NS},B hill,5,-5,-90", "toa_sigma_ns", "-5", refusals.LIMITS["toa_sigma_ns"][2]),
        (f"t,{TIME_NS},B hill,5,5e-8,-90", "toa_sigma_ns", "5e-8", refusals.LIMITS["toa_sigma_ns"][2]),
        (f"t,{TIME_NS},B hill,5,2e9,-90", "toa_sigma_ns", "2e9", refusals.LIMITS["toa_sigma_ns"][2]),
        (f"t,{TIME_NS},B hill,5,50,-200", "rssi_dbm", "-200", refusals.LIMITS["rssi_dbm"][2]),
        (f"t,{TIME_NS},B hill,5,50,99", "rssi_dbm", "99", refusals.LIMITS["rssi_dbm"][2]),
        (f"t,{TIME_NS},B hill,2000000000,50,-90", "toa_ns", "2000000000", refusals.FAR_TOA),
        (f"t,{TIME_NS},B hill,{TIME_NS},50,-90", "toa_ns", str(TIME_NS), refusals.FAR_TOA),
        (f"t,{TIME_NS},D,5,50,-90", "toa_ns", "5", refusals.NOT_TIMED),
        (f't,{TIME_NS},"C, c",5,,-90', "toa_sigma_ns", "", refusals.NO_SIGMA),
        ("t,,B hill,5,50,-90", "time", "", refusals.NO_TIME),
        ("t,yesterday,B hill,5,50,-90", "time", "yesterday", refusals.NO_TIME_TEXT),
        ("t,-5,B hill,5,50,-90", "time", "-5", refusals.NO_TIME_TEXT),
        (f"t,{TIME_NS + 1},B hill,5,50,-90", "time", str(TIME_NS + 1), refusals.ANOTHER_TIME),
        (f"t,{TIME_NS + 2 * 10**9},D,,,-90", "time", str(TIME_NS + 2 * 10**9), refusals.FAR_TIME),
        ("t,12", "", "t,12", sources.OTHER_FIELDS),
        ('t,"12,,,,', "", 't,"12,,,,', sources.BAD_QUOTES),
        ('t,1"2"3,,,,', "", 't,1"2"3,,,,', sources.BAD_QUOTES),
    ],
)
def test_a_refused_row_has_a_reason_and_the_others_stand(
    line: str, column: str, value: str, reason: str, read: Read
) -> None:
    good = [GOOD, GOOD.replace(",A,", ',"C, c",')]
    found = read(rows(good[0], line, good[1]))
    assert found.refused.to_dict("records") == [
        {
            "line": 3,
            "transmission_id": "" if column in {"", "transmission_id"} else "t",
            "column": column,
            "value": value,
            "reason": reason,
        }
    ]
    assert found.reasons.to_dict() == {reason: 1}
    assert same(found, read(rows(*good)), silence=False)


@pytest.mark.parametrize(
    ("receiver", "unknown"),
    [("B hill", [1]), ("D", [3]), ("Nowhere", [1, 3]), ("b HILL", [1, 3]), ("", [1, 3]), ("A", [])],
)
def test_who_has_a_refused_row_was_not_silent(receiver: str, unknown: list[int], read: Read) -> None:
    """Its site heard something; which one it was may be unknown. Other transmissions are as they were."""
    good = [GOOD, GOOD.replace(",A,", ',"C, c",')]
    other = GOOD.replace("t,", "u,", 1)
    found = read(rows(*good, f"t,{TIME_NS},{receiver},5,50,9000", other)).measurements.power_dbm
    assert np.flatnonzero(np.isnan(found[0])).tolist() == unknown
    assert np.isfinite(found[1]).all()


PLACED = "transmission_id,time,receiver,rssi_dbm,frequency_hz,snr_db,frequency_offset_hz,latitude,longitude,altitude_m"


@pytest.mark.parametrize(
    ("cells", "column", "reason"),
    [
        ("145e6,,,91,7,0", "latitude", "a latitude must be -90 to 90 degrees"),
        ("145e6,,,45,181,0", "longitude", "a longitude must be -180 to 180 degrees"),
        ("145e6,,,45,7,2e5", "altitude_m", "an altitude must be -1 to 100 km"),
        ("145e6,,,45,,0", "latitude", refusals.HALF_PLACE),
        ("145e6,,,,7,0", "latitude", refusals.HALF_PLACE),
        ("145e6,,,45.1,7,", "latitude", refusals.ANOTHER_PLACE),
        ("145e6,,,45,7.1,", "longitude", refusals.ANOTHER_PLACE),
        ("145e6,,,45,7,1", "altitude_m", refusals.ANOTHER_PLACE),
        ("146e6,,,45,7,0", "frequency_hz", refusals.ANOTHER_FREQUENCY),
        ("145,,,45,7,0", "frequency_hz", "a carrier must be 1 kHz to 300 GHz"),
        ("145e6,200,,45,7,0", "snr_db", "a signal-to-noise ratio must be -60 to 150 dB"),
        ("145e6,,1e9,45,7,0", "frequency_offset_hz", "a frequency offset must be at most 100 MHz"),
    ],
)
def test_places_and_carriers_that_cannot_be_are_refused(cells: str, column: str, reason: str, read: Read) -> None:
    good = [f"t,{TIME_NS},{receiver},-90,145000000,3,1,45,7,0" for receiver in ("A", "B hill")]
    found = read(rows(*good, f"t,{TIME_NS},D,-90,{cells}", header=PLACED))
    assert found.refused[["line", "column", "reason"]].to_numpy().tolist() == [[4, column, reason]]
    assert same(found, read(rows(*good, header=PLACED)), silence=False)


def test_the_carrier_may_leap_between_transmissions_and_years_may_pass(read: Read) -> None:
    moments = ["1970-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "2026-11-26T10:00:00Z", "2199-12-31T23:59:59.999999999Z"]
    lines = [f"{i},{t},A,-90,{f},,,,," for i, (t, f) in enumerate(zip(moments, (1e3, 868e6, 145e6, 3e11), strict=True))]
    found = read(rows(*lines, header=PLACED))
    assert found.measurements.frequency_hz.tolist() == [1000, 868000000, 145000000, 300000000000]
    assert found.measurements.time_ns.tolist() == [int(np.datetime64(t[:-1], "ns").astype(int)) for t in moments]
    assert not len(found.refused)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_file_that_is_cut_off_says_so(name: str, read: Read) -> None:
    frame = pd.read_csv(io.StringIO(LONG), dtype=str)
    text = LONG if name == "m.csv" else frame.to_json(orient="records", lines=True)
    whole = read(text.rstrip("\n"), name=name)
    assert not len(whole.refused)
    at = text.rindex("B hill")
    cut = read(text[:at], name=name)
    line = 4 if name == "m.csv" else 3
    assert cut.refused[["line", "reason"]].to_numpy().tolist() == [[line, CUT_OFF]]
    assert cut.transmission_id.tolist() == ["t1"]
    assert cut.measurements.signal_present.sum() == 2
    # The end of packed data is known: what comes before it is used, and a last line is never whole.
    for end in (at, text.rindex("\n", 0, at) + 1, len(text) - 2):
        packed = gzip.compress(text[:end].encode(), 0)[:-8]
        unpacked = read(packed, name=f"{name}.gz")
        assert unpacked.refused["reason"].tolist() == [CUT_OFF], end
    assert same(unpacked, read(text[: text.rindex("\n", 0, end) + 1], name=name))


def test_rows_without_any_id_are_refused(read: Read) -> None:
    found = read(rows(GOOD.replace("t,", ",", 1), GOOD.replace("t,", "nan,", 1)))
    assert len(found) == 0
    assert found.reasons.to_dict() == {refusals.NO_ID: 2}


def test_accents_may_be_encoded_in_two_ways(read: Read) -> None:
    composed, apart = "M\u00fcnchen", "Mu\u0308nchen"
    for own, written in ((composed, apart), (apart, composed)):
        site = Site(name=own, lat=48.1, lon=11.6)
        layout = Layout(ReceiverNetwork(name="n", sites=(site, *NETWORK.sites[:2])), Scenario())
        assert read(rows(GOOD.replace(",A,", f",{written},")), layout=layout).receivers[0] == own


def test_a_place_out_of_reach_is_refused(read: Read) -> None:
    swapped = read(rows(f"{GOOD},7.5,45.1", header=f"{HEADER},latitude,longitude"))
    assert swapped.refused[["column", "reason"]].to_numpy().tolist() == [["latitude", refusals.FAR_PLACE]]


@pytest.mark.parametrize(("unit", "digits"), [("s", 10), ("ms", 13), ("us", 16)])
def test_times_in_another_unit_are_no_nanoseconds(unit: str, digits: int, read: Read) -> None:
    """Unless a mapping says so; dates are what they say."""
    time = str(TIME_NS)[:digits]
    told = {"time": {"column": "time", "unit": "ns"}}
    text = rows(f"t,{time}.5,A,5,50,-90")
    with pytest.raises(
        ValueError, match=rf"the numbers of time look like times in {unit}, and without a unit they are"
    ):
        read(text)
    assert read(text, parse_mapping(told)).measurements.time_ns.tolist() == [int(time)]
    frame = pd.DataFrame({"id": ["t"], "time": pd.to_datetime([int(time)], utc=True), "gateway": ["A"], "rssi": [-90]})
    assert recording_of_frame(frame, LAYOUT).measurements.time_ns.tolist() == [int(time)]


def test_arrival_times_in_a_larger_unit_are_no_nanoseconds(read: Read) -> None:
    """The sites A and B are 260 microseconds apart."""
    text = rows(
        *(
            f"{i},{TIME_NS},{receiver},{toa},50,-90"
            for i in range(10)
            for receiver, toa in (("A", 9), ("B hill", i * 26))
        )
    )
    with pytest.raises(
        ValueError, match=r"its arrival times differ between receivers by only 1[0-9]{2} ns, and the sites are"
    ):
        read(text)
    assert len(read(text, parse_mapping({"toa_ns": {"column": "toa_ns", "unit": "us"}}))) == 10


def test_receivers_may_measure_the_carrier_a_little_differently(read: Read) -> None:
    lines = [
        f"t,{TIME_NS},{r},-90,{f},,,,," for r, f in (("A", 145000100), ("B hill", "144999990.4"), ("D", 145000020))
    ]
    found = read(rows(*lines, header=PLACED))
    assert found.measurements.frequency_hz.tolist() == [145000020]
    assert not len(found.refused)


def test_two_rows_of_one_receiver_are_both_refused(read: Read) -> None:
    found = read(rows(GOOD, GOOD.replace(",5,", ",6,"), GOOD.replace(",A,", ",B hill,")))
    assert found.measurements.signal_present.tolist() == [[False, True, False, False]]
    assert found.refused["line"].tolist() == [2, 3]
    assert found.reasons.to_dict() == {refusals.TWICE: 2}


def test_of_equal_rows_the_first_is_used(read: Read) -> None:
    text = rows(GOOD, GOOD.replace(",A,", ",D,").replace(",5,50,", ",,,"))
    twice = read(text + text)
    assert same(twice, read(text))
    assert twice.refused[["line", "reason"]].to_numpy().tolist() == [
        [4, refusals.UNKNOWN_RECEIVER],
        [5, refusals.REPEATED],
        [6, refusals.REPEATED],
    ]


def test_nothing_is_left_of_refused_rows_alone(read: Read) -> None:
    found = read(rows(GOOD.replace(",A,", ",a,"), "x"))
    assert len(found) == 0
    assert sorted(found.refused["line"]) == [2, 3]


def test_rows_of_a_transmission_stand_within_the_window(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the pieces in which a file is read."""
    monkeypatch.setattr(measurement_file, "WINDOW_LINES", 50)
    lines = [
        f"{i // 3 if i % 3 else 'far'},{TIME_NS},{'A' if i % 3 == 1 else 'B hill'},{i}0000,50,-90" for i in range(300)
    ]
    lines[40] = lines[40].replace(",A,", ",D,").replace(",400000,50,", ",,,")  # allowed beside the other
    text = rows(*lines)
    whole = read(text)
    # Rows 0, 3, 6... have the id "far": up to line 2 + 50 they belong together, but then they are too late.
    late = whole.refused[whole.refused["reason"] == refusals.LATE]
    assert late["line"].tolist() == [i + 2 for i in range(0, 300, 3) if i > 50]
    for size in (100, 1000, 5000):
        monkeypatch.setattr("triangulation_pipeline.formats.lines.CHUNK_BYTES", size)
        found = read(text)
        assert same(found, whole)
        pd.testing.assert_frame_equal(
            found.refused.sort_values("line", ignore_index=True), whole.refused, check_dtype=False
        )


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_may_fall_between_two_pieces(line_end: str, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [GOOD.replace("t,", f"{i},") for i in range(30)]
    lines[20] = "x"
    text = rows(*lines)
    whole = read(text)
    for size in range(60, 110):
        monkeypatch.setattr("triangulation_pipeline.formats.lines.CHUNK_BYTES", size)
        found = read(text.replace("\n", line_end))
        assert same(found, whole)
        assert found.line.tolist() == whole.line.tolist()
        assert found.refused["line"].tolist() == [22]


def test_blocks_are_small_and_a_refused_row_is_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transmissions, "BLOCK_TRANSMISSIONS", 10)
    lines = [GOOD.replace("t,", f"{i},") for i in range(35)]
    lines[3], lines[30] = "x", lines[30].replace(",A,", ",a,")
    (tmp_path / "m.csv").write_text(rows(*lines))
    blocks = list(read_measurements(tmp_path / "m.csv", LAYOUT))
    # A line that is no row is told of at once, and the others when their transmissions are whole.
    assert [len(block) for block in blocks] == [0, 10, 10, 10, 3]
    assert Recording.concatenate(blocks).refused["line"].tolist() == [5, 32]
    # Of networks with many sites they have fewer transmissions.
    monkeypatch.setattr(transmissions, "MOST_CELLS", 20)
    assert [len(block) for block in read_measurements(tmp_path / "m.csv", LAYOUT)] == [0, *[5] * 6, 3]


def test_the_rows_of_a_data_frame_stand_in_any_order(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f"{i},{TIME_NS},{receiver},{i}{toa},50,-90"
        for i in range(200)
        for receiver, toa in (("A", 0), ("B hill", 9999))
    ]
    in_order = read(rows(*lines))
    monkeypatch.setattr(measurement_file, "WINDOW_LINES", 50)
    frame = pd.read_csv(io.StringIO(rows(*lines)))
    found = recording_of_frame(frame.sort_values("receiver", kind="stable"), LAYOUT)
    assert not len(found.refused)
    assert same(found, in_order)


def test_a_file_sorted_by_receiver_is_refused_and_not_taken_apart(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement_file, "WINDOW_LINES", 50)
    monkeypatch.setattr("triangulation_pipeline.formats.lines.CHUNK_BYTES", 2000)
    lines = [f"{i},{TIME_NS},{receiver},5,50,-90" for receiver in ("A", "B hill") for i in range(200)]
    found = read(rows(*lines))
    assert len(found) == 200
    assert found.reasons.to_dict() == {refusals.LATE: 200}


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        ("", "m.csv", "it is empty"),
        ("\n\n", "m.csv", "it is empty"),
        (b"\x1f\x8b", "m.csv.gz", "its gzip data is cut off"),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 50, "m.csv.gz", "its gzip data is damaged"),
        (HEADER + "\n", "m.csv", "it has no rows"),
        (b"\x00\x01\x02" * 500, "m.csv", "it is not UTF-8 text: its first line has zero bytes"),
        (LONG.encode("utf-16"), "m.csv", "it is UTF-16 text; save it as UTF-8"),
        (LONG.encode("utf-16-le"), "m.csv", "it is not UTF-8 text: its first line has zero bytes"),
        (b"PK\x03\x04" + b"xl/workbook.xml", "m.csv", "it is a zip archive or a workbook, not text"),
        (gzip.compress(gzip.compress(LONG.encode())), "m.csv.gz", "it is packed with gzip twice"),
        (
            "<html>502, Bad Gateway</html>",
            "m.csv",
            "its first line names no column that is known, it begins with '<html",
        ),
        (b"PAR1xxx", "m.csv", "it is Parquet, not text; --format parquet reads it"),
        ("a" * 3_000_000, "m.csv", "its first line is longer than 1,000,000 bytes"),
        ("hello\nworld\n", "m.csv", "its first line must name the columns, separated by commas; it is 'hello'"),
        ('a,"b\n', "m.csv", "the quotes of its first line do not match"),
        ("a,a\n1,2\n", "m.csv", "the column 'a' appears twice"),
        (f"{GOOD}\n{GOOD}\n", "m.csv", "its first line names no column that is known, it begins with 't'"),
        (rows("1,2", header="time,a"), "m.csv", "it has no column transmission_id; the columns are 'time', 'a'; other"),
        (
            rows("1,2", header="id,time"),
            "m.csv",
            "it has no column receiver; the columns are 'id', 'time'; other names",
        ),
        (rows("1,A,2", header="id,gateway,time"), "m.csv", "it has no column toa_ns or rssi_dbm"),
        (
            rows("1,A,-2", header="id,gateway,rssi"),
            "m.csv",
            "it has no column time (one for a transmission) or toa_ns",
        ),
        (
            rows("1,A,-2,3", header="id,gateway,station,rssi"),
            "m.csv",
            "the columns 'gateway' and 'station' may both be",
        ),
        (rows("1,A,-2,3", header="id,gateway,toa_s,time"), "m.csv", "unknown column 'toa_s'; meant toa_ns? Rename it"),
        *(
            (
                rows("1,A,-2,3,5", header=f"id,gateway,snr,{name},time"),
                "m.csv",
                f"unknown column '{name}'; meant {field}?",
            )
            for name, field in (
                *(
                    ("toa", "toa_ns"),
                    ("TOA [ns]", "toa_ns"),
                    ("rssi (dBm)", "rssi_dbm"),
                    ("Latitude [deg]", "latitude"),
                ),
                *(
                    ("altitude", "altitude_m"),
                    ("frequency [MHz]", "frequency_hz"),
                    ("toa-sigma (ns)", "toa_sigma_ns"),
                ),
            )
        ),
        (
            rows("1,A,2", header="id,gateway,toa_ns"),
            "m.csv",
            "it has no column toa_sigma_ns, and the clock of site 'A' has no known standard deviation; give one in a",
        ),
        ("1\n[1, 2]\n", "m.jsonl", "it is not JSON lines: each line must be one JSON object"),
        ("[\n" + json.dumps({"id": 1}, indent=1) + "]\n", "m.jsonl", "it is a JSON list, not JSON lines"),
        ("", "m.jsonl", "it is empty"),
        ("\n", "m.jsonl", "it has no rows"),
        (json.dumps({"id": 1}), "m.jsonl", "it has no column receiver"),
        ("", "m.parquet", "it is empty"),
        ("PAR1 and no more", "m.parquet", "it is no Parquet file, or it is cut off or damaged"),
        (LONG, "m.xlsx", "the ending of the name must be one of .csv, .tsv"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_one_sentence(
    content: str | bytes, name: str, sentence: str, read: Read, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"^measurement file [^\n]{1,600}$") as caught:
        read(content, name=name)
    assert f"{tmp_path / name}: {sentence}" in str(caught.value)


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    for path, sentence in (
        (tmp_path / "no.csv", "it does not exist"),
        (tmp_path, "the ending"),
        (Path("a\0.csv"), "it "),
    ):
        with pytest.raises(ValueError, match=sentence):
            list(read_measurements(path, LAYOUT))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="it cannot be read: Is a directory"):
        list(read_measurements(tmp_path / "folder.csv", LAYOUT))
    with pytest.raises(ValueError, match="the format must be one of csv, jsonl, parquet, got 'xml'"):
        list(read_measurements(tmp_path / "x.csv", LAYOUT, file_format="xml"))


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pd.to_datetime(["2026-11-26"]), "the column 'time' has time stamps without a time zone; make them UTC"),
        ([[1]], "the column 'time' must have numbers, texts or time stamps, it has list"),
        ([True], "the column 'time' must have numbers, texts or time stamps, it has bool"),
        ([1, "x"], "the column 'time' has values of different kinds"),
    ],
)
def test_columns_of_other_kinds_are_one_sentence(column: object, sentence: str) -> None:
    frame = pd.DataFrame({"time": column, "transmission_id": "1", "receiver": "A", "rssi_dbm": -90.0})
    with pytest.raises(ValueError, match=sentence):
        recording_of_frame(frame, LAYOUT)


def test_what_is_no_proper_data_frame_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^data frame: the column 'a' appears twice$"):
        recording_of_frame(pd.DataFrame([[1, 2]], columns=["a", "a"]), LAYOUT)
    with pytest.raises(ValueError, match=r"^measurements must be a DataFrame, got dict$"):
        recording_of_frame({"a": [1]}, LAYOUT)  # type: ignore[arg-type]


def test_kinds_of_columns_that_have_the_same_values(read: Read) -> None:
    frame = pd.DataFrame({"time": [TIME_NS] * 2, "id": [7, 7], "receiver": ["A", "D"], "rssi_dbm": [-90.0, -80.0]})
    plain = recording_of_frame(frame, LAYOUT)
    assert plain.transmission_id.tolist() == ["7"]
    for other in (
        {"receiver": frame["receiver"].astype("category")},
        {"time": pd.to_datetime(frame["time"], unit="ns", utc=True).dt.tz_convert("Asia/Kolkata")},
        {"rssi_dbm": frame["rssi_dbm"].astype("float32")},
        {"time": frame["time"].astype("UInt64")},
        {"receiver": ["A ", " D"]},
    ):
        assert same(recording_of_frame(frame.assign(**other), LAYOUT), plain), other
    table = pa.Table.from_pandas(frame).set_column(3, "rssi_dbm", pa.array(["-90", "-80"]).cast(pa.decimal128(9, 3)))
    buffer = io.BytesIO()
    pa_parquet.write_table(table.set_column(2, "receiver", pa.array(["A", "D"], pa.large_string())), buffer)
    assert same(read(buffer.getvalue(), name="m.parquet"), plain)


MUTATED = {
    "m.csv": LONG.encode(),
    "m.jsonl": pd.read_csv(io.StringIO(LONG)).to_json(orient="records", lines=True).encode(),
    "m.csv.gz": gzip.compress(LONG.encode()),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(sorted(MUTATED)))
def test_damaged_bytes_never_crash(data: st.DataObject, name: str, tmp_path: Path) -> None:
    content = bytearray(MUTATED[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.integers(0, 3)):
            case 0:
                del content[at:]
            case 1:
                content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=3))
            case 2:
                content[at:at] = data.draw(st.sampled_from([b'"', b"\n", b"\r", b",", b"\0", b"\xff", b"{", b"9" * 25]))
            case _:
                del content[at : at + data.draw(st.integers(1, 30))]
    path = tmp_path / name
    path.write_bytes(bytes(content))
    sentence, blocks = "", []
    try:
        blocks = list(read_measurements(path, LAYOUT))
    except ValueError as error:
        sentence = str(error)
    if not blocks:
        assert sentence.startswith(f"measurement file {path}: ")
        assert "\n" not in sentence
    else:
        found = Recording.concatenate(blocks)
        seen = found.measurements
        assert np.isfinite(seen.toa_ns).all()
        assert (seen.toa_sigma_ns[seen.toa_present] > 0).all()
        assert np.abs(seen.toa_ns).max(initial=0) <= 1e9
        assert seen.signal_present.any(1).all()
        assert found.refused["reason"].str.len().gt(0).all()


def test_a_line_without_end_is_one_refused_row(read: Read) -> None:
    """Also one that is longer than a piece of a file, or that would be a row if it were shorter."""
    good = [f"{i},{TIME_NS + i},A,5,50,-90" for i in range(4)]
    for long in ("x" * 9_000_000, f"{'9' * 1_500_000},{TIME_NS},A,5,50,-90"):
        found = read(rows(*good[:2], long, *good[2:]))
        assert found.transmission_id.tolist() == list("0123")
        assert found.refused[["line", "reason"]].to_numpy().tolist() == [[4, LONG_LINE]]
    objects = [
        json.dumps({"id": str(i), "time": TIME_NS, "gateway": "A", "rssi": -90, "x": "y" * n})
        for i, n in ((0, 1), (1, 10**6))
    ]
    found = read("\n".join(objects), name="m.jsonl")
    assert found.transmission_id.tolist() == ["0"]
    assert found.reasons.to_dict() == {LONG_LINE: 1}


DAMAGED = {
    'x"{id},{time},A,5,50,-90': sources.BAD_QUOTES,
    "{id},{time},A": sources.OTHER_FIELDS,
    "{id},{time},A,5,50,-90,": sources.OTHER_FIELDS,
    "\0\0\0\0": sources.OTHER_FIELDS,
    ",{time},A,5,50,-90": refusals.NO_ID,
    "{id},{time},Nowhere,5,50,-90": refusals.UNKNOWN_RECEIVER,
    "{id},{time},M\udcfcnchen,5,50,-90": refusals.NO_UTF8,
    "{id},{time},A,5,-1,-90": refusals.LIMITS["toa_sigma_ns"][2],
    "{id},{time},A,5,50,#REF!": refusals.NO_NUMBER,
    "{id},1.7e18,A,5,50,-90": refusals.NO_TIME_TEXT,
}


def test_ten_thousand_damaged_rows_are_counted_and_the_others_are_the_same_to_the_bit(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triangulation_pipeline.formats.lines.CHUNK_BYTES", 50_000)
    rng = np.random.default_rng(3)
    good = [
        f"{i},{TIME_NS + i},{receiver},{toa}.25,50,-90"
        for i, toas in enumerate(rng.integers(0, 250_000, (5_000, 2)))
        for receiver, toa in zip(("A", "B hill"), toas, strict=True)
    ]
    kinds = rng.integers(0, len(DAMAGED), 10_000)
    damaged = [list(DAMAGED)[kind].format(id=at // 2, time=TIME_NS + at // 2) for at, kind in enumerate(kinds)]
    mixed = [row for pair in zip(good, damaged, strict=True) for row in pair]
    found = read(rows(*mixed).encode(errors="surrogateescape"))
    assert same(found, read(rows(*good)), silence=False)
    expected: dict[str, int] = {}
    for kind, count in enumerate(np.bincount(kinds)):
        reason = list(DAMAGED.values())[kind]
        expected[reason] = expected.get(reason, 0) + int(count)
    assert found.reasons.to_dict() == expected
    assert sorted(found.refused["line"]) == list(range(3, 20_003, 2))


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triangulation_pipeline.formats.lines.CHUNK_BYTES", 100_000)
    monkeypatch.setattr(measurement_file, "WINDOW_LINES", 500)

    def peak(transmissions: int) -> int:
        path = tmp_path / "m.csv"
        with path.open("w") as file:
            file.write(HEADER + "\n")
            file.writelines(f"{i},{TIME_NS + i},A,5,50,-90\n" for i in range(transmissions))
        pa.default_memory_pool().release_unused()
        tracemalloc.start()
        count, most = 0, 0
        for block in read_measurements(path, LAYOUT):
            count += len(block)
            most = max(most, pa.total_allocated_bytes())
        size = tracemalloc.get_traced_memory()[1] + most
        tracemalloc.stop()
        assert count == transmissions
        return size

    assert peak(60_000) < 1.3 * peak(10_000)


def test_reading_begins_before_the_end_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triangulation_pipeline.formats.lines.CHUNK_BYTES", 10_000)
    monkeypatch.setattr(measurement_file, "WINDOW_LINES", 20)
    packed = gzip.compress(rows(*(f"{i},{TIME_NS + i},A,5,50,-90" for i in range(2000))).encode())
    path = tmp_path / "m.csv.gz"
    path.write_bytes(packed[:-200])
    blocks = read_measurements(path, LAYOUT)
    assert next(blocks).transmission_id[0] == "0"
    assert [reason for block in blocks for reason in block.refused["reason"]] == [CUT_OFF]


@pytest.fixture
def impatient() -> Iterator[None]:
    """Ends a test that waits for a row which never comes."""

    def give_up(*_: object) -> None:
        raise TimeoutError("nothing was given within 30 s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_live_transmission_is_given_when_the_next_begins(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.FileIO(reading))))
    frame = pd.read_csv(io.StringIO(LONG), dtype=str)

    def write(row: int, transmission: str) -> None:
        one = frame.iloc[[row]].assign(transmission_id=transmission)
        text = one.to_csv(index=False, header=row == 0) if kind == "csv" else one.to_json(orient="records", lines=True)
        os.write(writing, text.encode())

    blocks = read_measurements("-", LAYOUT, file_format=kind, live=True)
    write(0, "t1")
    write(1, "t1")
    write(2, "t2")
    first = next(blocks)
    assert first.transmission_id.tolist() == ["t1"]
    assert first.measurements.signal_present.sum() == 2
    write(4, "t3")
    assert next(blocks).transmission_id.tolist() == ["t2"]
    write(3, "t1")
    os.close(writing)
    assert next(blocks).transmission_id.tolist() == ["t3"]
    (last,) = blocks
    assert len(last) == 0
    assert last.reasons.to_dict() == {refusals.APART: 1}


def test_parquet_is_not_live() -> None:
    with pytest.raises(ValueError, match="standard input: Parquet cannot be read while it is written"):
        read_measurements("-", LAYOUT, file_format="parquet", live=True)


def test_another_network_has_other_sites(read: Read) -> None:
    turned = NETWORK.model_copy(update={"sites": NETWORK.sites[::-1]})
    found, other = read(LONG), read(LONG, layout=Layout(turned, LAYOUT.scenario))
    np.testing.assert_array_equal(other.measurements.toa_ns, found.measurements.toa_ns[:, ::-1])
    assert other.receivers == found.receivers[::-1]
