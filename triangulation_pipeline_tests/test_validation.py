import pytest
from pydantic import BaseModel, ValidationError

from triangulation_pipeline.validation import SHOWN_CHARACTERS, one_sentence, shown, uuid_text


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
        (10**5000 % 10**200, "0"),
        ("a\x1b[2J\nb\u202ec", "'a\\x1b[2J\\nb\\u202ec'"),
    ],
)
def test_a_value_is_shown_on_one_line_and_containers_keep_their_content(value: object, text: str) -> None:
    assert shown(value) == text


def test_of_a_long_value_its_beginning_is_shown() -> None:
    text = shown("x" * 570_000)
    assert text == f"'{'x' * SHOWN_CHARACTERS}'... (570,000 characters)"
    assert len(shown(7**200)) < 2 * SHOWN_CHARACTERS


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
    for value in ("wJalrXUtnFEMI/K7MDENG", "seven", 7, None, ["5599"]):
        with pytest.raises(ValueError, match=r"got something else$"):
            uuid_text("job_id", value)
