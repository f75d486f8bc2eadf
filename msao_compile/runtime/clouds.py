"""The clouds a runtime can reach: links that are made when first needed, and what was learned of each."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from msao_compile.errors import DeadlineExceeded, InputError, LinkDown, MissingTool, RemoteError
from msao_compile.manifest.offload import Line, Primitives, Speculation
from msao_compile.manifest.schema import Deployment
from msao_compile.runtime.adviser import Adviser
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.policy import DROPPED
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.contract import CONTRACT, Hello, write

if TYPE_CHECKING:
    from msao_compile.runtime.wire.kserve.options import LinkOptions

logger = logging.getLogger(__name__)
AGAIN_S = 2.0
"""A cloud that could not be reached is not tried again before."""
AWAY = (LinkDown, DeadlineExceeded)
"""How a cloud is away: nobody answers, or not in time."""
EVEN = Line(fixed_ms=1.0, each_ms=0.0)
"""Where nothing was measured: every piece of work takes as long as every other."""


class Clouds:
    """One cloud at an address, and an adviser for each task that speculates with it."""

    def __init__(self, deployment: Deployment, address: str, options: LinkOptions | None) -> None:
        self.deployment, self.address, self.options = deployment, address, options
        self._links: dict[str, Link] = {}
        self._failed: dict[str, tuple[float, RemoteError]] = {}
        self._advisers: dict[str, Adviser] = {}
        self._greeting: dict[str, Future[None]] = {}
        self._first = threading.Lock()

    def link(self, model: str) -> Link:
        """The connection to where a model is served, made at its first use.

        Raises:
            RemoteError: it cannot be made. InputError, MissingTool: as `connect`.
        """
        if model not in self._links:
            tried_s, error = self._failed.get(model, (-AGAIN_S, None))
            if error is not None and time.perf_counter() - tried_s < AGAIN_S:
                raise error
            return bridge().run(self._reached(model))
        return self._links[model]

    async def _reached(self, model: str) -> Link:
        from msao_compile.runtime.wire.kserve.connect import connect
        from msao_compile.runtime.wire.kserve.options import LinkOptions

        if model in self._links:
            return self._links[model]
        try:
            made = await connect(self.address, replace(self.options or LinkOptions(), model=model))
        except AWAY as error:
            self._failed[model] = (time.perf_counter(), error)
            raise
        if model in self._links:  # another one was made meanwhile
            await made.close()
        return self._links.setdefault(model, made)

    def adviser(self, entry: Speculation) -> Adviser:
        """What is known of a task's cloud. A new one asks for the round trip first, where the cloud can be reached, and
        whoever asks meanwhile waits for that as well; of a cloud that was away it is asked again from time to time, and
        nobody waits for that.

        Raises:
            RemoteError, InputError, MissingTool: as `link`, of anything but a cloud that is away.
        """
        with self._first:
            if entry.task not in self._advisers:
                self._advisers[entry.task] = unheard(self.deployment, entry)
                try:
                    bridge().run(self._greet(entry))
                except (RemoteError, InputError, MissingTool):
                    del self._advisers[entry.task]  # and so the next who asks is told as well
                    raise
            found = self._advisers[entry.task]
        away = not found.link.rtt.count or found.link.failing.mean > DROPPED
        before = self._greeting.get(entry.task)
        if away and _now_ms() - found.link.heard_ms > AGAIN_S * 1e3 and (before is None or before.done()):
            again = asyncio.run_coroutine_threadsafe(self._greet(entry), bridge().loop)
            again.add_done_callback(_told)
            self._greeting[entry.task] = again
        return found

    async def _greet(self, entry: Speculation) -> None:
        """Ask for the round trip, and count it twice: who came back is counted on again."""
        state, loop = self._advisers[entry.task].link, asyncio.get_running_loop()
        wait_s = 5.0 if self.options is None else self.options.connect_s
        try:
            async with asyncio.timeout(2 * wait_s):
                link = await self._reached(entry.verifier)
                passed_ms = 0.0
                for _ in range(2):  # the first warms the connection up
                    began_s = loop.time()
                    async for _reply in link.call(write("hello", Hello(contract=CONTRACT)), Traffic()):
                        passed_ms = (loop.time() - began_s) * 1e3
        except (*AWAY, TimeoutError):
            state.failed(loop.time() * 1e3)
            return
        for _ in range(2):
            state.heard(loop.time() * 1e3, passed_ms)

    def close(self) -> None:
        """Give the connections back."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            bridge().run(link.close())


def unheard(deployment: Deployment, entry: Speculation) -> Adviser:
    """An adviser that knows what was measured when the deployment was built, and nothing of any link yet."""
    times = {times.model: times for times in deployment.primitives}
    here, there = (times.get(name, _even(name)) for name in (entry.drafter, entry.verifier))
    cuts = [point for point in deployment.partition_points if point.model == entry.verifier]
    sizes = next((point.bytes_per_request.values() for point in cuts), None)  # of a request with a picture, and without
    return Adviser(entry, here, there, float(max(sizes) - min(sizes)) if sizes else 0.0)


def _even(model: str) -> Primitives:
    return Primitives(model=model, prepare=EVEN, encode=EVEN, prefill=EVEN, decode=EVEN, verify=EVEN)


def _told(greeting: Future[None]) -> None:
    """A cloud that came back as another than before is told of."""
    if not greeting.cancelled() and greeting.exception() is not None:
        logger.warning("the cloud cannot be used: %s", greeting.exception())


def _now_ms() -> float:
    return bridge().loop.time() * 1e3
