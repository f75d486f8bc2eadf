"""What is counted, and how the log is written."""

from __future__ import annotations

import json
import logging
import re

from starlette.testclient import TestClient

from msao_compile.runtime.serve.edge.account import JsonLines

from .conftest import body


def value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def test_answers_and_tokens_are_counted(client: TestClient) -> None:
    before = client.get("/metrics").text
    client.post("/v1/chat/completions", json=body(max_tokens=4))
    client.post("/v1/chat/completions", json=body(max_tokens=4, stream=True))
    client.get("/any/path/somebody/makes/up")
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name, more in {
        'msao_answers_total{finish="length",model="vqa",route="edge"}': 2,
        'msao_tokens_total{kind="completion"}': 8,
        'msao_requests_total{path="other",status="404"}': 1,
        'msao_first_token_seconds_count{route="edge"}': 2,
    }.items():
        assert value(reply.text, name) - value(before, name) == more, name
    assert "made" not in reply.text and "makes" not in reply.text


def test_a_record_is_one_line_of_json() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "a %s", ("line\nbroken",), None)
    record.facts = {"status": 200}
    line = JsonLines().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert {name: found[name] for name in ("level", "message", "status")} == {
        "level": "warning", "message": "a line\nbroken", "status": 200,
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
