import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from triangulation_pipeline.documents import file_name, is_name, parse_json, parse_yaml, read_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0250", 250),
        ("045", 45),
        ("08", 8),
        ("-0.5", -0.5),
        ("-.5", -0.5),
        ("1e-3", 0.001),
        ("1e5", 100_000),
        ("1.5e3", 1500.0),
        ("1E+3", 1000),
        ("-2e5", -200_000),
        ("+2e5", 200_000),
        ("9e17", 900_000_000_000_000_000),
        ("1e18", 1e18),  # too large for a whole number of ours
        ("-1e18", -1e18),
        ("1e99", 1e99),
        ("1e-5", 1e-5),
        ("1.0e3", 1000.0),
        ("0x1F", 31),
        ("+7", 7),
        ("false", False),
        (".inf", float("inf")),
        ("-9223372036854775808", -(2**63)),
        ("1:02", "1:02"),
        ("20:24", "20:24"),
        ("yes", "yes"),
        ("no", "no"),
        ("NO", "NO"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("'0250'", "0250"),
        ('"1e5"', "1e5"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: n\nsites: []\nname: m\n", "'name' is written twice, lines 1 and 3"),
        ("ops:\n  a: {config: {}}\nops:\n  b: 1\n", "'ops' is written twice, lines 1 and 3"),
        ("ops:\n  a: {x: 1, x: 1}\n", "'x' is written twice, lines 2 and 2"),
        ("root:$y$SECRET:1:\nroot:$y$SECRET:1:\n", "a key is written twice, lines 1 and 2"),
        ("1: a\n1: b\n", "a key is written twice, lines 1 and 2"),
        ("a: [{lat: -37,829}]", "the name of a field must be a word, got 829; a decimal has a point"),
        ("true: a", "the name of a field must be a word, got True"),
        ("a:\n- {b: [{null: SECRET}]}", "the name of a field must be a word, got None"),
        ("a: 1\n? {b: SECRET}\n: 2\n", "line 2: a key must be a word"),
        ("a: 1\nb: 2\nc: &x SECRET\nd: *x\n", "line 4: aliases (*) are not allowed; write the value itself"),
        ("a: 1\nb: {c: {a: 1, d: 2}, c: SECRET}\n", "'c' is written twice, lines 2 and 2"),
        ("a: 1\nb: !x [SECRET]\n", "line 2: tags (!) are not allowed"),
        ("%TAG ! tag:SECRET,2000:\n---\na: 1\n", "line 2: directives (%) are not allowed"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases (*) are not allowed; write the value itself"),
        ("a: !!python/object/apply:os.system [SECRET]\n", "line 1: tags (!) are not allowed"),
        ("a: !!int 3\n", "line 1: tags (!) are not allowed"),
        ("%YAML 1.1\n---\na: 010\n", "line 2: directives (%) are not allowed"),
        ("a: {<<: {b: 1}}\n", "line 1: merge keys (<<) are not allowed; write the values themselves"),
        ("? [SECRET]\n: 1\n", "line 1: a key must be a word"),
        ("[" * 3000, "line 1: it is nested more than 30 deep"),
        ("{a: " * 3000, "line 1: it is nested more than 30 deep"),
        ("- [1, 2, 3]\n" * 20_000, "the file has more than 20,000 values"),
        ("a: " + "9" * 5000, "line 1, column 4: whole numbers have at most 20 digits"),
        ("a: [SECRET", "line 1, column 11: expected ',' or ']', but got '<stream end>'"),
        ("a: SECRET: b", "mapping values are not allowed here"),
        ("a: 'b' SECRET", "not valid YAML: line 1, column 8: this cannot be read"),
        ("[SECRET]\nkey = SECRET", "not valid YAML: line 2, column 1: this cannot be read"),
        ("a: \x07SECRET", "not valid YAML: it has characters"),
        ("a: 1\n---\nb: SECRET", "but found another document"),
        ("a: *SECRET", "line 1: aliases (*) are not allowed"),
        ("a: !SECRET b", "line 1: tags (!) are not allowed"),
    ],
)
def test_what_is_refused_is_told_by_line_and_never_quoted(text: str, sentence: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_yaml(text)
    told = str(caught.value)
    assert sentence in told
    assert "SECRET" not in told
    assert "\n" not in told
    assert len(told) < 200
    assert time.monotonic() - started < 10


def test_what_is_just_within_the_limits_is_read() -> None:
    assert parse_yaml("[" * 30 + "]" * 30) is not None
    with pytest.raises(ValueError, match=r"^line 1: it is nested more than 30 deep$"):
        parse_yaml("[" * 31 + "]" * 31)
    # The list is a value as well.
    assert len(parse_yaml("[" + "1," * 19_999 + "]")) == 19_999
    # So often in a row one after the other is not deep.
    assert parse_yaml("- [1]\n" * 100) == [[1]] * 100
    assert parse_yaml("- {a: 1}\n" * 100) == [{"a": 1}] * 100


@pytest.mark.parametrize("parse", [lambda text: parse_yaml(f"[{text}]")[0], parse_json], ids=["yaml", "json"])
@pytest.mark.parametrize("digits", ["9" * 20, "-" + "9" * 19])
def test_whole_numbers_have_at_most_20_digits(parse: Any, digits: str) -> None:
    assert parse(digits) == int(digits)
    with pytest.raises(ValueError, match="whole numbers have at most 20 digits"):
        parse(f"{digits}0")


def test_a_key_may_be_written_once_in_each_mapping() -> None:
    text = "a: {x: 1, y: {x: 2}}\nb: [{x: 3}, {x: 4}, [5]]\nc: [a, a]\nd: a\n"
    expected = {"a": {"x": 1, "y": {"x": 2}}, "b": [{"x": 3}, {"x": 4}, [5]], "c": ["a", "a"], "d": "a"}
    assert parse_yaml(text) == expected
    assert parse_json('{"a": {"x": 1}, "b": [{"x": 3}, {"x": 4}]}') == {"a": {"x": 1}, "b": [{"x": 3}, {"x": 4}]}


@pytest.mark.parametrize(("text", "shown"), [("lat", True), ("_a-b c9", True), ("a" * 41, True), ("a" * 42, False)])
def test_a_key_that_looks_like_a_field_may_be_told(text: str, shown: bool) -> None:
    assert is_name(text) is shown
    assert not any(is_name(other) for other in (f"9{text}", f"{text}$", f"{text}\n", "", 7, None))


def test_of_a_long_path_its_end_is_told() -> None:
    assert file_name(Path("a/b\n.yaml")) == "a/b\\n.yaml"
    assert file_name(Path("x" * 200)) == "x" * 200
    assert file_name(Path("y" + "x" * 200)) == "..." + "x" * 200


def test_an_empty_text_is_nothing() -> None:
    assert parse_yaml("") is None
    assert parse_yaml("# only a comment\n") is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1, "a": 2}', "'a' is written twice in one object"),
        ('{"$SECRET": 1, "$SECRET": 2}', "a key is written twice in one object"),
        ('{"a": SECRET}', "line 1, column 7: Expecting value"),
        ('{"a":' * 100_000, "it is nested too deeply"),
        ("9" * 5000, "whole numbers have at most 20 digits"),
    ],
)
def test_bad_json_is_told_by_line_and_never_quoted(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]{1,200}$") as caught:
        parse_json(text)
    assert sentence in str(caught.value)
    assert "SECRET" not in str(caught.value)


def refused(path: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_text(Path(path))
    return str(caught.value)


def test_only_small_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    started = time.monotonic()
    assert refused(pipe) == f"{pipe} is not a regular file"
    with os.fdopen(os.open(pipe, os.O_RDWR | os.O_NONBLOCK), "wb"):  # also where somebody writes to it
        assert refused(pipe) == f"{pipe} is not a regular file"
    assert refused("/dev/zero") == "/dev/zero is not a regular file"
    assert refused(tmp_path) == f"{tmp_path} cannot be read: Is a directory"
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'} does not exist"
    assert refused("a\0b") == "a\\x00b is not the name of a file"
    assert refused("/" + "x" * 5000).endswith("x cannot be read: File name too long")
    assert len(refused("/" + "x" * 5000)) < 300
    large = tmp_path / "large"
    large.write_bytes(b"a" * 1_000_000)
    assert len(read_text(large)) == 1_000_000
    large.write_bytes(b"a" * 1_000_001)
    assert refused(large) == f"{large} is larger than 1 MB, the most that is read"
    assert time.monotonic() - started < 10
    assert threading.active_count() < 50


def test_text_is_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffé".encode())
    assert read_text(path) == "é"
    path.write_bytes("né".encode("latin-1"))
    assert refused(path) == f"{path} cannot be read: byte 2 is not UTF-8 text"
