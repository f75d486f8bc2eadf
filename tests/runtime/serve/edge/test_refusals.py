"""Bad requests: each has its status and OpenAI's error, and none ends in a 500."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from msao_compile.runtime.serve.edge.chat import Service

from .conftest import LIMITS, body, image

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


CASES: list[tuple[dict[str, Any], int, str | None, str, str]] = [
    ({"model": "gpt-4o"}, 404, "model", "model_not_found", "choose vqa, edge"),
    ({"model": 3}, 400, "model", "invalid_value", "string"),
    ({"messages": []}, 400, "messages", "invalid_value", "at least 1"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "invalid_value", "'assistant'"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter", "give it"),
    ({"messages": [{"role": "user", "content": "x", "audio": 1}]}, 400, "messages[0].audio", "unsupported_parameter",
     "leave it out"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "messages", "invalid_prompt", "ask something"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "messages[0].content[0]",
     "invalid_value", "image_url"),
    ({"tools": []}, 400, "tools", "unsupported_parameter", "leave it out"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter", "leave it out"),
    ({"n": 2}, 400, "n", "invalid_value", "1"),
    ({"logprobs": True}, 400, "logprobs", "invalid_value", "False"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty", "invalid_value", "0"),
    ({"temperature": 2.5}, 400, "temperature", "invalid_value", "2"),
    ({"temperature": "hot"}, 400, "temperature", "invalid_value", "number"),
    ({"top_p": 0}, 400, "top_p", "invalid_value", "greater than 0"),
    ({"seed": -1}, 400, "seed", "invalid_value", "0"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value", "1"),
    ({"max_tokens": 100_000}, 400, "messages", "context_length_exceeded", "KV cache of 256"),
    ({"stop": [""]}, 400, "stop[0]", "invalid_value", "1 character"),
    ({"stop": 3}, 400, "stop", "invalid_value", ""),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value", "set stream to true"),
    ({"route": "speculate"}, 400, "route", "invalid_value", "choose edge, cloud, split"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "status", "param", "code", "words"), CASES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_told_what_is_wrong(
    client: TestClient, more: dict[str, Any], status: int, param: str, code: str, words: str, stream: bool
) -> None:
    asked = {**body(), **more}
    if stream and "stream_options" not in more:
        asked["stream"] = True
    reply = client.post(PATH, json=asked)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("https://example.com/x.png", "invalid_image", "fetches no pictures from the network"),
        ("HTTP://example.com/x.png", "invalid_image", "fetches no pictures from the network"),
        ("ftp://example.com/x.png", "invalid_image", "neither data: nor file:"),
        ("", "invalid_image", "neither data: nor file:"),
        ("data:image/png,abc", "invalid_image", "data:image/png;base64"),
        ("data:text/html;base64,AAAA", "invalid_image", "data:image/png;base64"),
        ("data:image/png;base64,A", "invalid_image", "base64"),
        ("data:image/png;base64,AA AA", "invalid_image", "base64"),
        ("data:image/png;base64,", "invalid_image", "no bytes"),
        ("data:image/png;base64,AAAA", "invalid_image", "not an image"),
        (png(97, 64), "image_too_large", "6208 pixels, above the limit of 6144"),
        (png(30_000, 30_000)[:2000], "invalid_image", ""),
        ("file:///etc/passwd", "invalid_image", "there is no picture '/etc/passwd' below"),
        ("file://host/x.png", "invalid_image", "file:///path/of/picture.png"),
        ("file:relative.png", "invalid_image", "file:///path/of/picture.png"),
        ("file:///%00", "invalid_image", "there is no picture"),
        ("file://[/x", "invalid_image", "cannot be read"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_with_its_place(
    client: TestClient, url: str, code: str, words: str
) -> None:
    reply = client.post(PATH, json=body([{"type": "text", "text": "what?"}, image(url)]))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, code)
    assert error["param"].startswith("messages[0].content[1]")
    assert words in error["message"]


def test_a_picture_that_is_damaged_behind_its_header_is_refused(client: TestClient, picture: Path) -> None:
    cut = base64.b64encode(picture.read_bytes()[:200]).decode()
    reply = client.post(PATH, json=body([image(f"data:image/png;base64,{cut}")]))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_image")


def test_more_pictures_than_allowed_and_pictures_of_others_are_refused(client: TestClient, data_url: str) -> None:
    many = client.post(PATH, json=body([image(data_url)] * 3)).json()["error"]
    assert (many["param"], many["code"]) == ("messages[0].content[2]", "too_many_images")
    turns = [{"role": "system", "content": [image(data_url)]}, {"role": "user", "content": "what?"}]
    error = client.post(PATH, json=body(messages=turns)).json()["error"]
    assert (error["param"], "put it into one of the user" in error["message"]) == ("messages[0].content[0]", True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"model": NaN}', "no number of JSON"),
        (b"[" * 20_000, "not JSON"),
        (b'{"model": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"model": "\\ud800", "messages": []}', "model"),
        (b'{"model": "vqa", "messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
    ],
)
def test_a_body_that_is_no_request_is_refused(client: TestClient, content: bytes, words: str) -> None:
    reply = client.post(PATH, content=content, headers=JSON)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read_and_while(client: TestClient) -> None:
    def endless() -> Any:
        for _ in range(1000):
            yield b" " * 1000

    for content in (b" " * (LIMITS.body_bytes + 1), endless()):
        reply = client.post(PATH, content=content, headers=JSON)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {}, {**JSON, "content-encoding": "gzip"}], ids=["text", "none", "gzip"]
)
def test_only_plain_json_is_taken(client: TestClient, headers: dict[str, str]) -> None:
    reply = client.post(PATH, content=json.dumps(body()).encode(), headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("GET", PATH, 405), ("POST", "/", 405)])
def test_other_paths_and_methods_are_refused_in_the_same_form(
    client: TestClient, method: str, path: str, status: int
) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, set(reply.json()["error"])) == (status, {"message", "type", "param", "code"})


def test_a_full_server_says_when_to_try_again(client: TestClient, service: Service) -> None:
    with service.door.entered(), service.door.entered():
        reply = client.post(PATH, json=body())
    assert (reply.status_code, reply.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(reply.headers["retry-after"]) >= 1
    assert client.post(PATH, json=body()).status_code == 200


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
FIELDS = st.sampled_from(
    ["model", "messages", "stream", "stop", "seed", "max_tokens", "temperature", "top_p", "route", "n", "user", "x"]
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "x"])},
    optional={
        "text": LEAVES,
        "image_url": st.fixed_dictionaries({"url": st.sampled_from(["data:", "file:///", "file://["]) | LEAVES}),
    },
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x"]), "content": st.lists(PARTS) | LEAVES}),
    max_size=3,
)
WRONG = st.dictionaries(FIELDS, VALUES, max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WRONG, MESSAGES | st.none(), st.binary(max_size=40))
def test_no_malformed_body_ends_in_a_500(
    client: TestClient, service: Service, wrong: dict[str, Any], messages: list[Any] | None, tail: bytes
) -> None:
    asked = {**body(), **({} if messages is None else {"messages": messages}), **wrong}
    for content in (json.dumps(asked).encode(), json.dumps(asked).encode()[: -1 - len(tail)] + tail, tail):
        reply = client.post(PATH, content=content, headers=JSON)
        assert reply.status_code < 500
        if reply.status_code != 200:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert service.door.inside == 0
