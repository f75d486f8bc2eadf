"""The part of a program that says what a placement is: copies within memory, and each request's slots on copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from msao_compile.place.latency import Copies
from msao_compile.place.milp import Program
from msao_compile.place.problem import Option, Problem

Spare = Mapping[int, int]
"""By device a column of bytes that it is given beside what it has, in `Choice.unit`s."""


class Choice:
    """Columns for copies and slots.

    `copies[m][o]` is 1 where module m has a copy as its option o. Where each module has one copy, a slot is on the
    copy itself; else each slot has columns of its own, unless `slots` says that they stand elsewhere.
    """

    def __init__(
        self, program: Program, problem: Problem, replicas: int, spare: Spare | None = None, slots: bool = True
    ) -> None:
        self.program, self.problem, self.replicas = program, problem, replicas
        self.copies = [[program.switch() for _ in options] for options in problem.options]
        self._slots: dict[tuple[int, int], list[int]] = {}
        self._place(replicas)
        self.unit = max((option.memory_bytes for held in problem.options for option in held), default=1.0) or 1.0
        self._within_memory(spare or {})
        if replicas > 1 and slots:
            for number, ask in enumerate(problem.asks):
                for place, module in enumerate(ask.slots):
                    self._slots[number, place] = self._own(module)

    def slot(self, number: int, place: int) -> list[int]:
        """Columns by option of a request's slot: which copy it takes."""
        if self.replicas > 1:
            return self._slots[number, place]
        return self.copies[self.problem.asks[number].slots[place]]

    def on_device(self, number: int, place: int) -> dict[int, dict[int, float]]:
        """By device the columns, with 1 each, that put a request's slot there."""
        found: dict[int, dict[int, float]] = defaultdict(dict)
        for option, column in self.options(number, place):
            found[option.device][column] = 1.0
        return found

    def options(self, number: int, place: int) -> list[tuple[Option, int]]:
        """The options of a request's slot, each with its column."""
        module = self.problem.asks[number].slots[place]
        return list(zip(self.problem.options[module], self.slot(number, place), strict=True))

    def read(self, values: Mapping[int, float]) -> Copies:
        """The copies of a solution."""
        return tuple(
            tuple(index for index, column in enumerate(columns) if values[column] > 0.5) for columns in self.copies
        )

    def start(self, copies: Copies, taken: list[tuple[int, ...]]) -> dict[int, float]:
        """The whole columns of a placement in which request q takes the options `taken[q]`."""
        found = {
            column: float(index in held)
            for columns, held in zip(self.copies, copies, strict=True)
            for index, column in enumerate(columns)
        }
        for (number, place), columns in self._slots.items():
            found |= {column: float(index == taken[number][place]) for index, column in enumerate(columns)}
        return found

    def _place(self, replicas: int) -> None:
        for module, columns in enumerate(self.copies):
            self.program.row(dict.fromkeys(columns, 1.0), 1.0, float(replicas))
            on: dict[int, dict[int, float]] = defaultdict(dict)
            for option, column in zip(self.problem.options[module], columns, strict=True):
                on[option.device][column] = 1.0
            for terms in on.values() if replicas > 1 else ():
                if len(terms) > 1:
                    self.program.row(terms, upper=1.0)

    def _within_memory(self, spare: Spare) -> None:
        """Rows in units of the largest copy; what no device holds by itself is ruled out, so that rows stay sharp."""
        for device, room in enumerate(self.problem.room):
            terms: dict[int, float] = {}
            for module, options in enumerate(self.problem.options):
                for option, column in zip(options, self.copies[module], strict=True):
                    if option.device == device:
                        terms[column] = option.memory_bytes / self.unit
                        if option.memory_bytes > room and device not in spare:
                            self.program.upper[column] = 0.0
            if device in spare:
                terms[spare[device]] = -1.0
            if terms:
                self.program.row(terms, upper=room / self.unit)

    def _own(self, module: int) -> list[int]:
        columns = [self.program.switch() for _ in self.copies[module]]
        self.program.row(dict.fromkeys(columns, 1.0), 1.0, 1.0)
        for column, copy in zip(columns, self.copies[module], strict=True):
            self.program.row({column: 1.0, copy: -1.0}, upper=0.0)
        return columns

    def forbid(self, column: int) -> None:
        """Never this column."""
        self.program.upper[column] = 0.0
