"""Every link to a cloud is the same to its user: the same suite over each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import numpy as np
import pytest
from answering import HASH, INPUTS, Answering, decode, prefill, said, verify

from msao_compile.errors import DeadlineExceeded, InputError, LinkDown, SessionLost
from msao_compile.runtime.serve.cloud.launch import CloudOptions, CloudServer
from msao_compile.runtime.serve.cloud.served import Served
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.contract import DRAFTS, TOKENS
from msao_compile.runtime.wire.kserve.connect import connect, greet
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import Message

Case = Callable[[Link], Awaitable[None]]


@asynccontextmanager
async def opened(kind: str, triton: int) -> AsyncIterator[Link]:
    """A link of a kind to a cloud that answers as `Answering`."""
    if kind == "loopback":
        yield Loopback(Answering().handle)
        return
    server = CloudServer(Served("m", Answering().handle, INPUTS), CloudOptions())
    await server.start()
    ports = {"grpc": server.port, "http": server.http_port, "triton": triton}
    link = await connect(f"{'http' if kind == 'http' else 'grpc'}://127.0.0.1:{ports[kind]}")
    try:
        yield link
    finally:
        await link.close()
        await server.stop()


@pytest.fixture(params=["loopback", "grpc", "http", pytest.param("triton", marks=pytest.mark.whole)])
def run(request: pytest.FixtureRequest) -> Callable[[Case], None]:
    triton = request.getfixturevalue("triton_port") if request.param == "triton" else 0

    def go(case: Case) -> None:
        async def whole() -> None:
            async with opened(request.param, triton) as link:
                await case(link)

        asyncio.run(asyncio.wait_for(whole(), 120))

    return go


def test_hello_tells_what_is_served(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        assert (await greet(link)).modules == {"decoder": HASH}

    run(case)


def test_a_prompt_is_opened_verified_and_closed(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        before = (await greet(link)).limits.sessions
        (ready,) = await said(link, prefill("session-1"))
        assert ready.tensors[TOKENS].tolist() == [4]
        (verified,) = await said(link, verify("session-1", [4], [5, 6, 9]))
        assert verified.fields["accepted"] == 2
        assert verified.tensors[TOKENS].tolist() == [5, 6, 7]
        (closed,) = await said(link, Message("close", {"session": "session-1"}))
        assert closed.fields["known"] is True
        assert (await greet(link)).limits.sessions == before

    run(case)


def test_a_round_without_drafts_crosses(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        await said(link, prefill("session-1"))
        (verified,) = await said(link, verify("session-1", [4], []))
        assert verified.tensors[TOKENS].tolist() == [5]

    run(case)


def test_arrays_of_every_type_cross_unchanged(run: Callable[[Case], None]) -> None:
    tensors = {
        "pixel_values": np.full((300, 1000), 2, np.float32),
        "flags": np.array([True, False, True]),
        "half": np.ones((1, 2, 2), np.float16),
        "picture000": np.arange(5, dtype=np.uint8),
    }

    async def case(link: Link) -> None:
        (ready,) = await said(link, prefill("session-1", tensors=tensors))
        assert ready.fields["prompt_tokens"] == 4 + 600_000 + 2 + 4 + 10

    run(case)


def test_streamed_tokens_come_in_order_and_end(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        ready, *tokens, done = await said(link, prefill("session-1", stream=5))
        assert ready.kind == "ready"
        assert [token.fields["id"] for token in tokens] == [4, 5, 6, 7, 8]
        assert done.fields["known"] == 5

    run(case)


def test_many_requests_share_a_link(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        asked = [prefill(f"session-{place}", stream=20, prompt="0.002 " + "x" * place) for place in range(40)]
        answers = await asyncio.gather(*(said(link, message) for message in asked))
        for place, (_, *tokens, done) in enumerate(answers):
            assert [token.fields["id"] for token in tokens] == list(range(place + 6, place + 26))
            assert done.kind == "done"

    run(case)


def test_an_early_close_cancels_the_request_and_no_other(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        before = (await greet(link)).kv_capacity
        other = asyncio.create_task(said(link, prefill("session-2", stream=30, prompt="0.01")))
        async with aclosing(link.call(prefill("session-1", stream=10_000, prompt="0.01"), Traffic())) as replies:
            async for reply in replies:
                if reply.kind == "token":
                    break
        while (cancelled := (await greet(link)).kv_capacity) == before:
            await asyncio.sleep(0.01)
        assert cancelled == before + 1
        assert len(await other) == 32
        token, _ = await said(link, decode("session-1", 1))
        assert token.fields["position"] < 9000

    run(case)


def test_faults_come_back_as_their_classes(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        with pytest.raises(SessionLost, match="session-none"):
            await said(link, verify("session-none", [], [1]))
        with pytest.raises(InputError, match="count"):
            await said(link, Message("decode", {"session": "session-none", "base": 0, "prefix": HASH, "count": -1}))
        with pytest.raises(InputError, match="dance"):
            await said(link, Message("dance", {}))
        with pytest.raises(InputError, match="drafts"):
            wrong = Message("verify", verify("session-none", [], []).fields, {DRAFTS: np.ones(3, np.int32)})
            await said(link, wrong)
        assert (await greet(link)).model == "m"

    run(case)


def test_bytes_are_counted_both_ways(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        traffic = Traffic()
        await said(link, prefill("session-1", tensors={"picture000": np.zeros(10_000, np.uint8)}), traffic)
        assert 10_000 < traffic.up < 11_500
        assert 20 < traffic.down < 1000

    run(case)


def test_a_closed_link_says_so(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        await link.close()
        with pytest.raises(LinkDown, match="closed"):
            await greet(link)

    run(case)


def test_the_deadline_of_a_request_holds(run: Callable[[Case], None]) -> None:
    async def case(link: Link) -> None:
        if isinstance(link, Loopback):
            return  # the deadline is the desk's, which a loopback does without
        before = (await greet(link)).kv_capacity
        await said(link, prefill("session-1", prompt="0.9 minutes"))
        with pytest.raises(DeadlineExceeded, match="100 ms"):
            await said(link, decode("session-1", 5, deadline_ms=100))
        assert (await greet(link)).kv_capacity == before + 1

    run(case)
