"""Which client asks: by its token where several are known, else by its machine; and one client is not the only one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from answering import INPUTS, Answering, prefill

from msao_compile.errors import Refused
from msao_compile.runtime.serve.cloud.desk import Desk, Uncounted
from msao_compile.runtime.serve.cloud.launch import CloudOptions, CloudServer
from msao_compile.runtime.serve.cloud.security import Tokens, host_of
from msao_compile.runtime.serve.cloud.served import Bounds, Served
from msao_compile.runtime.wire.contract import Hello, write
from msao_compile.runtime.wire.kserve.connect import connect, greet
from msao_compile.runtime.wire.kserve.options import LinkOptions
from msao_compile.runtime.wire.message import Message

FIRST, SECOND = "first-token-of-one", "second-token-of-other"


class Noting(Answering):
    """Remembers who asked."""

    clients: set[str]

    async def handle(self, message: Message, client: str = "") -> AsyncIterator[Message]:
        self.clients = {*getattr(self, "clients", ()), client}
        async for reply in super().handle(message, client):
            yield reply


async def seen(folder: Path, tokens: tuple[str, ...], shown: str | None, kind: str) -> set[str]:
    """The clients that a server saw when one asked twice, over two connections."""
    answering, file = Noting(), folder / "tokens"
    file.write_text("\n".join(tokens))
    server = CloudServer(Served("m", answering.handle, INPUTS), CloudOptions(token_file=file if tokens else None))
    await server.start()
    address = f"{kind}://127.0.0.1:{server.port if kind == 'grpc' else server.http_port}"
    for _ in range(2):
        link = await connect(address, LinkOptions(token=shown))
        await greet(link)
        await link.close()
    await server.stop()
    return answering.clients


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_client_is_its_token_where_several_are_known_and_else_its_machine(kind: str, tmp_path: Path) -> None:
    async def case() -> None:
        assert await seen(tmp_path, (), None, kind) == {"127.0.0.1"}
        assert await seen(tmp_path, (FIRST,), FIRST, kind) == {"127.0.0.1"}
        assert await seen(tmp_path, (FIRST, SECOND), FIRST, kind) == {"token 1"}
        assert await seen(tmp_path, (FIRST, SECOND), SECOND, kind) == {"token 2"}

    asyncio.run(asyncio.wait_for(case(), 60))


def test_no_token_is_told_to_a_log_or_a_client() -> None:
    tokens = Tokens((FIRST, SECOND))
    assert FIRST not in str(tokens.check(f"Bearer {FIRST}"))
    with pytest.raises(Refused):
        tokens.check("Bearer token 1")


@pytest.mark.parametrize(
    ("peer", "host"),
    [("ipv4:10.0.0.1:5000", "10.0.0.1"), ("ipv6:%5B::1%5D:5000", "::1"), ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0"),
     ("unix:/run/cloud.sock", "unix:/run/cloud.sock"), ("unix:", "unix:"), ("", "")],
)  # fmt: skip
def test_a_machine_is_the_same_over_grpc_and_http_and_on_every_connection(peer: str, host: str) -> None:
    assert host_of(peer) == host


def test_one_client_may_not_have_every_request_that_is_taken() -> None:
    async def case() -> None:
        desk = Desk(Served("m", Answering().handle, INPUTS), Bounds(requests=5, client_requests=2), Uncounted())
        desk.open = True
        slow = prefill("session-1", stream=100, prompt="0.05")
        running = [desk.answers(f"r{index}", 1, lambda: slow, "many") for index in range(2)]
        for answers in running:
            await anext(answers)
        [refused] = [reply async for reply in desk.answers("r2", 1, lambda: slow, "many")]
        assert (refused.fields["code"], refused.fields["retry_after_ms"]) == ("busy", 200)
        hello = write("hello", Hello(contract="msao/1"))
        assert [reply.kind async for reply in desk.answers("r3", 1, lambda: hello, "one")] == ["welcome"]
        unknown = [desk.answers(f"u{index}", 1, lambda: hello) for index in range(3)]  # as behind Triton
        assert [(await anext(answers)).kind for answers in unknown] == ["welcome"] * 3
        for answers in (*unknown, running[0]):
            await answers.aclose()
        assert [reply.kind async for reply in desk.answers("r4", 1, lambda: hello, "many")] == ["welcome"]
        await running[1].aclose()
        assert (desk.active, dict(desk._of)) == (0, {})

    asyncio.run(asyncio.wait_for(case(), 30))
