"""Many clients ask one cloud for long while everything goes wrong: `python -m tests.soak --seconds 600 --clients 8`.

Answers are drafted or streamed, greedy or drawn, and some clients leave in the middle. Each answer has to be the
verifier's own, token for token; at the end no session may be left that cannot make room, no task, and no memory. In
process for now: the link loses, doubles, delays and stalls, and the cloud forgets sessions and starts anew.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np

from calibration.shapes.dataset import samples
from msao_compile.errors import RemoteError
from msao_compile.runtime import load
from msao_compile.runtime.cloud.service import CloudService
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession, Request
from msao_compile.runtime.wire.base import Link
from msao_compile.runtime.wire.faulty import Faults, FaultyLink
from msao_compile.runtime.wire.loopback import Loopback
from tests import asking, tiny

FAULTS = Faults(
    late_ms=3.0, lost_before=0.02, lost_after=0.02, sent_twice=0.03, told_twice=0.05, forgotten=0.02, stalled=0.005,
    stall_ms=100.0, restarted=0.0005,
)  # fmt: skip
PROMPTS, LIMIT, LEAVES = 48, 20, 0.05
IDLE_MS = 500.0
FLAT_MIB, FLAT_SHARE = 16.0, 0.03
SAMPLINGS = (0.0, 1.0)


@dataclass
class Question:
    """A prompt as both sides see it, and what the verifier alone says, by temperature."""

    prompt: str
    request: Request
    own: dict[float, list[int]]


@dataclass
class Soak:
    """What is asked, and what came of it."""

    edge: ModelSession
    cloud: ModelSession
    questions: list[Question]
    clients: int
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    services: list[CloudService] = field(default_factory=list)

    def start(self) -> Link:
        """A cloud that knows nothing; the one before it is gone."""
        self.services = [asking.cloud(self.cloud, sessions=2 * self.clients, idle_ms=IDLE_MS)]
        self.done["clouds"] += 1
        return Loopback(self.services[0].handle)

    async def run(self, seconds: float) -> FaultyLink:
        """Ask until the time is over."""
        link = FaultyLink(self.start(), FAULTS, self.seed, self.start)
        asker = asking.Asker(self.edge, link)
        end = time.perf_counter() + seconds
        watch = asyncio.ensure_future(self._watch())
        await asyncio.gather(*(self._client(asker, Random(f"{self.seed}/{one}"), end) for one in range(self.clients)))
        watch.cancel()
        await asyncio.wait([watch])
        return link

    async def _watch(self) -> None:
        while True:
            self.memory_mib.append(held_mib())
            await asyncio.sleep(0.5)

    async def _client(self, asker: asking.Asker, chance: Random, end: float) -> None:
        while time.perf_counter() < end:
            asked = asyncio.ensure_future(self._ask(asker, chance))
            if chance.random() < LEAVES:
                await asyncio.wait([asked], timeout=chance.random() * 0.05)
                asked.cancel()
                await asyncio.wait([asked])
                self.done["left"] += asked.cancelled()
            else:
                await asyncio.wait([asked])
            self._note(asked)

    def _note(self, asked: asyncio.Future[None]) -> None:
        self.done["requests"] += 1
        error = None if asked.cancelled() else asked.exception()
        if isinstance(error, RemoteError):
            self.done["typed_errors"] += 1
        elif error is not None:
            raise error

    async def _ask(self, asker: asking.Asker, chance: Random) -> None:
        question, seed = chance.choice(self.questions), 7
        temperature = chance.choice(SAMPLINGS)
        sampling = SamplingParameters(temperature=temperature, seed=seed)
        message = asking.opening(self.cloud, question.prompt, LIMIT, sampling, "gumbel" if temperature else "greedy")
        if chance.random() < 0.25:
            kind, found = "streamed", await asker.streamed(message)
        else:
            drafts, rounds, burst = chance.choice((1, 4, 8)), chance.choice((1, 4)), chance.choice((0, 2))
            plan = asking.plan_for(self.edge, drafts, LIMIT, rounds=rounds, burst=burst)
            kind, found = "drafted", await asker.drafted(message, question.request, plan, sampling)
        self.done[kind] += 1
        self.done["opened_again"] += found.remote.reopened
        self.done["accepted"] += found.account.accepted
        self.done["tokens"] += len(found.tokens)
        if found.tokens != question.own[temperature]:
            self.wrong.append(f"{question.prompt!r} at {temperature}: {found.tokens}")

    async def leaked(self) -> int:
        """Sessions that nobody asks for any more and that still make no room."""
        await asyncio.sleep(2 * IDLE_MS / 1e3)
        asker = asking.Asker(self.edge, Loopback(self.services[0].handle), asking.Patience(tries=1))
        rows, free = 2 * self.clients, 0
        for index in range(rows):
            message = asking.opening(self.cloud, self.questions[0].prompt, LIMIT, SamplingParameters(), "greedy")
            remote = asking.RemoteSession(asker.link, message, asking.Clock(), asking.Traffic(), asker.patience)
            try:
                async for _ in remote.open():
                    free += 1
            except RemoteError:
                self.done["no_room"] += index >= 0
        return rows - free


def questions(edge: ModelSession, cloud: ModelSession) -> list[Question]:
    """Prompts of a few words, or held-out questions without a picture for the pair that was trained on them."""
    found = []
    if cloud.model.family == "tiny":
        prompts = [tiny.prompt(index) for index in range(PROMPTS)]
    else:
        prompts = [row.question for row in samples("heldout", 10 * PROMPTS) if not row.needs_picture][:PROMPTS]
    ways = [SamplingParameters(temperature=temperature, seed=7) for temperature in SAMPLINGS]
    for prompt in prompts:
        own = asking.alone(cloud, cloud.prepare(prompt, ()), LIMIT, ways)
        request = edge.prepare(prompt, ())
        found.append(Question(prompt, request, dict(zip(SAMPLINGS, own, strict=True))))
    return found


def held_mib() -> float:
    """What this process holds once what waits for the collector, and what the allocator keeps for later, is given back:
    clouds that are gone leave cycles, and their pieces lie between those of others.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth_mib(memory_mib: list[float]) -> tuple[float, bool]:
    """How much more the last quarter holds than the second, and whether that is flat."""
    quarter = max(len(memory_mib) // 4, 1)
    before, after = np.mean(memory_mib[quarter : 2 * quarter]), np.mean(memory_mib[-quarter:])
    return float(after - before), bool(after - before <= max(FLAT_MIB, FLAT_SHARE * before))


def main() -> int:
    """Soak, tell what came of it as JSON, and fail where anything was wrong."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deployment", type=Path, help="a pair `edge` and `cloud`; without it, tiny models")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        if given.deployment is None:
            edge, cloud = tiny.session(Path(folder) / "edge", "edge", shaken=0.12), tiny.session(Path(folder) / "cloud")
        else:
            runtime = load(given.deployment)
            edge, cloud = runtime.session("edge"), runtime.session("cloud")
        told = asyncio.run(_soaked(Soak(edge, cloud, questions(edge, cloud), given.clients, given.seed), given.seconds))
    text = json.dumps(told, indent=1)
    if given.json is not None:
        given.json.write_text(text + "\n")
    print(text)
    return 0 if told["passed"] else 5


async def _soaked(soak: Soak, seconds: float) -> dict[str, object]:
    start = time.perf_counter()
    link = await soak.run(seconds)
    took_s = time.perf_counter() - start
    leaked = await soak.leaked()
    gc.collect()
    tasks = len(asyncio.all_tasks()) - 1
    grown_mib, flat = growth_mib(soak.memory_mib)
    return {
        "seconds": round(took_s, 1), "clients": soak.clients, "seed": soak.seed, **soak.done,
        "faults": dict(link.seen), "wrong": soak.wrong[:5], "wrong_answers": len(soak.wrong),
        "leaked_sessions": leaked, "leaked_tasks": tasks, "memory_mib": [round(one) for one in soak.memory_mib[::20]],
        "grown_mib": round(grown_mib, 1), "flat": flat,
        "passed": not soak.wrong and not leaked and not tasks and flat and not soak.done["typed_errors"],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
