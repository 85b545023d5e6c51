from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from triangulation_pipeline.validation import (
    brief,
    expanded,
    one_sentence,
    printable,
    refuse_booleans,
    shown,
    uuid_text,
    without_controls,
)


class Level(BaseModel):
    power_dbm: float


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("45,1", "'45,1'"),
        (True, "True"),
        (None, "None"),
        ({"password": "hunter2"}, "a mapping"),
        (["hunter2"], "a list of 1"),
        (("hunter2", "x"), "a list of 2"),
        ({"hunter2"}, "a list of 1"),
        (frozenset({"hunter2"}), "a list of 1"),
        (b"ab", "b'ab'"),
        (-0.5, "-0.5"),
        (10**5000 % 10**200, "0"),
        ("a\x1b[2J\nb\u202ec", "'a\\x1b[2J\\nb\\u202ec'"),
    ],
)
def test_a_value_is_shown_on_one_line_and_containers_keep_their_content(value: object, text: str) -> None:
    assert shown(value) == text


def test_of_a_long_value_its_beginning_is_shown() -> None:
    text = shown("x" * 570_000)
    assert text == f"'{'x' * 60}'... (570,000 characters)"
    assert shown("x" * 60) == f"'{'x' * 60}'"
    assert shown("x" * 61) == f"'{'x' * 60}'... (61 characters)"
    assert shown(b"x" * 61) == f"b'{'x' * 60}'... (61 characters)"
    assert shown(7**200) == f"{str(7**200)[:60]}..."
    assert shown(10**119) == str(10**119)
    assert shown(10**120) == f"{str(10**120)[:60]}..."


def test_what_is_not_printable_is_written_as_its_code() -> None:
    assert printable("Genève, 東\t\x07\u2028\u200b\U000e0001") == "Genève, 東\\t\\x07\\u2028\\u200b\\U000e0001"


def test_foreign_words_are_told_on_one_line_and_briefly() -> None:
    assert brief("  no such\n\ttable:  x\x1b[2J ") == "no such table: x\\x1b[2J"
    assert brief("x" * 300) == "x" * 300
    assert brief("x" * 301) == "x" * 300 + "..."
    assert brief("x y\n" * 1_000_000, 10) == "x y x y x ..."


def test_a_path_is_written_out_or_its_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert expanded("~/a b") == Path("/home/ann/a b")
    assert expanded(Path("a/~")) == Path("a/~")
    with pytest.raises(ValueError, match=r"^'~no-such-user/x': there is no user of that name$"):
        expanded("~no-such-user/x")


class Nested(BaseModel):
    name: str
    levels: list[Level]

    @field_validator("name")
    @classmethod
    def _is_short(cls, name: str) -> str:
        if len(name) > 3:
            raise ValueError("must be short")
        return name


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"name": "a", "levels": [{}]}, "levels.0.power_dbm: Field required"),
        ({"name": "secret", "levels": []}, "name: must be short"),
        ({"name": "a", "levels": 7}, "levels: Input should be a valid list (got 7)"),
        (7, "Input should be a valid dictionary or instance of Nested"),
        (
            {"name": 1, "levels": 7},
            "name: Input should be a valid string (got 1); levels: Input should be a valid list (got 7)",
        ),
        (
            {"name": "a", "levels": [{}] * 5},
            "; ".join(f"levels.{i}.power_dbm: Field required" for i in range(5)),
        ),
        (
            {"name": "a", "levels": [{}] * 6},
            "; ".join(f"levels.{i}.power_dbm: Field required" for i in range(5)) + "; and 1 more",
        ),
    ],
    ids=range(7),
)
def test_a_fault_is_told_by_its_place_and_what_would_be_right(document: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Nested.model_validate(document)
    assert one_sentence(caught.value) == sentence


def test_of_a_long_place_the_beginning_is_told() -> None:
    with pytest.raises(ValidationError) as caught:
        Level.model_validate({"power_dbm": 1, "x" * 100: 7}, extra="forbid")
    assert one_sentence(caught.value) == f"{'x' * 60}: this key is not known (got 7)"


@pytest.mark.parametrize(
    "character", ["\n", "\x1b", "\x7f", "\u202e", "\u200b", "\u2028", "\u2029", "\ud800"], ids=ascii
)
def test_characters_that_control_are_refused_and_their_place_is_told(character: str) -> None:
    for place, text in ((1, f"{character}a"), (3, f"ab{character}")):
        with pytest.raises(ValueError, match=r"^must not hold control characters, has ") as caught:
            without_controls(text)
        assert str(caught.value).endswith(f"has {printable(character)} in place {place}")


def test_letters_of_all_scripts_and_their_joiners_are_taken() -> None:
    for text in ("", "a b", "東京", "e\u0301", "a\u200cb", "a\u200db", "\u00a0"):
        assert without_controls(text) == text


@pytest.mark.parametrize("value", [True, False, [1, True], (False,)])
def test_true_and_false_are_no_settings(value: object) -> None:
    with pytest.raises(ValueError, match=r"^power_dbm: must be a number or a text, not true or false$"):
        refuse_booleans({"name": "a", "power_dbm": value})
    with pytest.raises(ValueError, match=rf"^{'x' * 60}: must be a number"):
        refuse_booleans({"x" * 100: value})


@pytest.mark.parametrize("values", [{"a": 1, "b": "true", "c": [0, 1], "d": None}, "text", None, [True]])
def test_what_holds_neither_true_nor_false_is_left_as_it_is(values: object) -> None:
    assert refuse_booleans(values) is values


def test_a_hundred_faults_are_a_short_sentence() -> None:
    document = {f"field {i}\x1b]0;title\x07": "secret" * 10_000 for i in range(100)}
    with pytest.raises(ValidationError) as caught:
        Level.model_validate(document | {"power_dbm": "loud"}, extra="forbid")
    sentence = one_sentence(caught.value)
    assert sentence.startswith("power_dbm: Input should be a valid number, unable to parse string as a number")
    assert len(sentence) < 1000
    assert sentence.isprintable()
    assert sentence.endswith("and 96 more")


def test_uuids_are_canonical() -> None:
    assert uuid_text("id", "0000000000000000000000000000000A") == "00000000-0000-0000-0000-00000000000a"
    with pytest.raises(ValueError, match="job_id must be a UUID of 36 characters, got '5599c1'"):
        uuid_text("job_id", "5599c1")


def test_what_stands_in_place_of_a_uuid_is_not_shown() -> None:
    for value in ("wJalrXUtnFEMI/K7MDENG", "seven", "a" * 37, 7, None, ["5599"], b"5599"):
        with pytest.raises(ValueError, match=r"got something else$"):
            uuid_text("job_id", value)
