"""Why nothing fits, and the smallest changes that make something fit: memory, a dtype that is not allowed, links."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msao_compile.place.choice import Choice
from msao_compile.place.instance import ONLY, Instance
from msao_compile.place.latency import Copies, used_bytes
from msao_compile.place.milp import Program, solve
from msao_compile.place.problem import Ask, Problem, problem_of

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


@dataclass(frozen=True)
class Change:
    """What has to be different, all of it at once: bytes added to devices, links added, dtypes allowed, or modules that
    need seconds on some device.
    """

    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    runs_nowhere: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As JSON holds it, without what does not change."""
        found: dict[str, Any] = {
            "memory_bytes": dict(self.memory_bytes), "links": [list(pair) for pair in self.links],
            "dtypes": dict(self.dtypes), "runs_nowhere": list(self.runs_nowhere),
        }  # fmt: skip
        return {name: value for name, value in found.items() if value}

    def sentence(self, first: bool = True) -> str:
        """In words; a change that is not the first is another way."""
        parts = []
        if self.memory_bytes:
            needs = " and ".join(f"{_size(size)} more on {name}" for name, size in self.memory_bytes.items())
            parts.append(f"needs {needs}")
        if self.dtypes:
            parts.append("would fit with " + " and ".join(f"{name} at {kind}" for name, kind in self.dtypes.items()))
        if self.links:
            ways = [f"from {start} to {end}" for start, end in self.links]
            parts.append(" and ".join(f"no link {way}" if first else f"would fit with a link {way}" for way in ways))
        if self.runs_nowhere:
            parts.append(f"no device can run {', '.join(self.runs_nowhere)}: give seconds on one")
        return " and ".join(parts)


def _size(size_bytes: float) -> str:
    """Rounded up: so much is enough."""
    for unit, one in UNITS:
        if size_bytes >= one:
            return f"{math.ceil(size_bytes / one * 10) / 10:.1f} {unit}"
    return f"{math.ceil(size_bytes)} bytes"


class Relaxed:
    """The program of what a placement is, without its latency, in which some rules may be bought off."""

    def __init__(self, problem: Problem, memory: bool, links: bool) -> None:
        self.problem, self.program = problem, Program()
        self.spare = {device: self.program.column() for device in range(len(problem.room))} if memory else {}
        self.choice = Choice(self.program, problem, 1, self.spare)
        self.bought: dict[tuple[int, int], int] = {}
        self.may_buy = links
        for number, ask in enumerate(problem.asks):
            self._reached(number, ask)

    def one_device(self) -> None:
        """Memory is added to one device at most."""
        enough = math.fsum(max((one.memory_bytes for one in held), default=0.0) for held in self.problem.options)
        switches = {device: self.program.switch() for device in self.spare}
        for device, column in self.spare.items():
            most = enough / self.choice.unit
            self.program.row({column: 1.0, switches[device]: -most}, upper=0.0)
        self.program.row(dict.fromkeys(switches.values(), 1.0), upper=1.0)

    def cheapest(self, costs: Mapping[int, float], limit_s: float) -> Mapping[int, float] | None:
        """The values of a solution of least cost; None where there is none, or none was found in time."""
        for column, cost in costs.items():
            self.program.costs[column] = cost
        ended = solve(self.program, limit_s)
        return None if ended.values is None else dict(enumerate(ended.values))

    def _reached(self, number: int, ask: Ask) -> None:
        last = len(ask.slots) - 1
        source = next(device for device, name in enumerate(self.problem.device_names)
                      if name == self.problem.instance.requests[number].source)  # fmt: skip
        for place in range(last + 1):
            waits = ask.reply if place == last else ask.arrivals[place]
            for option, column in self.choice.options(number, place):
                if math.isinf(waits[option.device]):
                    self._needs({column: 1.0}, 0.0, (source, option.device))
        for place in range(last):
            table = self.problem.features[ask.slots[place]]
            ends = self.choice.on_device(number, last)
            for start, terms in self.choice.on_device(number, place).items():
                for end in ends:
                    if math.isinf(table[start][end]):
                        self._needs({**terms, **ends[end]}, 1.0, (start, end))

    def _needs(self, terms: dict[int, float], without: float, link: tuple[int, int]) -> None:
        pair = (min(link), max(link))
        if self.may_buy:
            if pair not in self.bought:
                self.bought[pair] = self.program.switch()
            terms = {**terms, self.bought[pair]: -1.0}
        self.program.row(terms, upper=without)


def smallest(problem: Problem, limit_s: float) -> tuple[Change, ...]:
    """Changes of which each alone makes a problem feasible, the one that a reader should take first in front.

    Memory of one device, of several, a dtype for a module, links; where none of them is enough, links and memory.

    Raises:
        MissingTool: HiGHS is not installed.
    """
    names = problem.module_names
    nowhere = tuple(name for name, options in zip(names, problem.options, strict=True) if not options)
    if nowhere:
        return (Change(runs_nowhere=nowhere),)
    found = [_memory(problem, limit_s), *_dtypes(problem, limit_s), _links(problem, limit_s)]
    changes = tuple(change for change in found if change is not None)
    if len(changes) > 1 and len(changes[-1].links) > 1:  # with another way at hand, nobody lays several cables
        changes = changes[:-1]
    return changes or tuple(change for change in [_links_and_memory(problem, limit_s)] if change is not None)


def _memory(problem: Problem, limit_s: float) -> Change | None:
    model = Relaxed(problem, memory=True, links=False)
    model.one_device()
    costs = dict.fromkeys(model.spare.values(), 1.0)
    values = model.cheapest(costs, limit_s)
    if values is None:
        model = Relaxed(problem, memory=True, links=False)
        values = model.cheapest(dict.fromkeys(model.spare.values(), 1.0), limit_s)
    return None if values is None else Change(memory_bytes=_missing(problem, model.choice.read(values)))


def _missing(problem: Problem, copies: Copies) -> dict[str, float]:
    """What copies take beyond what devices have."""
    return {
        name: used - room
        for name, used, room in zip(problem.device_names, used_bytes(problem, copies), problem.room, strict=True)
        if used > room
    }


def _dtypes(problem: Problem, limit_s: float) -> list[Change]:
    """One dtype for one module that its file knows and does not allow; the first that is enough, if any."""
    for module in problem.instance.modules:
        refused = [dtype for dtype in module.memory_bytes if dtype not in module.dtypes and dtype != ONLY]
        for dtype in sorted(refused, key=lambda name: -module.memory_bytes[name]):
            wider = problem_of(allowing(problem.instance, {module.name: dtype}))
            if Relaxed(wider, memory=False, links=False).cheapest({}, limit_s) is not None:
                return [Change(dtypes={module.name: dtype})]
    return []


def allowing(instance: Instance, dtypes: Mapping[str, str]) -> Instance:
    """An instance in which these modules may be of these dtypes as well."""
    modules = tuple(
        module.model_copy(update={"allowed": (*module.dtypes, dtypes[module.name])})
        if module.name in dtypes else module
        for module in instance.modules
    )  # fmt: skip
    return instance.model_copy(update={"modules": modules})


def _links(problem: Problem, limit_s: float) -> Change | None:
    model = Relaxed(problem, memory=False, links=True)
    if not model.bought:
        return None
    values = model.cheapest(dict.fromkeys(model.bought.values(), 1.0), limit_s)
    return None if values is None else Change(links=_bought(problem, model, values))


def _bought(problem: Problem, model: Relaxed, values: Mapping[int, float]) -> tuple[tuple[str, str], ...]:
    return _named(problem, (pair for pair, column in model.bought.items() if values[column] > 0.5))


def _named(problem: Problem, pairs: Iterable[tuple[int, int]]) -> tuple[tuple[str, str], ...]:
    return tuple((problem.device_names[start], problem.device_names[end]) for start, end in sorted(pairs))


def _links_and_memory(problem: Problem, limit_s: float) -> Change | None:
    """The fewest links that are enough with any memory, then the least memory beside so many links."""
    first = Relaxed(problem, memory=True, links=True)
    fewest = first.cheapest(dict.fromkeys(first.bought.values(), 1.0), limit_s)
    if fewest is None:
        return None
    count = round(sum(fewest[column] for column in first.bought.values()))
    model = Relaxed(problem, memory=True, links=True)
    model.program.row(dict.fromkeys(model.bought.values(), 1.0), upper=float(count))
    values = model.cheapest(dict.fromkeys(model.spare.values(), 1.0), limit_s)
    if values is None:
        return None
    return Change(memory_bytes=_missing(problem, model.choice.read(values)), links=_bought(problem, model, values))
