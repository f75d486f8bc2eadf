"""A shaped link between real processes: a TCP proxy on this machine that carries bytes as late as a shape says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from msao_compile.bench.shape import PACKET, Lane, Shape

UNDER_WAY = 256
"""Pieces of one connection and direction on their way at once, before its sender has to wait."""
PIECE_MS = 0.5
"""So long a piece is on a fast link, where a loop has no time for each packet."""


@dataclass
class Proxy:
    """Between clients of `port`, known once it started, and a server at `target`; all connections share the link.

    Shapes' times begin at the start. In an outage bytes wait, and where it `cuts`, connections end as it begins.
    """

    target: tuple[str, int]
    shape: Shape
    seed: int = 0
    cuts: bool = False
    port: int = 0
    connections: int = 0
    _pumps: set[asyncio.Task[None]] = field(default_factory=set)
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen on 127.0.0.1, on `port`, or on a free one where it is 0.

        Raises:
            OSError: the port is taken.
        """
        self._up, self._down = (Lane(self.shape, np.random.default_rng([self.seed, way])) for way in (0, 1))
        self._server = await asyncio.start_server(self._let_in, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self._began_s = loop.time()
        self._piece = PACKET * max(int(self.shape.mbps * 1e3 * PIECE_MS / 8 / PACKET), 1)
        cuts = self.shape.outages if self.cuts else ()
        self._cuts = [loop.call_later(outage.from_ms / 1e3, self.cut) for outage in cuts]

    def cut(self) -> None:
        """End every connection at once, whatever is under way."""
        for pump in self._pumps:
            pump.cancel()

    async def close(self) -> None:
        """Let nobody in any more, and end what there is."""
        for cut in self._cuts:
            cut.cancel()
        self._server.close()
        for serving in self._serving:  # also those that are not connected to the other end yet
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:  # nobody is there: the client sees its connection end, as it would without a proxy
            writer.transport.abort()
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        ways = ((reader, far_writer, self._up), (far_reader, writer, self._down))
        pumps = {asyncio.ensure_future(self._pump(*way)) for way in ways}
        self._pumps |= pumps
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)  # where one end is gone, the other has to go
        finally:
            self._pumps -= pumps
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for one in (writer, far_writer):
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lane: Lane) -> None:
        """One direction of one connection, to its end."""
        arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)

        async def read() -> None:
            while data := await reader.read(self._piece):
                await arriving.put((lane.arrival_ms(len(data), self._now_ms()), data))
            await arriving.put((max(lane.last_ms, self._now_ms()), b""))

        async def write() -> None:
            while True:
                arrives_ms, data = await arriving.get()
                await asyncio.sleep(max(arrives_ms - self._now_ms(), 0.0) / 1e3)
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(read())
            both.create_task(write())

    def _now_ms(self) -> float:
        return (asyncio.get_running_loop().time() - self._began_s) * 1e3
