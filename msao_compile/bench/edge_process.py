"""One edge of a check in a process of its own: `load(..., cloud=...)` asked as an application asks it, on the clock."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from msao_compile.bench.paced import SlowedDevice
from msao_compile.bench.policies import policies
from msao_compile.bench.primitives import quiet
from msao_compile.bench.run import Asked
from msao_compile.bench.sides import Edge, Outcome
from msao_compile.errors import MsaoError
from msao_compile.manifest.offload import Primitives, Speculation
from msao_compile.runtime.api import Runtime, load
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.clouds import Clouds
from msao_compile.runtime.views import Question
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.contract import CONTRACT, Hello, write
from msao_compile.runtime.wire.kserve.connect import connect

ROUTES = {"cloud-only": "cloud", "edge-only": "edge", "auto": "auto"}
"""Policies that an application has by the name of a route; the others' own code asks over the application's link."""
HELLOS, PAUSE_S = 40, 0.01


@dataclass(frozen=True)
class EdgeTask:
    """Whom an edge asks, and what.

    `near`: the same cloud without a link's delay. `here`, `there`: times that its policy reckons with. `slowed`: its
    device takes as long as `here` says.
    """

    folder: Path
    cloud: str
    near: str
    questions: tuple[Asked, ...]
    uncounted: int
    here: Primitives
    there: Primitives
    slowed: bool


def main(pipe: Connection, task: EdgeTask) -> None:
    """Answer the parent: `hello` for what a message takes, a policy's name for its outcomes, until the pipe ends.

    Each policy's first questions are asked at once, the rest when the parent says so; faults are told and not raised.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends this process
    edge: _Edge | None = None
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        try:
            edge = edge or _Edge(task)
            if asked == "hello":
                pipe.send(edge.message_ms())
                continue
            answer = edge.asking(asked)
            for one in task.questions[: task.uncounted]:
                answer(one.question)
            pipe.send("ready")
            pipe.recv()
            pipe.send([answer(one.question) for one in task.questions[task.uncounted :]])
        except MsaoError as error:
            pipe.send(error)


class _Edge:
    """A loaded deployment; each policy gets a link and a memory of its own."""

    def __init__(self, task: EdgeTask) -> None:
        self.task = task
        self.runtime: Runtime = load(task.folder, cloud=task.cloud)
        told = self.runtime.deployment
        self.runtime.deployment = told.model_copy(update={"primitives": (task.here, task.there)})
        self.entry: Speculation = told.speculation[0]
        if task.slowed:
            self.runtime.device = SlowedDevice("edge", task.here)

    def asking(self, policy: str) -> Callable[[Question], Outcome]:
        """How a policy asks, with nothing learned yet."""
        runtime, task = self.runtime, self.task
        runtime.close()
        runtime.clouds = Clouds(runtime.deployment, task.cloud, None)
        runtime.clouds.adviser(self.entry)
        if policy in ROUTES and not (task.slowed and policy == "edge-only"):  # which takes no device of ours
            return lambda question: self._routed(question, ROUTES[policy])
        edge = self._side()
        known = policies(runtime.deployment, edge.drafter)[policy]

        async def answer(question: Question) -> Outcome:
            return await known.answer(edge, question)

        return lambda question: bridge().run(answer(question))

    def _side(self) -> Edge:
        """What a policy's code asks with: the runtime's own models, device, link and memory."""
        runtime, entry = self.runtime, self.entry
        assert runtime.clouds is not None  # set above
        model = next(model for model in runtime.deployment.models if model.name == entry.verifier)
        route = next(one for one in runtime.deployment.routes if (one.name, one.task) == ("cloud", entry.task))
        link, adviser = runtime.clouds.link(entry.verifier), runtime.clouds.adviser(entry)
        shell = runtime.engines.shell(model)
        return Edge(runtime.session(entry.drafter), shell, route, runtime.device, link, adviser)

    def _routed(self, question: Question, route: str) -> Outcome:
        """An answer as an application sees it."""
        found, began_s = Outcome(route=route), time.perf_counter()
        pieces = self.runtime.stream(
            question.prompt, question.pictures, question.limit, route=route, task=self.entry.task
        )
        for piece in pieces:
            if piece.answer is None:
                if found.first_ms is None:
                    found.first_ms = (time.perf_counter() - began_s) * 1e3
                continue
            found.total_ms = (time.perf_counter() - began_s) * 1e3
            answer, drafts = piece.answer, piece.answer.drafts or {}
            found.tokens, found.route, found.verified = list(answer.token_ids), answer.route, answer.verified
            found.up_bytes, found.down_bytes = answer.timing.bytes_up, answer.timing.bytes_down
            found.drafted, found.accepted = drafts.get("drafted", 0), drafts.get("accepted", 0)
            found.rejected, found.rounds = drafts.get("rejected", 0), drafts.get("rounds", 0)
        return found

    def message_ms(self) -> float:
        """Half of what a small message and its reply take where no link delays them."""
        link = bridge().run(connect(self.task.near))
        try:
            found = []
            for _ in range(HELLOS):
                time.sleep(PAUSE_S)
                began_s = time.perf_counter()
                bridge().run(_hello(link))
                found.append((time.perf_counter() - began_s) * 1e3)
        finally:
            bridge().run(link.close())
        return quiet(found) / 2


async def _hello(link: Link) -> None:
    async for _ in link.call(write("hello", Hello(contract=CONTRACT)), Traffic()):
        continue
