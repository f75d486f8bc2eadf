"""Emulated links, by arithmetic that is done by hand, and in front of a real cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pairs
import pytest
import tiny
from asking import opening
from pydantic import ValidationError

from msao_compile.bench import virtual
from msao_compile.bench.paced import PacedDevice
from msao_compile.bench.shape import LEAST_RESEND_MS, Lane, Outage, Rate, Shape, ShapedLink
from msao_compile.errors import ContractMismatch
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.kserve.codec import encode_reply, encode_request
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import Message

KILOBYTE_MS = 8.0
"""Of 1,000 bytes at 1 Mbit/s."""


def lane(seed: int = 0, **shape: object) -> Lane:
    given: dict[str, object] = {"mbps": 1.0, "rtt_ms": 20.0, **shape}
    return Lane(Shape.model_validate(given), np.random.default_rng(seed))


def test_bytes_take_their_time_at_the_rate_and_half_a_round_trip() -> None:
    assert lane().arrival_ms(1000, 0.0) == KILOBYTE_MS + 10
    assert lane(mbps=8.0).arrival_ms(1000, 5.0) == 5 + 1 + 10
    assert lane().arrival_ms(0, 5.0) == 15.0


def test_what_is_sent_waits_for_what_was_sent_before() -> None:
    line = lane()
    assert [line.arrival_ms(1000, now_ms) for now_ms in (0.0, 1.0, 50.0)] == [18.0, 26.0, 68.0]


def test_nothing_passes_while_the_link_is_out_not_even_the_rest_of_what_began() -> None:
    outages = (Outage(from_ms=100.0, for_ms=30.0), Outage(from_ms=4.0, for_ms=20.0), Outage(from_ms=20.0, for_ms=10.0))
    assert lane(outages=outages).arrival_ms(1000, 0.0) == 4 + (30 - 4) + 4 + 10
    assert lane(outages=outages).arrival_ms(1000, 25.0) == 30 + KILOBYTE_MS + 10
    assert lane(outages=outages).arrival_ms(1000, 40.0) == 40 + KILOBYTE_MS + 10
    assert lane(outages=outages).arrival_ms(1000, 92.0) == 92 + KILOBYTE_MS + 10


def test_a_trace_changes_the_rate_in_the_middle_of_a_message() -> None:
    trace = (Rate(from_ms=10.0, mbps=0.5), Rate(from_ms=4.0, mbps=2.0))
    assert lane(trace=trace).arrival_ms(1000, 0.0) == 4 + 2 + 10  # 4,000 bits at 1, 4,000 at 2 Mbit/s
    assert lane(trace=trace).arrival_ms(1000, 8.0) == 10 + 8 + 10  # 4,000 bits at 2, 4,000 at 0.5
    assert lane(trace=trace).arrival_ms(1000, 20.0) == 20 + 16 + 10


def test_jitter_delays_and_never_reorders() -> None:
    line, calm = lane(3, jitter_ms=30.0), lane()
    found = [line.arrival_ms(100, index * 5.0) for index in range(200)]
    least = [calm.arrival_ms(100, index * 5.0) for index in range(200)]
    assert found == sorted(found)
    late = np.subtract(found, least)
    assert (late >= 0).all() and 20 < late.mean() < 90
    assert len(set(late.round(6))) > 20


def test_lost_packets_come_again_by_the_seed() -> None:
    def late(seed: int, size_bytes: int, loss: float) -> list[float]:
        return [lane(seed, loss=loss).arrival_ms(size_bytes, 0.0) - lane().arrival_ms(size_bytes, 0.0)
                for seed in range(seed, seed + 50)]  # fmt: skip

    assert late(0, 100, 0.3) == late(0, 100, 0.3) != late(50, 100, 0.3)
    assert set(late(0, 100, 0.0)) == {0.0}
    small, large = late(0, 100, 0.3), late(0, 100_000, 0.3)
    assert set(small) > {0.0, LEAST_RESEND_MS}  # alone, a packet is missed by nobody but a timer
    assert min(large) >= 20.0 and all(value % 20 == pytest.approx(0, abs=1e-6) for value in large)
    assert sum(value > 0 for value in small) == pytest.approx(0.3 * 50, abs=10)


@pytest.mark.parametrize(
    "wrong",
    [{"mbps": 0.0}, {"mbps": -1.0}, {"mbps": float("inf")}, {"rtt_ms": -1.0}, {"loss": 1.0}, {"loss": -0.1},
     {"jitter_ms": -1.0}, {"speed": 1.0}, {"outages": [{"from_ms": 1.0, "for_ms": 0.0}]}],
)  # fmt: skip
def test_no_link_is_of_such_a_shape(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Shape.model_validate({"mbps": 1.0, "rtt_ms": 1.0, **wrong})


def cloud(verifier: ModelSession) -> CloudService:
    return CloudService(verifier, CloudLimits(sessions=2), PacedDevice("cloud", pairs.times("cloud", 0.0, 0.0, 0.0)))


async def heard(link: Link, message: Message) -> tuple[list[Message], Traffic]:
    traffic = Traffic()
    return [reply async for reply in link.call(message, traffic)], traffic


def streamed(verifier: ModelSession, limit: int = 12) -> Message:
    message = opening(verifier, tiny.prompt(0), limit, SamplingParameters(), "greedy")
    return Message("prefill", {**message.fields, "session": "session-1", "stream": limit})


def test_a_shaped_link_says_what_a_loopback_says_and_counts_bytes_as_grpc_does(verifier: ModelSession) -> None:
    def ids(replies: list[Message]) -> list[object]:
        return [reply.fields.get("id") for reply in replies]

    async def straight() -> tuple[list[Message], Traffic]:
        return await heard(Loopback(cloud(verifier).handle), streamed(verifier))

    async def shaped() -> tuple[list[Message], Traffic, float]:
        link = ShapedLink(cloud(verifier).handle, Shape(mbps=0.1, rtt_ms=50.0, jitter_ms=9.0, loss=0.1))
        replies, traffic = await heard(link, streamed(verifier))
        return replies, traffic, asyncio.get_running_loop().time() * 1e3

    told, traffic = asyncio.run(straight())
    found, seen, passed_ms = virtual.run(shaped())
    assert ids(found) == ids(told) and len(found) > 5
    request = encode_request(streamed(verifier), "cloud", "0123456789abcdef-1")
    assert seen.up == request.ByteSize() > traffic.up
    replies = [encode_reply(reply, "cloud", request.id, index, index + 1 == len(found))
               for index, reply in enumerate(found)]  # fmt: skip
    assert seen.down == sum(reply.ByteSize() for reply in replies)
    assert passed_ms > 50 + 8 * (seen.up + seen.down) / 100 * 0.99


def test_pictures_may_count_as_others_would() -> None:
    async def none(message: Message) -> AsyncIterator[Message]:
        return
        yield message

    async def sent(picture_bytes: int | None) -> tuple[int, float]:
        link = ShapedLink(none, Shape(mbps=1.0, rtt_ms=0.0), picture_bytes=picture_bytes)
        _, traffic = await heard(link, Message("prefill", {}, {"picture000": np.zeros(500, np.uint8)}))
        return traffic.up, asyncio.get_running_loop().time() * 1e3

    own, own_ms = virtual.run(sent(None))
    told, told_ms = virtual.run(sent(120_000))
    assert told == own - 500 + 120_000
    assert told_ms - own_ms == pytest.approx(8 * 119_500 / 1e3)


def test_a_message_takes_longer_than_its_bytes_each_way_and_holds_up_none_behind_it() -> None:
    async def counts(message: Message) -> AsyncIterator[Message]:
        for position in range(3):
            yield Message("token", {"session": "session-1", "position": position, "id": 1})
        yield Message("done", {"session": "session-1", "finish": "stop"})

    async def asked(message_ms: float) -> float:
        link = ShapedLink(counts, Shape(mbps=1.0, rtt_ms=10.0), message_ms=message_ms)
        await heard(link, Message("decode", {}))
        return asyncio.get_running_loop().time() * 1e3

    assert virtual.run(asked(3.0)) - virtual.run(asked(0.0)) == pytest.approx(2 * 3.0)


def test_a_fault_crosses_the_link_as_itself(verifier: ModelSession) -> None:
    message = streamed(verifier)
    wrong = Message("prefill", {**message.fields, "modules": {"decoder": "ab" * 32}})

    async def ask() -> None:
        await heard(ShapedLink(cloud(verifier).handle, Shape(mbps=1.0, rtt_ms=10.0)), wrong)

    with pytest.raises(ContractMismatch, match="same build"):
        virtual.run(ask())


def test_leaving_early_cancels_what_the_cloud_does() -> None:
    ended: list[float] = []

    async def slowly(message: Message) -> AsyncIterator[Message]:
        try:
            for position in range(100):
                yield Message("token", {"session": "session-1", "position": position, "id": 1})
                await asyncio.sleep(1.0)
        finally:
            ended.append(asyncio.get_running_loop().time())

    async def ask() -> int:
        replies = ShapedLink(slowly, Shape(mbps=1.0, rtt_ms=100.0)).call(Message("decode", {}), Traffic())
        seen = 0
        async for _ in replies:
            seen += 1
            if seen == 3:
                break
        await replies.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(60.0)
        return seen

    assert virtual.run(ask()) == 3
    assert len(ended) == 1 and ended[0] < 3.0
