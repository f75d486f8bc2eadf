"""The geometry of line pictures: points in, places in a picture of 420 x 300 out; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msao_compile.cli.page.charts import round_step

WIDTH, HEIGHT = 420.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 22.0, 12.0, 40.0
"""Room around the points, for the axes and their words."""
TICKS = 4
SMALLEST, LARGEST = 2.0, 9.0
"""Radii of dots: of one sample, and of all."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points as they are given, in order; `colour` is a number of the style sheet's palette.

    `sizes` in [0, 1] make dots of that area; without them the points are joined only. `dashed` is for what is allowed
    or ideal rather than seen.
    """

    name: str
    points: tuple[Point, ...]
    colour: int
    dashed: bool = False
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dot:
    """A point in its place, and what it says."""

    x: float
    y: float
    radius: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """A line in its place."""

    line: Line
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Mark:
    """A mark of an axis at a place along it."""

    place: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A picture of lines; `sentence` says the same in words."""

    name: str
    caption: str
    across: str
    up: str
    lines: tuple[Drawn, ...]
    x_marks: tuple[Mark, ...]
    y_marks: tuple[Mark, ...]
    sentence: str
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Axis:
    """What an axis is called, where it ends, and how its numbers are written; it begins at 0."""

    name: str
    limit: float
    text: Callable[[float], str]


def plot(name: str, caption: str, axes: tuple[Axis, Axis], lines: Sequence[Line], sentence: str) -> Plot:
    """Lines in their places; what lies beyond an axis is drawn at its end."""
    across, up = axes

    def place(point: Point) -> Point:
        x, y = (min(max(value, 0.0), axis.limit) / axis.limit for value, axis in zip(point, axes, strict=True))
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for line in lines:
        places = [place(point) for point in line.points]
        path = " ".join(f"{'M' if not index else 'L'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(places))
        told = [f"{across.text(x)}, {up.text(y)}" for x, y in line.points]
        dots = tuple(
            Dot(x, y, SMALLEST + (LARGEST - SMALLEST) * math.sqrt(min(max(size, 0.0), 1.0)), text)
            for (x, y), size, text in zip(places, line.sizes, told, strict=False)
        )
        drawn.append(Drawn(line, path, dots))
    x_marks = tuple(Mark(place((value, 0.0))[0], across.text(value)) for value in _marks(across))
    y_marks = tuple(Mark(place((0.0, value))[1], up.text(value)) for value in _marks(up))
    return Plot(name, caption, across.name, up.name, tuple(drawn), x_marks, y_marks, sentence)


def round_limit(largest: float) -> float:
    """The round number at which an axis for values up to `largest` ends."""
    step = round_step(largest / TICKS)
    return max(math.ceil(largest / step - 1e-9), 1) * step


def _marks(axis: Axis) -> list[float]:
    step = round_step(axis.limit / TICKS)
    return [step * index for index in range(math.floor(axis.limit / step + 1e-9) + 1)]
