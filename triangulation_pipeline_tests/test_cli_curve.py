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


def test_what_lies_behind_the_last_epoch_is_not_drawn() -> None:
    """However far it lies: the line to it would be drawn point by point."""
    assert curve({1: 9.0, 2: 3.0, 10**30: 1.0}, 2, 20, 2) == curve({1: 9.0, 2: 3.0}, 2, 20, 2)
    assert curve({5: 1.0}, 4, 20, 2) == []
