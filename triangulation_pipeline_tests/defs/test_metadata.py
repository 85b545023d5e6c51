"""Values as Dagster shows them."""

import base64

import pytest

from triangulation_pipeline.defs.metadata import drop_none, epoch_table, picture, plotted, rounded, table


def test_a_table_has_the_rows_in_order() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert [record.data for record in table(rows).records] == rows


def test_a_picture_is_its_bytes_in_place() -> None:
    content = b"\x89PNG and more"
    shown = str(picture(content, "a map").value)
    assert shown.startswith("![a map](data:image/png;base64,")
    assert shown.endswith(")")
    assert base64.b64decode(shown.partition("base64,")[2][:-1], validate=True) == content


def test_an_entry_of_none_is_left_out() -> None:
    assert drop_none({"a": 0, "b": None, "c": ""}) == {"a": 0, "c": ""}


def test_numbers_are_rounded_to_five_digits_and_nothing_else_is() -> None:
    assert rounded({"a": 123.456789, "b": 0.000123456789, "c": 1234567, "d": "1.23456789", "e": None}) == {
        "a": 123.46,
        "b": 0.00012346,
        "c": 1234567,
        "d": "1.23456789",
        "e": None,
    }


@pytest.mark.parametrize(
    ("count", "name", "epochs"),
    [
        (1, "epochs", [1]),
        (500, "epochs", list(range(1, 501))),
        (501, "epochs_every_2", list(range(1, 502, 2))),
        (1000, "epochs_every_2", list(range(2, 1001, 2))),
        (1001, "epochs_every_3", list(range(2, 1002, 3))),
    ],
)
def test_of_very_many_epochs_some_are_shown_and_the_last(count: int, name: str, epochs: list[int]) -> None:
    ((shown, value),) = epoch_table([{"epoch": epoch} for epoch in range(1, count + 1)]).items()
    assert shown == name
    assert [record.data["epoch"] for record in value.records] == epochs


def test_a_number_that_dagster_draws_is_one_of_the_headline() -> None:
    numbers = {
        "test_rmse_good_geom_m": 1.0,
        "test_p50_good_geom_m": 2.0,
        "test_p95_good_geom_m": 3.0,
        "test_coverage_95_good_geom": None,
        "huber_gauss_newton_p95_good_geom_m": 5.0,
        "crlb_rms_good_geom_m": 6.0,
        "test_rmse_m": 7.0,
    }
    assert plotted(numbers | {"another": 8.0}) == numbers
