"""What is counted, and how the log is written."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from msao_compile.runtime.answer import Answer, Timing
from msao_compile.runtime.serve.edge.account import Account, JsonLines, Metrics
from msao_compile.runtime.serve.edge.limits import Door
from msao_compile.runtime.serve.edge.replies import Reply

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


@pytest.mark.parametrize(("changed", "counted"), [
    ({"payload": "drop"}, {'msao_payloads_total{payload="drop"}': 1, "msao_alone_total": 0, "msao_given_up_total": 0}),
    ({"alone": True}, {"msao_alone_total": 1, 'msao_payloads_total{payload="drop"}': 0, "msao_unverified_total": 1}),
    ({"drafts": {"given_up": 8}, "verified": True}, {"msao_given_up_total": 1, "msao_unverified_total": 0}),
])  # fmt: skip
def test_what_was_decided_is_counted_and_told(changed: dict[str, Any], counted: dict[str, int]) -> None:
    timing = Timing(1.0, None, 2.0, {}, 0, 0)
    answer = replace(Answer("a", (1,), "speculate", "auto: why", False, timing), **changed)
    metrics, account = Metrics(Door(1)), Account("r")
    metrics.answered("vqa", answer)
    told = metrics.text().decode()
    assert {name: value(told, name) for name in counted} == counted
    account.answered(answer)
    assert (account.said["reason"], account.said["payload"]) == ("auto: why", answer.payload)
    assert account.said["alone"] is answer.alone
    reply = Reply("r", "vqa", 0).account(answer)
    assert (reply["reason"], reply["payload"], reply["alone"]) == ("auto: why", answer.payload, answer.alone)


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
