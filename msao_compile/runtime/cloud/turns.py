"""Whose turn it is among clients that wait: the one that was given least, counted in tokens of prompts.

Sheng et al. 2024, "Fairness in Serving Large Language Models" (OSDI), algorithm 2: a counter for each client, and one
that comes anew, or again, begins where the least of those that wait is. So nobody saves up turns while away.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Waits(Generic[T]):
    number: int
    price: int
    item: T


@dataclass
class _Line(Generic[T]):
    """One client: what it was given, and what it waits for, the oldest first."""

    given: float
    waits: deque[_Waits[T]] = field(default_factory=deque)


class Turns(Generic[T]):
    """A queue with a line for each client. It forgets what was given when nobody waits."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._least = 0.0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return sum(len(line.waits) for line in self._lines.values())

    def waiting(self, counts: Callable[[T], bool] = lambda item: True) -> dict[str, int]:
        """Of each client, how much waits that `counts`; those of whom nothing does are left out."""
        found = {name: sum(counts(one.item) for one in line.waits) for name, line in self._lines.items()}
        return {name: count for name, count in found.items() if count}

    def add(self, client: str, item: T, price: int) -> None:
        """Put an item at the end of a client's line; `price` tokens are charged for it when its turn comes."""
        line = self._lines.setdefault(client, _Line(self._least))
        line.waits.append(_Waits(next(self._numbers), price, item))

    def take(self) -> T:
        """The next item; of clients that were given as much, that of whoever waits longest.

        Raises:
            IndexError: nobody waits.
        """
        lines = [line for line in self._lines.values() if line.waits]
        if not lines:
            raise IndexError("nobody waits")
        line = min(lines, key=lambda one: (one.given, one.waits[0].number))
        self._least = line.given
        taken = line.waits.popleft()
        line.given += taken.price
        self._forget()
        return taken.item

    def put_out(self, client: str, may: Callable[[T], bool]) -> T | None:
        """Take the newest item of a client that `may` go out of its line; None where none may."""
        line = self._lines[client]
        found = next((one for one in reversed(line.waits) if may(one.item)), None)
        if found is None:
            return None
        line.waits.remove(found)
        return found.item

    def _forget(self) -> None:
        """Drop clients that wait for nothing and were given no more than others: they begin anew where they return."""
        if not len(self):
            self._lines.clear()
            self._least = 0.0
            return
        gone = [name for name, line in self._lines.items() if not line.waits and line.given <= self._least]
        for name in gone:
            del self._lines[name]
