"""The curve in the terminal, point by point."""

from triangulation_pipeline.cli.curve import curve


def test_a_falling_line() -> None:
    assert curve({1: 1000.0, 8: 10.0}, 8, width=11, height=2) == ["1,000 ┤⠑⢄⠀⠀", "   10 ┤⠀⠀⠑⢄"]


def test_the_right_is_left_free_for_what_is_to_come() -> None:
    top, bottom = curve({1: 100.0, 2: 10.0}, 5, width=15, height=2)
    assert len(top) == len(bottom) == 15
    assert set(top[9:]) | set(bottom[9:]) == {"⠀"}


def test_one_value_and_none() -> None:
    assert curve({}, 5, 40, 8) == []
    lines = curve({3: 64.5}, 3, 40, 8)
    assert len(lines) == 8
    assert sum(character not in " │┤⠀0123456789" for line in lines for character in line) == 1
