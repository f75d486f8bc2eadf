"""The proxy between real processes: every byte crosses, late as its shape says; connections end when they are cut."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import served
import tiny
from building import run

from msao_compile.bench.proxy import Proxy
from msao_compile.bench.shape import Outage, Shape
from msao_compile.runtime import load

FAST = Shape(mbps=1000.0, rtt_ms=0.0)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


def through(shape: Shape, talk: Callable[[Proxy], Awaitable[object]], cuts: bool = False) -> object:
    """What a talk with an echo behind a proxy comes to, in real time."""

    async def whole() -> object:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        proxy = Proxy(("127.0.0.1", server.sockets[0].getsockname()[1]), shape, cuts=cuts)
        await proxy.start()
        try:
            return await asyncio.wait_for(talk(proxy), 120)
        finally:
            await proxy.close()
            server.close()

    return asyncio.run(whole())


def soonest(shape: Shape, talk: Callable[[Proxy], Awaitable[object]], at_least_s: float, below_s: float) -> object:
    """What the first talk gave that took no longer than its link explains; a busy machine may spoil some of them.

    `talk` gives what it got and how many seconds that took.
    """
    for _ in range(5):
        found, passed_s = through(shape, talk)  # type: ignore[misc]
        assert passed_s >= at_least_s
        if passed_s < below_s:
            return found
    raise AssertionError(f"{passed_s:.2f} s at the end, where the link explains {at_least_s} s")


async def said_back(proxy: Proxy, content: bytes) -> tuple[bytes, float]:
    began_s = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(content)
    writer.write_eof()
    found = await reader.read(-1)
    writer.close()
    return found, time.perf_counter() - began_s


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the connection is over, in either way that a connection can end."""
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


def test_every_byte_comes_back_and_the_end_too() -> None:
    content = bytes(range(256)) * 2000
    found, _ = through(FAST, lambda proxy: said_back(proxy, content))  # type: ignore[misc]
    assert found == content


def test_bytes_are_as_late_as_the_link_is_slow() -> None:
    shape = Shape(mbps=1.0, rtt_ms=200.0)
    # 200 ms each for the bytes up, the way, and the last packet down
    soonest(shape, lambda proxy: said_back(proxy, bytes(25_000)), at_least_s=0.4, below_s=1.2)


def test_connections_share_the_link() -> None:
    async def talk(proxy: Proxy) -> tuple[bytes, float]:
        all_of_them = await asyncio.gather(*(said_back(proxy, bytes(12_500)) for _ in range(4)))
        return max(all_of_them, key=lambda one: one[1])

    soonest(Shape(mbps=1.0, rtt_ms=0.0), talk, at_least_s=0.4, below_s=1.2)


def test_an_outage_stalls_what_is_under_way_and_loses_nothing() -> None:
    shape = Shape(mbps=1000.0, rtt_ms=0.0, outages=(Outage(from_ms=0.0, for_ms=500.0),))
    assert soonest(shape, lambda proxy: said_back(proxy, b"still here"), 0.45, 1.5) == b"still here"


def test_an_outage_that_cuts_ends_the_connections_and_lets_new_ones_in() -> None:
    async def talk(proxy: Proxy) -> tuple[bytes, bytes, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"before")
        before = await reader.readexactly(6)
        assert await ended(reader)
        after, _ = await said_back(proxy, b"after")
        return before, after, proxy.connections

    shape = Shape(mbps=1000.0, rtt_ms=0.0, outages=(Outage(from_ms=1000.0, for_ms=10.0),))
    assert through(shape, talk, cuts=True) == (b"before", b"after", 2)


def test_nobody_behind_it_ends_the_connection() -> None:
    async def talk(proxy: Proxy) -> bool:
        proxy.target = ("127.0.0.1", served.free_port())
        reader, _ = await asyncio.open_connection("127.0.0.1", proxy.port)
        return await ended(reader)

    assert through(FAST, talk)


def test_closing_it_ends_a_connection_that_is_just_being_made() -> None:
    """Its server takes connections and says nothing, as one that is stopped does."""

    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            proxy = Proxy(silent.getsockname(), FAST)
            await proxy.start()
            reader, _ = await asyncio.open_connection("127.0.0.1", proxy.port)
            while not proxy.connections:
                await asyncio.sleep(0)
            await asyncio.wait_for(proxy.close(), 5)
            assert await ended(reader)

    asyncio.run(asyncio.wait_for(work(), 20))


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_real_cloud_behind_it_gives_the_same_tokens(words: Path, kind: str) -> None:
    wanted = [load(words).generate(tiny.prompt(seed), route="cloud").token_ids for seed in range(3)]
    shape = Shape(mbps=2.0, rtt_ms=30.0, jitter_ms=5.0, loss=0.02)
    with served.cloud(words) as cloud:
        with served.shaped(cloud.port if kind == "grpc" else cloud.http_port, shape) as proxy:
            address = f"{kind}://127.0.0.1:{proxy.port}"
            with load(words, cloud=address) as runtime:
                for route in ("cloud", "speculate", "auto"):
                    found = [runtime.generate(tiny.prompt(seed), route=route) for seed in range(3)]
                    assert [one.token_ids for one in found] == wanted
                    assert all(one.verified and one.timing.total_ms > 30 for one in found)
            ran = run("run", words, "--prompt", tiny.prompt(0), "--cloud", address, "--route", "cloud", "--json")
        assert ran.returncode == 0, ran.stderr
        assert tuple(json.loads(ran.stdout)["token_ids"]) == wanted[0]
