"""The geometry of line pictures."""

from __future__ import annotations

import pytest

from msao_compile.cli.page.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Line, plot, round_limit

AXES = (Axis("x", 10.0, lambda value: f"{value:g}"), Axis("y", 1.0, lambda value: f"{value:g}"))


def test_points_stand_in_proportion_between_the_axes() -> None:
    [drawn] = plot("n", "c", AXES, [Line("a", ((0, 0), (5, 0.5), (10, 1)), 1, sizes=(0.0, 0.25, 1.0))], "s").lines
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    assert [(dot.x, dot.y) for dot in drawn.dots] == [
        (left, bottom), pytest.approx(((left + right) / 2, (top + bottom) / 2)), (right, top),
    ]  # fmt: skip
    assert [dot.radius for dot in drawn.dots] == [2.0, 5.5, 9.0]
    assert (
        drawn.path
        == f"M{left:.1f} {bottom:.1f} L{(left + right) / 2:.1f} {(top + bottom) / 2:.1f} L{right:.1f} {top:.1f}"
    )
    assert drawn.dots[1].text == "5, 0.5"


def test_what_lies_beyond_an_axis_is_drawn_at_its_end() -> None:
    [drawn] = plot("n", "c", AXES, [Line("a", ((20, 3), (-1, -1)), 1, sizes=(0.5, 0.5))], "s").lines
    assert [(dot.x, dot.y) for dot in drawn.dots] == [(WIDTH - RIGHT, TOP), (LEFT, HEIGHT - BOTTOM)]


def test_marks_are_round_and_reach_both_ends() -> None:
    found = plot("n", "c", AXES, [], "s")
    assert [mark.text for mark in found.x_marks] == ["0", "2.5", "5", "7.5", "10"]
    assert [mark.text for mark in found.y_marks] == ["0", "0.25", "0.5", "0.75", "1"]
    assert (found.x_marks[0].place, found.x_marks[-1].place) == (LEFT, WIDTH - RIGHT)


@pytest.mark.parametrize(("largest", "limit"), [(0.6, 0.6), (0.03, 0.03), (0.61, 0.8), (0.0, 1.0), (7, 8)])
def test_an_axis_ends_at_a_round_number(largest: float, limit: float) -> None:
    assert round_limit(largest) == pytest.approx(limit)
