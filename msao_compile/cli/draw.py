"""Results on stdout: lines, streamed words and tables, by Rich on a terminal and as plain aligned text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from msao_compile.cli.talk import is_terminal, printable

COLOURS = {
    "run": "yellow",
    "reuse": "green",
    "deferred": "cyan",
    "here": "green",
    "ahead of time": "green",
    "device": "cyan",
    "refused": "bold red",
    "PASS": "green",
    "FAIL": "bold red",
    "AMBIGUOUS": "yellow",
    "ok": "green",
    "missing": "yellow",
    "DAMAGED": "bold red",
}


@dataclass(frozen=True)
class Sheet:
    """A table that is ready to be drawn; `numbers` are the columns that stand to the right."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()


def line(text: str) -> None:
    """One line of a result."""
    print(printable(text), flush=True)


def words(text: str) -> None:
    """A piece of a streamed answer, untouched where a program reads it."""
    print(printable(text) if is_terminal(sys.stdout) else text, end="", flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: AbstractSet[int] = frozenset()) -> None:
    """A table; `numbers` are the columns that stand to the right, and the first column is coloured by its word."""
    clean = [[printable(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        _rich_table(headers, clean, numbers)
    else:
        for text in aligned(headers, clean, numbers):
            print(text)
        sys.stdout.flush()


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: AbstractSet[int]) -> list[str]:
    """The lines of a table without colours or wrapping: two blanks between columns."""
    everything = [headers, *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(headers))]

    def laid(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [laid(row) for row in everything]


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: AbstractSet[int]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, header in enumerate(headers):
        drawn.add_column(header, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        first, *rest = row
        drawn.add_row(Text(first, style=COLOURS.get(first, "")), *rest)
    Console(highlight=False, markup=False).print(drawn)
