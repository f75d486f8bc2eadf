"""Many clients ask one real cloud process for long, over gRPC: `python -m tests.soak_processes --deployment DIR`.

The cloud is `serve --role cloud` behind a proxy. By a seed it is killed (-9) and started again on its port, stopped and
let go on (SIGSTOP, SIGCONT), and the link has outages and is cut. Each client shows a token of its own. Answers are
drafted or streamed, greedy or drawn; some clients leave in the middle, and some let the edge finish, visibly. Whatever
counts as verified has to be the verifier's own, token for token. At the end no request may run, every session has to
make room, and the memory of the last process, which lives for the last third, has to be flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from msao_compile.bench.proxy import Proxy
from msao_compile.bench.shape import Outage, Shape
from msao_compile.errors import RemoteError
from msao_compile.runtime import load
from msao_compile.runtime.remote import Patience
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire.base import Link
from msao_compile.runtime.wire.kserve.connect import connect
from msao_compile.runtime.wire.kserve.options import LinkOptions
from tests import asking
from tests.soak import LEAVES, LIMIT, SAMPLINGS, Question, growth_mib, questions

STRICT = Patience(tries=10_000, wait_ms=50.0, longest_ms=500.0, stall_ms=4000, silence_ms=4000.0, quiet_ms=120_000.0)
FALLS_BACK = Patience(tries=4, wait_ms=50.0, stall_ms=1000, silence_ms=1000.0, quiet_ms=1500.0)
FALLS, EVERY_S, KILLS = 0.15, 7.0, 0.25
"""The share of answers that the edge may finish, the mean time between faults, and the share of those that kill."""
LINK = {"mbps": 200.0, "rtt_ms": 2.0, "jitter_ms": 1.0}
IDLE_S = 11.0
"""A little longer than a cloud keeps a session whose client is silent."""


@dataclass
class Server:
    """`serve --role cloud` on ports that stay the same, however often it is started."""

    deployment: Path
    folder: Path
    sessions: int
    tokens: list[str]
    ports: tuple[int, int] = (0, 0)
    lives: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it takes requests."""
        tokens = self.folder / "tokens"
        tokens.write_text("\n".join(self.tokens))
        words = [
            sys.executable, "-m", "msao_compile", "serve", self.deployment, "--role", "cloud", "--port", self.ports[0],
            "--http-port", self.ports[1], "--sessions", self.sessions, "--token-file", tokens, "--json",
        ]  # fmt: skip
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.ports = told["port"], told["http_port"]
        self.lives += 1

    def send(self, number: int) -> None:
        """A signal to the process that lives now."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Without a warning."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def memory_mib(self) -> float:
        """What the process holds now."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def metrics(self) -> dict[str, float]:
        """What `/metrics` tells, by name; of a name with labels the sum."""
        headers = {"Authorization": f"Bearer {self.tokens[0]}"}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.ports[1]}/metrics", headers=headers)
        with urllib.request.urlopen(asked, timeout=10) as reply:
            page = reply.read().decode()
        found: Counter[str] = Counter()
        for name, value in re.findall(r"^(\w+)(?:{.*})? (\S+)$", page, re.MULTILINE):
            found[name] += float(value)
        return dict(found)

    def faults_logged(self) -> list[str]:
        """What its processes logged as an error."""
        return [line for line in (self.folder / "log").read_text().splitlines() if '"level": "error"' in line]


@dataclass
class Soak:
    """What is asked, and what came of it."""

    edge: ModelSession
    cloud: ModelSession
    questions: list[Question]
    server: Server
    proxy: Proxy
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    """Of the process that lives now."""

    async def run(self, seconds: float) -> None:
        """Ask until the time is over, and do harm meanwhile."""
        links = [await self.link(token) for token in self.server.tokens]
        end_s = time.perf_counter() + seconds
        harm = [asyncio.ensure_future(self._harm(seconds)), asyncio.ensure_future(self._watch())]
        await asyncio.gather(
            *(self._client(link, Random(f"{self.seed}/{one}"), end_s) for one, link in enumerate(links))
        )
        for task in harm:
            task.cancel()
        for found in await asyncio.gather(*harm, return_exceptions=True):
            if isinstance(found, Exception):
                raise found
        self.server.send(signal.SIGCONT)
        for link in links:
            await link.close()

    async def link(self, token: str) -> Link:
        """A connection through the proxy."""
        return await connect(f"grpc://127.0.0.1:{self.proxy.port}", LinkOptions(token=token, connect_s=10.0))

    async def _harm(self, seconds: float) -> None:
        chance, began_s = Random(f"{self.seed}/harm"), time.perf_counter()
        while True:
            await asyncio.sleep(chance.expovariate(1 / EVERY_S))
            draw, lasts_s = chance.random(), chance.uniform(0.1, 5.0)
            if draw < KILLS:
                if time.perf_counter() - began_s < seconds * 2 / 3:
                    await self._killed()
            elif draw < 0.7:
                self.done["stopped"] += 1
                self.server.send(signal.SIGSTOP)
                try:
                    await asyncio.sleep(lasts_s)
                finally:
                    self.server.send(signal.SIGCONT)
            else:
                self.done["cut"] += 1
                self.proxy.cut()

    async def _killed(self) -> None:
        self.done["killed"] += 1
        self.server.kill()
        self.memory_mib = []
        await asyncio.to_thread(self.server.start)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if self.server.process is not None and self.server.process.poll() is None:
                self.memory_mib.append(self.server.memory_mib())

    async def _client(self, link: Link, chance: Random, end_s: float) -> None:
        while time.perf_counter() < end_s:
            asked = asyncio.ensure_future(self._ask(link, chance))
            if chance.random() < LEAVES:
                await asyncio.wait([asked], timeout=chance.random() * 0.1)
                asked.cancel()
            await asyncio.wait([asked])
            self.done["requests"] += 1
            self.done["left"] += asked.cancelled()
            error = None if asked.cancelled() else asked.exception()
            if isinstance(error, RemoteError):
                self.done[f"typed_errors_{error.code}"] += 1
            elif error is not None:
                raise error

    async def _ask(self, link: Link, chance: Random) -> None:
        question, temperature = chance.choice(self.questions), chance.choice(SAMPLINGS)
        sampling = SamplingParameters(temperature=temperature, seed=7)
        message = asking.opening(self.cloud, question.prompt, LIMIT, sampling, "gumbel" if temperature else "greedy")
        if chance.random() < 0.25:
            kind, found = "streamed", await asking.Asker(self.edge, link, STRICT).streamed(message)
        else:
            falls = chance.random() < FALLS
            patience = FALLS_BACK if falls else STRICT
            plan = asking.plan_for(
                self.edge, chance.choice((1, 4, 8)), LIMIT, rounds=chance.choice((1, 4)), burst=chance.choice((0, 2)),
                unverified=falls, patience=patience,
            )  # fmt: skip
            asker = asking.Asker(self.edge, link, patience)
            kind, found = "drafted", await asker.drafted(message, question.request, plan, sampling)
        self._judge(kind, question, temperature, found)

    def _judge(self, kind: str, question: Question, temperature: float, found: asking.Asked) -> None:
        """All of an answer is the verifier's own, or all but what is told to be unverified."""
        own, unverified = question.own[temperature], found.account.unverified
        verified = found.tokens[: len(found.tokens) - unverified]
        right = verified == (own[: len(verified)] if unverified else own)
        self.done[kind] += 1
        self.done["finished_by_the_edge"] += bool(unverified)
        self.done["opened_again"] += found.remote.reopened
        self.done["tokens"] += len(found.tokens)
        if not right:
            self.wrong.append(f"{question.prompt!r} at {temperature}: {found.tokens}, {unverified} unverified")

    async def leaked(self) -> tuple[int, dict[str, float]]:
        """Sessions that make no room for others, or that nobody can close; and what `/metrics` tells then."""
        await asyncio.sleep(IDLE_S)
        link, free = await self.link(self.server.tokens[0]), 0
        opened = []
        for _ in range(self.server.sessions):
            message = asking.opening(self.cloud, self.questions[0].prompt, LIMIT, SamplingParameters(), "greedy")
            remote = asking.RemoteSession(link, message, asking.Clock(), asking.Traffic(), Patience(tries=1))
            try:
                async for _ in remote.open():
                    free += 1
                opened.append(remote)
            except RemoteError as error:
                self.done[f"no_room_{error.code}"] += 1
        for remote in opened:
            await remote._close(remote.name)
        await link.close()
        told = await asyncio.to_thread(self.server.metrics)
        return self.server.sessions - free + int(told["msao_cloud_sessions"]), told


def outages(seconds: float, seed: int) -> Iterator[Outage]:
    """Half a second to three seconds in which nothing crosses, every half a minute or so."""
    chance, at_s = Random(f"{seed}/outages"), 0.0
    while (at_s := at_s + chance.expovariate(1 / 30.0)) < seconds:
        yield Outage(from_ms=at_s * 1e3, for_ms=chance.uniform(500.0, 3000.0))


async def soaked(server: Server, seconds: float, seed: int) -> dict[str, object]:
    """What came of it."""
    runtime = load(server.deployment)
    edge, cloud = runtime.session("edge"), runtime.session("cloud")
    asked = questions(edge, cloud)
    gaps = tuple(outages(seconds, seed))
    server.start()
    proxy = Proxy(("127.0.0.1", server.ports[0]), Shape(**LINK, outages=gaps), seed=seed)
    await proxy.start()
    soak, start_s = Soak(edge, cloud, asked, server, proxy, seed), time.perf_counter()
    try:
        await soak.run(seconds)
        took_s = time.perf_counter() - start_s
        memory_mib = soak.memory_mib
        leaked, told = await soak.leaked()
    finally:
        await proxy.close()
        server.kill()
    grown_mib, flat = growth_mib(memory_mib)
    logged, names = server.faults_logged(), ("requests_active", "cloud_work_waiting", "cloud_sessions")
    at_end = {name: told[f"msao_{name}"] for name in names}
    typed = sum(count for name, count in soak.done.items() if name.startswith("typed_errors"))
    return {
        "seconds": round(took_s, 1), "clients": len(server.tokens), "seed": seed, **soak.done, "outages": len(gaps),
        "clouds": server.lives, "wrong": soak.wrong[:5], "wrong_answers": len(soak.wrong), "typed_errors": typed,
        "leaked_sessions": leaked, "metrics_at_end": at_end, "errors_logged": logged[:3],
        "memory_mib": [round(one) for one in memory_mib[::10]], "grown_mib": round(grown_mib, 1), "flat": flat,
        "passed": not soak.wrong and not leaked and not any(at_end.values()) and flat and not typed and not logged,
    }  # fmt: skip


def main() -> int:
    """Soak, tell what came of it as JSON, and fail where anything was wrong."""
    parser = argparse.ArgumentParser(prog="tests.soak_processes", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deployment", type=Path, required=True, help="a pair `edge` and `cloud`")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        tokens = [secrets.token_hex(16) for _ in range(given.clients)]
        server = Server(given.deployment, Path(folder), 2 * given.clients, tokens)
        told = asyncio.run(soaked(server, given.seconds, given.seed))
    text = json.dumps(told, indent=1)
    if given.json is not None:
        given.json.write_text(text + "\n")
    print(text)
    return 0 if told["passed"] else 5


if __name__ == "__main__":
    sys.exit(main())
