"""What work takes on this machine, as the code that ships does it: questions are answered and every piece is timed."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from msao_compile.bench.paced import lasting
from msao_compile.bench.run import Asked, Pair
from msao_compile.bench.sides import Edge, from_cloud, from_edge, speculated
from msao_compile.manifest.offload import Line, Primitives
from msao_compile.runtime.adviser import Adviser
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.device import Device, Work
from msao_compile.runtime.views import plain
from msao_compile.runtime.wire.loopback import Loopback

T = TypeVar("T")
ROUNDS = 5
"""Of all questions; a first one more is not counted."""
QUIET = 25
"""Of the times that the same took at different moments, this percentile counts: others on a machine only add."""


@dataclass(frozen=True)
class Piece:
    """A piece of work: so much of a kind, what it took, and how much later its caller heard of it.

    `place` tells the same piece in every round: its question, the way of asking, and its number there.
    """

    place: tuple[object, ...]
    kind: Work
    count: int
    spent_ms: float
    turn_ms: float = 0.0


class TimedDevice(Device):
    """A device that remembers each piece of work, each of which takes as long as `times` say, where they are given."""

    def __init__(self, name: str, times: Primitives | None = None) -> None:
        super().__init__(name)
        self.pieces: list[Piece] = []
        self.times = times
        self.asked: tuple[object, ...] = ()
        self._seen: Counter[tuple[object, ...]] = Counter()

    def begin(self, *asked: object) -> None:
        """From now on work is for this question, asked in this way."""
        self.asked, self._seen = asked, Counter()

    async def run(self, kind: Work, count: int, work: Callable[[], T]) -> T:
        """As `Device.run`."""
        spent_ms = 0.0

        def timed() -> T:
            nonlocal spent_ms
            began_s = time.perf_counter()
            try:
                return work() if self.times is None else lasting(self.times, kind, count, work)
            finally:
                spent_ms = (time.perf_counter() - began_s) * 1e3

        began_s = time.perf_counter()
        found = await super().run(kind, count, timed)
        self._seen[kind, count] += 1
        place, passed_ms = (*self.asked, self._seen[kind, count]), (time.perf_counter() - began_s) * 1e3
        self.pieces.append(Piece(place, kind, count, spent_ms, passed_ms - spent_ms))
        return found


@dataclass
class _Bench:
    """Both sides in this process, with nothing between them."""

    pair: Pair
    sessions: int
    here: TimedDevice
    there: TimedDevice
    turns_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = CloudLimits(sessions=max(2 * self.sessions, 4))
        self.service = CloudService(self.pair.verifier, limits, self.there)

    def edge(self) -> Edge:
        """A new edge, which has learned nothing."""
        pair = self.pair
        adviser = Adviser(pair.settings, pair.here, pair.there)
        return Edge(pair.drafter, pair.verifier, pair.route, self.here, Loopback(self.service.handle), adviser)

    async def ask(self, questions: Sequence[Asked]) -> None:
        """Each by the cloud, by the edge, and drafted one round at a time."""
        for index, asked in enumerate(questions):
            self._begin(index, "cloud")
            before = len(self.there.pieces)
            found = await from_cloud(self.edge(), asked.question)
            steps = [piece.spent_ms for piece in self.there.pieces[before:] if piece.kind == "decode"]
            if found.first_ms is not None and steps:
                self.turns_ms.append((found.total_ms - found.first_ms - sum(steps)) / len(steps))
            edge = self.edge()
            self._begin(index, "edge")
            await from_edge(edge, asked.question)
            self._begin(index, "drafted")
            plan = replace(edge.plan(asked.question, "speculate"), rounds=1, burst=0, rest=0, goes_on=None)
            await speculated(edge, plain(asked.question), plan)

    async def ask_together(self, questions: Sequence[Asked]) -> None:
        """As many at once as there are sessions."""
        self._begin("together")
        many = [questions[index % len(questions)].question for index in range(self.sessions)]
        await asyncio.gather(*(from_cloud(self.edge(), question) for question in many))

    def _begin(self, *asked: object) -> None:
        self.here.begin(*asked)
        self.there.begin(*asked)

    def forget(self) -> None:
        """What was timed so far is not counted."""
        self.here.pieces, self.there.pieces, self.turns_ms = [], [], []

    def close(self) -> None:
        """Give the devices' threads back."""
        self.here.close()
        self.there.close()


def measured(pair: Pair, questions: Sequence[Asked], sessions: int) -> tuple[Primitives, Primitives]:
    """Times of both sides' work, by the questions given, `sessions` of them at once where there are several edges."""
    bench = _Bench(pair, sessions, TimedDevice("edge"), TimedDevice("cloud"))
    bridge().run(bench.ask(questions))
    bench.forget()
    for _ in range(ROUNDS):
        bridge().run(bench.ask(questions))
        if sessions > 1:
            bridge().run(bench.ask_together(questions))
    bench.close()
    here = _primitives(pair.here.model, bench.here.pieces, "draft")
    return here, _primitives(pair.there.model, bench.there.pieces, "decode")


def turns_ms(pair: Pair, questions: Sequence[Asked], slowed: bool) -> tuple[float, float]:
    """How long after a piece of work the next can begin, at the edge and in the cloud.

    `slowed`: where work takes as long as the pair says, and so leaves the cores to others meanwhile.
    """
    here, there = (TimedDevice(times.model, times if slowed else None) for times in (pair.here, pair.there))
    bench = _Bench(pair, 1, here, there)
    bridge().run(bench.ask(questions))
    bench.close()
    edge = [piece.turn_ms for piece in here.pieces if piece.kind == "draft"]
    return quiet(edge), max(quiet(bench.turns_ms), 0.0)


def quiet(times_ms: Sequence[float]) -> float:
    """What the same takes while nobody disturbs it, of what it took at different moments; of nothing 0."""
    return float(np.percentile(times_ms, QUIET)) if times_ms else 0.0


def undisturbed(pieces: Sequence[Piece]) -> list[Piece]:
    """Each piece once, as it is while nobody disturbs it."""
    rounds: dict[tuple[object, ...], list[Piece]] = {}
    for piece in pieces:
        rounds.setdefault((piece.place, piece.kind, piece.count), []).append(piece)
    return [replace(same[0], spent_ms=quiet([piece.spent_ms for piece in same])) for same in rounds.values()]


def _primitives(model: str, timed: Sequence[Piece], step: Work) -> Primitives:
    pieces = undisturbed(timed)
    decode = line([piece for piece in pieces if piece.kind == step])
    verify = [piece for piece in pieces if piece.kind == "verify"]
    return Primitives(
        model=model,
        prepare=line([piece for piece in pieces if piece.kind == "prepare"]),
        encode=line([piece for piece in pieces if piece.kind == "encode"]),
        prefill=line([piece for piece in pieces if piece.kind == "prefill"]),
        decode=decode,
        verify=line(verify) if verify else decode,
    )


def line(pieces: Sequence[Piece]) -> Line:
    """The line of least squares through what pieces of each count took; it neither falls nor begins below 0.

    Where all are of one count nothing is known of others: the time is the same for all.
    """
    if not pieces:
        return Line(fixed_ms=0.0, each_ms=0.0)
    counts, times = [piece.count for piece in pieces], [piece.spent_ms for piece in pieces]
    mean_ms, mean_count = statistics.fmean(times), statistics.fmean(counts)
    if len(set(counts)) == 1:
        return Line(fixed_ms=mean_ms, each_ms=0.0)
    each_ms = max(float(np.polyfit(counts, times, 1)[0]), 0.0)
    if each_ms * mean_count > mean_ms:
        return Line(fixed_ms=0.0, each_ms=mean_ms / mean_count)
    return Line(fixed_ms=mean_ms - each_ms * mean_count, each_ms=each_ms)
