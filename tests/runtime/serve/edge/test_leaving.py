"""Clients that leave, answers that take too long, and a server that shuts down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge import chat
from msao_compile.runtime.serve.edge.app import application
from msao_compile.runtime.serve.edge.chat import Service
from msao_compile.runtime.serve.edge.gate import Admission
from msao_compile.runtime.serve.edge.limits import Limits

from .conftest import LOCAL, body

SCOPE = {
    "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
    "root_path": "", "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.3"},
    "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
}  # fmt: skip


async def converse(
    app: Starlette, asked: dict[str, Any], leaves: Callable[[list[Any]], bool], gone: asyncio.Event | None = None
) -> list[Any]:
    """Send a request and leave as soon as `leaves(what came so far)`, or when `gone` is set; what came."""
    came: list[Any] = []
    gone, sent = gone or asyncio.Event(), False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}
        if leaves(came):
            gone.set()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        came.append(message)
        if leaves(came):
            gone.set()

    await app({**SCOPE, "state": {}}, receive, send)
    return came


def free(app: Starlette) -> bool:
    service: Service = app.state.service
    return service.door.inside == 0 and not any(lane.turn.locked() for lane in service.offers.lanes.values())


@pytest.fixture
def app(runtime: Runtime) -> Starlette:
    return application(runtime, Admission(), Limits())


def test_a_stream_ends_when_its_reader_leaves(app: Starlette) -> None:
    asked = body(stream=True, max_tokens=200)
    came = asyncio.run(converse(app, asked, lambda came: len(came) >= 4))
    assert came[0]["status"] == 200
    assert len(came) < 20
    assert b"[DONE]" not in b"".join(message.get("body", b"") for message in came)
    assert free(app)


def test_who_leaves_before_the_answer_gets_none(app: Starlette) -> None:
    assert asyncio.run(converse(app, body(max_tokens=200), lambda came: True)) == []
    assert free(app)


def test_who_leaves_in_the_line_frees_the_place(app: Starlette) -> None:
    async def both() -> None:
        service: Service = app.state.service
        lane = service.offers.lanes["edge"]
        async with lane.turn:
            gone = asyncio.Event()
            waiting = asyncio.create_task(converse(app, body(), lambda came: False, gone))
            await asyncio.sleep(0.1)
            assert service.door.inside == 1
            gone.set()
            assert await waiting == []
            assert service.door.inside == 0
        assert free(app)

    asyncio.run(both())


def test_who_stops_reading_is_cut_off(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "STALLS_S", 0.05)
    app = application(runtime, Admission(), replace(Limits(), deadline_s=0.5))
    came: list[Any] = []

    async def receive() -> dict[str, Any]:
        if came:
            await asyncio.Event().wait()
        came.append("asked")
        return {"type": "http.request", "body": json.dumps(body(stream=True)).encode(), "more_body": False}

    async def send(message: Any) -> None:
        came.append(message["type"])
        await asyncio.Event().wait()

    asyncio.run(asyncio.wait_for(app({**SCOPE, "state": {}}, receive, send), 60))
    assert came == ["asked", "http.response.start"]
    assert free(app)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_ended(runtime: Runtime, stream: bool) -> None:
    app = application(runtime, Admission(), replace(Limits(), deadline_s=0.02))
    with TestClient(app, LOCAL) as client:
        reply = client.post("/v1/chat/completions", json=body(max_tokens=220, stream=stream))
    assert "deadline_exceeded" in reply.text
    assert reply.status_code == 504 or (stream and "[DONE]" not in reply.text)
    assert free(app)


def test_a_server_that_drains_finishes_what_runs_and_takes_no_more(app: Starlette) -> None:
    async def both() -> list[Any]:
        service: Service = app.state.service
        running = asyncio.create_task(converse(app, body(max_tokens=200), lambda came: False))
        while not service.offers.lanes["edge"].turn.locked():
            await asyncio.sleep(0.001)
        service.door.draining = True
        refused = await converse(app, body(), lambda came: len(came) >= 2)
        assert (refused[0]["status"], dict(refused[0]["headers"])[b"retry-after"]) == (503, b"5")
        assert b"shutting_down" in refused[1]["body"]
        return await running

    came = asyncio.run(both())
    assert came[0]["status"] == 200
    with TestClient(app, LOCAL) as client:
        assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (503, 200)
