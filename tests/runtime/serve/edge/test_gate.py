"""The boundary: tokens, host names, headers, and errors that nobody foresaw."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from msao_compile.errors import StageError
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge.account import Metrics
from msao_compile.runtime.serve.edge.app import application
from msao_compile.runtime.serve.edge.gate import OPEN_PATHS, PATHS, Admission, Gate
from msao_compile.runtime.serve.edge.limits import Door, Limits

from .conftest import LOCAL, body

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def locked(runtime: Runtime) -> TestClient:
    return TestClient(application(runtime, Admission(TOKEN.encode(), None), Limits()), "http://anywhere.example")


@pytest.mark.parametrize("path", PATHS)
def test_only_page_and_probes_are_open_without_the_token(locked: TestClient, path: str) -> None:
    reply = locked.get(path)
    if path in OPEN_PATHS:
        assert reply.status_code == 200
    else:
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer ", 401),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer \u00fc", 401),
    ],
)
def test_the_token_is_the_whole_token(locked: TestClient, given: str, status: int) -> None:
    headers = {"authorization": given.encode("latin-1")}
    assert locked.get("/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("", 403),
    ],
)
def test_a_loopback_server_answers_to_its_own_names_alone(client: TestClient, host: str, status: int) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == status


def test_no_reply_is_stored_or_sniffed_and_each_has_its_number(client: TestClient) -> None:
    replies = [client.get("/healthz"), client.get("/nowhere"), client.post("/v1/chat/completions", json=body())]
    assert {(reply.headers["cache-control"], reply.headers["x-content-type-options"]) for reply in replies} == {
        ("no-store", "nosniff")
    }
    assert len({reply.headers["x-request-id"] for reply in replies}) == 3


def failing(error: Exception) -> TestClient:
    async def before(_: Any) -> Any:
        raise error

    async def during(_: Any) -> StreamingResponse:
        async def parts() -> Any:
            yield b"data: {}\n\n"
            raise error

        return StreamingResponse(parts(), media_type="text/event-stream")

    gate = Middleware(Gate, admission=Admission(), metrics=Metrics(Door(1)))
    app = Starlette(routes=[Route("/before", before), Route("/during", during)], middleware=[gate])
    return TestClient(app, LOCAL)


def test_an_unforeseen_error_is_a_500_that_tells_nothing_but_its_number(caplog: pytest.LogCaptureFixture) -> None:
    reply = failing(ZeroDivisionError("secret")).get("/before")
    number = reply.headers["x-request-id"]
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert number in reply.text
    assert "secret" not in reply.text
    assert any(record.exc_info and record.facts["request_id"] == number for record in caplog.records)


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), StageError("the decoder failed: look at it")])
def test_an_error_within_a_stream_is_its_last_event(error: Exception) -> None:
    reply = failing(error).get("/during")
    first, last = (json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n\n") if line)
    assert (reply.status_code, first) == (200, {})
    assert last["error"]["type"] == "server_error"
    assert "[DONE]" not in reply.text
    assert ("the decoder failed" in reply.text) == isinstance(error, StageError)


def test_the_log_has_a_line_for_each_request_and_no_word_of_the_user(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "msao_compile"):
        client.post("/v1/chat/completions", json=body("whisper it"))
        client.post("/v1/chat/completions", json=body("whisper it", model="none"))
    done, refused = (record.facts for record in caplog.records if record.getMessage() == "request")
    assert (done["status"], done["model"], done["route"], done["completion_tokens"]) == (200, "vqa", "edge", 4)
    assert (refused["status"], refused["model"], refused["error"]) == (404, None, "model_not_found")
    assert "whisper" not in repr([done, refused])
