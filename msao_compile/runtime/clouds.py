"""The clouds a runtime can reach: links that are made when first needed, and what was learned of each."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from msao_compile.errors import LinkDown, RemoteError
from msao_compile.manifest.offload import Line, Primitives, Speculation
from msao_compile.manifest.schema import Deployment
from msao_compile.runtime.adviser import Adviser
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.contract import CONTRACT, Hello, write

if TYPE_CHECKING:
    from msao_compile.runtime.wire.kserve.options import LinkOptions

AGAIN_S = 2.0
"""A cloud that could not be reached is not tried again before."""
EVEN = Line(fixed_ms=1.0, each_ms=0.0)
"""Where nothing was measured: every piece of work takes as long as every other."""


class Clouds:
    """One cloud at an address, and an adviser for each task that speculates with it."""

    def __init__(self, deployment: Deployment, address: str, options: LinkOptions | None) -> None:
        self.deployment, self.address, self.options = deployment, address, options
        self._links: dict[str, Link] = {}
        self._failed: dict[str, tuple[float, RemoteError]] = {}
        self._advisers: dict[str, Adviser] = {}

    def link(self, model: str) -> Link:
        """The connection to where a model is served, made at its first use.

        Raises:
            RemoteError: it cannot be made. InputError, MissingTool: as `connect`.
        """
        if model not in self._links:
            tried_s, error = self._failed.get(model, (-AGAIN_S, None))
            if error is not None and time.perf_counter() - tried_s < AGAIN_S:
                raise error
            self._links[model] = self._connected(model)
        return self._links[model]

    def _connected(self, model: str) -> Link:
        from msao_compile.runtime.wire.kserve.connect import connect
        from msao_compile.runtime.wire.kserve.options import LinkOptions

        try:
            return bridge().run(connect(self.address, replace(self.options or LinkOptions(), model=model)))
        except LinkDown as error:
            self._failed[model] = (time.perf_counter(), error)
            raise

    def adviser(self, entry: Speculation) -> Adviser:
        """What is known of a task's cloud; a new one asks for the round trip first, where the cloud can be reached.

        Raises:
            RemoteError, InputError, MissingTool: as `link`, of anything but a cloud that is away.
        """
        if entry.task not in self._advisers:
            self._advisers[entry.task] = unheard(self.deployment, entry)
        found = self._advisers[entry.task]
        if not found.link.rtt.count:
            try:
                bridge().run(_greeted(self.link(entry.verifier), found))
            except LinkDown:
                found.link.failed(_now_ms())
        return found

    def close(self) -> None:
        """Give the connections back."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            bridge().run(link.close())


def unheard(deployment: Deployment, entry: Speculation) -> Adviser:
    """An adviser that knows what was measured when the deployment was built, and nothing of any link yet."""
    times = {times.model: times for times in deployment.primitives}
    here, there = (times.get(name, _even(name)) for name in (entry.drafter, entry.verifier))
    return Adviser(entry, here, there)


def _even(model: str) -> Primitives:
    return Primitives(model=model, prepare=EVEN, encode=EVEN, prefill=EVEN, decode=EVEN, verify=EVEN)


async def _greeted(link: Link, adviser: Adviser) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(2):  # the first warms the connection up
        began_s = loop.time()
        async for _reply in link.call(write("hello", Hello(contract=CONTRACT)), Traffic()):
            adviser.link.heard(loop.time() * 1e3, (loop.time() - began_s) * 1e3)


def _now_ms() -> float:
    return bridge().loop.time() * 1e3
