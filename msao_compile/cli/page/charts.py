"""The geometry of bar charts: values in, positions out of 1000 across; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH = 1000.0
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
TICKS = 5
MOST_LABELS = 6
THINNEST = 3.0
"""A value above zero stays visible."""


@dataclass(frozen=True)
class Part:
    """A piece of a bar as it is given; `colour` is a number of the style sheet's palette."""

    name: str
    value: float
    text: str
    colour: int
    hatched: bool = False


@dataclass(frozen=True)
class Entry:
    """A bar as it is given: a label with a smaller note, what the number says, and its pieces."""

    label: str
    note: str
    value: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Segment:
    """A piece of a bar with its place."""

    x: float
    width: float
    part: Part


@dataclass(frozen=True)
class Bar:
    """A bar with its pieces in place, and a sentence that says the same."""

    label: str
    note: str
    value: str
    segments: tuple[Segment, ...]
    sentence: str


@dataclass(frozen=True)
class Tick:
    """A mark of the axis, `percent` across."""

    percent: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A bar chart; `legend` holds one piece for each name, in the order of their first appearance."""

    name: str
    caption: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    legend: tuple[Part, ...]


def linear(name: str, caption: str, entries: Sequence[Entry], tick_text: Callable[[float], str]) -> Chart:
    """Stacked bars from zero on an even scale; the scale ends at a round number."""
    longest = max((sum(part.value for part in entry.parts) for entry in entries), default=0.0)
    step = round_step(longest / TICKS)
    limit = max(math.ceil(longest / step - 1e-9), 1) * step
    marks = [step * index for index in range(round(limit / step) + 1)]
    ticks = tuple(Tick(100 * mark / limit, tick_text(mark)) for mark in marks)
    bars = tuple(_bar(entry, _stacked(entry.parts, limit)) for entry in entries)
    return Chart(name, caption, bars, ticks, _legend(entries))


def logarithmic(name: str, caption: str, entries: Sequence[Entry], tick_text: Callable[[float], str]) -> Chart:
    """Bars of one piece on a scale where each step is ten times the one before; zero has no bar."""
    values = [entry.parts[0].value for entry in entries if entry.parts[0].value > 0]
    low = math.floor(math.log10(min(values) * 0.999)) if values else 0
    high = max(math.ceil(math.log10(max(values))), low + 1) if values else 1
    every = math.ceil((high - low) / MOST_LABELS)
    marks = range(low, high + 1)
    ticks = tuple(
        Tick(100 * (mark - low) / (high - low), tick_text(10.0**mark) if (high - mark) % every == 0 else "")
        for mark in marks
    )
    bars = tuple(_bar(entry, _logged(entry.parts[0], low, high)) for entry in entries)
    return Chart(name, caption, bars, ticks, _legend(entries))


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `rough`."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))


def _stacked(parts: Iterable[Part], limit: float) -> Iterable[Segment]:
    x = 0.0
    for part in parts:
        if part.value > 0:
            width = max(WIDTH * part.value / limit, THINNEST)
            yield Segment(x, width, part)
            x += width


def _logged(part: Part, low: int, high: int) -> Iterable[Segment]:
    if part.value > 0:
        width = WIDTH * (math.log10(part.value) - low) / (high - low)
        yield Segment(0.0, max(width, THINNEST), part)


def _bar(entry: Entry, segments: Iterable[Segment]) -> Bar:
    pieces = "; ".join(f"{part.name} {part.text}" for part in entry.parts) if len(entry.parts) > 1 else ""
    about = f"{entry.label}, {entry.note}" if entry.note else entry.label
    sentence = f"{about}: {entry.value}" + (f" ({pieces})" if pieces else "")
    return Bar(entry.label, entry.note, entry.value, tuple(segments), sentence)


def _legend(entries: Iterable[Entry]) -> tuple[Part, ...]:
    found: dict[str, Part] = {}
    for entry in entries:
        for part in entry.parts:
            found.setdefault(part.name, part)
    return tuple(found.values()) if len(found) > 1 else ()
