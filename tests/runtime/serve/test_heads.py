"""Who takes too long to say what is wanted loses the connection, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from msao_compile.runtime.serve.heads import PromptHeads

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


class Hasty(PromptHeads):
    """A quarter of a second, so that a test is short."""

    head_s = 0.25


async def slow(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """An application that takes longer for its answer than a head may."""
    while (await receive()).get("more_body"):
        continue
    await asyncio.sleep(2 * Hasty.head_s)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def told(*pieces: bytes, gap_s: float = 0.0) -> bytes:
    """What comes back for these pieces until the server closes, or for a second."""
    config = uvicorn.Config(slow, port=0, http=Hasty, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    found = b""
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(gap_s)
        while piece := await asyncio.wait_for(reader.read(4096), 1.5):
            found += piece
        writer.close()
        return found
    except TimeoutError:
        return found + b"(still open)"
    except ConnectionError:  # closed while this wrote
        return found
    finally:
        await server.shutdown()


@pytest.mark.parametrize("pieces", [(), (HEAD,)], ids=["silent", "half a head"])
def test_a_head_that_does_not_come_closes_the_connection(pieces: tuple[bytes, ...]) -> None:
    assert asyncio.run(told(*pieces)) == b""


def test_a_head_that_drips_is_no_better() -> None:
    assert asyncio.run(told(*[b"X", b": ", b"y", b"\r", b"\n"] * 2, gap_s=0.1)) == b""


def test_an_answer_that_takes_long_is_waited_for() -> None:
    assert asyncio.run(told(HEAD + b"\r\n")).endswith(b"ok(still open)")


def test_a_body_that_takes_long_is_no_head() -> None:
    post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
    assert asyncio.run(told(post, b"a", b"b", b"c", gap_s=0.2)).endswith(b"ok(still open)")


def test_a_later_head_has_the_same_time() -> None:
    async def case() -> bytes:
        return await told(HEAD + b"\r\n", b"", b"", HEAD, gap_s=0.3)

    assert asyncio.run(case()).endswith(b"ok")
