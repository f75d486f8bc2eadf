"""Emulated links: rate, delay, jitter, loss, outages and traces, for messages of a link or the bytes of a proxy."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from msao_compile.errors import MissingTool
from msao_compile.manifest.frozen import Frozen
from msao_compile.runtime.device import loop_ms
from msao_compile.runtime.wire.base import Handler, Traffic
from msao_compile.runtime.wire.contract import LAST, PICTURE, raise_fault
from msao_compile.runtime.wire.message import Message, pack, unpack

PACKET = 1448
"""Bytes of a TCP segment on Ethernet."""
LEAST_RESEND_MS = 200.0
"""TCP's smallest wait before it sends again (RFC 6298 allows 1 s, Linux takes 200 ms)."""
LINK_ID = "0123456789abcdef"
"""As long as that of a real link, whose requests are counted from the handshake on."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Outage(Frozen):
    """Nothing passes for so long."""

    from_ms: NotNegative
    for_ms: Positive


class Rate(Frozen):
    """From a moment on the link is so fast: a trace is a list of these."""

    from_ms: NotNegative
    mbps: Positive


class Shape(Frozen):
    """One link, the same both ways; `loss` is a packet's chance to be lost."""

    mbps: Positive
    rtt_ms: NotNegative
    jitter_ms: NotNegative = 0.0
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0
    outages: tuple[Outage, ...] = ()
    trace: tuple[Rate, ...] = ()

    def rate_at(self, now_ms: float) -> float:
        """Bits per millisecond at a moment."""
        past = [entry for entry in self.trace if entry.from_ms <= now_ms]
        return (max(past, key=lambda entry: entry.from_ms).mbps if past else self.mbps) * 1e3

    def opens_at(self, now_ms: float) -> float:
        """The first moment from `now_ms` on at which something passes."""
        for outage in sorted(self.outages, key=lambda one: one.from_ms):
            if outage.from_ms <= now_ms < outage.from_ms + outage.for_ms:
                now_ms = outage.from_ms + outage.for_ms
        return now_ms

    def sent_at(self, size_bytes: int, now_ms: float) -> float:
        """When the last of so many bytes has left, the first of which leaves at `now_ms` at the earliest."""
        bits, now_ms = 8.0 * size_bytes, self.opens_at(now_ms)
        changes = sorted([one.from_ms for one in self.outages] + [entry.from_ms for entry in self.trace])
        for change_ms in changes:
            if change_ms <= now_ms:
                continue  # it is past, or an outage lasted beyond it
            passed = (change_ms - now_ms) * self.rate_at(now_ms)
            if bits <= passed:
                break
            bits, now_ms = bits - passed, self.opens_at(change_ms)
        return now_ms + bits / self.rate_at(now_ms)


@dataclass
class Lane:
    """One direction: what is sent waits for what was sent before it, and arrives in order, as on one TCP connection."""

    shape: Shape
    chance: np.random.Generator
    free_ms: float = 0.0
    last_ms: float = 0.0

    def arrival_ms(self, size_bytes: int, now_ms: float) -> float:
        """When the last byte of so many is there."""
        shape = self.shape
        self.free_ms = shape.sent_at(size_bytes, max(now_ms, self.free_ms))
        late_ms = shape.rtt_ms / 2 + abs(self.chance.normal(0.0, shape.jitter_ms) if shape.jitter_ms else 0.0)
        if shape.loss:
            packets = max(math.ceil(size_bytes / PACKET), 1)
            lost, resent = self.chance.binomial(packets, shape.loss), 0
            while lost:
                resent, lost = resent + 1, self.chance.binomial(lost, shape.loss)
            late_ms += resent * max(shape.rtt_ms, LEAST_RESEND_MS if packets < 4 else 0.0)
        self.last_ms = max(self.last_ms, self.free_ms + late_ms)
        return self.last_ms


@dataclass
class ShapedLink:
    """A link to a handler in this process, as slow as its shape says, in the running loop's time.

    A message counts as many bytes as it has over gRPC, and takes `message_ms` longer than those: what gRPC, threads and
    event loops of both sides take. `picture_bytes`: what a picture counts on the wire instead of its own size, so that
    small pictures stand for those of a real data set. Emulated, and to be told so.
    """

    handle: Handler
    shape: Shape
    seed: int = 0
    picture_bytes: int | None = None
    message_ms: float = 0.0
    model: str = "cloud"
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _up: Lane = field(init=False)
    _down: Lane = field(init=False)

    def __post_init__(self) -> None:
        self._up = Lane(self.shape, np.random.default_rng([self.seed, 0]))
        self._down = Lane(self.shape, np.random.default_rng([self.seed, 1]))

    async def call(self, message: Message, traffic: Traffic) -> AsyncIterator[Message]:
        """Send one request and give its replies as they arrive; as `base.Link.call`."""
        sent, name = pack(message), f"{LINK_ID}-{next(self._count)}"
        size = weight(message, self.model, name) + self._padding(message)
        traffic.up += size
        await _until(self._up.arrival_ms(size, loop_ms()) + self.message_ms)
        arrived: asyncio.Queue[tuple[float, int, bytes] | None] = asyncio.Queue()

        async def serve() -> None:
            index = 0
            try:
                async for reply in self.handle(unpack(sent)):
                    size = weight(reply, self.model, name, index)
                    arrives_ms = self._down.arrival_ms(size, loop_ms()) + self.message_ms
                    arrived.put_nowait((arrives_ms, size, pack(reply)))
                    index += 1
            finally:
                arrived.put_nowait(None)

        task = asyncio.ensure_future(serve())
        try:
            while (item := await arrived.get()) is not None:
                await _until(item[0])
                traffic.down += item[1]
                reply = unpack(item[2])
                raise_fault(reply)
                yield reply
        finally:
            task.cancel()

    def _padding(self, message: Message) -> int:
        pictures = [value.nbytes for name, value in message.tensors.items() if name.startswith(PICTURE)]
        return 0 if self.picture_bytes is None else sum(self.picture_bytes - size for size in pictures)

    async def close(self) -> None:
        """Nothing is held."""


def weight(message: Message, model: str, request_id: str, index: int | None = None) -> int:
    """Bytes over gRPC of a request to a model, or of the reply of this index to one.

    Raises:
        MissingTool: tritonclient is not installed.
    """
    try:
        from msao_compile.runtime.wire.kserve import codec
    except ModuleNotFoundError as error:
        raise MissingTool(f"{error.name} is not installed: pip install 'msao-compile[remote]'") from error
    if index is None:
        return int(codec.encode_request(message, model, request_id).ByteSize())
    return int(codec.encode_reply(message, model, request_id, index, message.kind in LAST).ByteSize())


async def _until(moment_ms: float) -> None:
    left_ms = moment_ms - loop_ms()
    if left_ms > 0:
        await asyncio.sleep(left_ms / 1e3)
