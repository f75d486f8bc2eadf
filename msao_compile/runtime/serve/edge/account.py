"""What is remembered of a request: one line of the log, and the numbers behind `/metrics`."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from msao_compile.runtime.answer import Answer
from msao_compile.runtime.serve.edge.limits import Door

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Account:
    """One request as it goes on; `said` are further facts for its line of the log. No words of a user are kept."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.started

    def answered(self, answer: Answer) -> None:
        """Keep what an answer cost."""
        self.said |= {
            "route": answer.route,
            "reason": answer.reason,
            "payload": answer.payload,
            "alone": answer.alone,
            "verified": answer.verified,
            "finish": answer.finish,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": len(answer.token_ids),
            "drafts": answer.drafts,
            "first_token_ms": round(answer.timing.ttft_ms, 1),
        }


class Metrics:
    """The server's numbers, in a registry of its own."""

    def __init__(self, door: Door) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("msao_requests", "Requests by path and status.", ["path", "status"], registry=registry)
        self.tokens = Counter("msao_tokens", "Tokens by kind: prompt, completion.", ["kind"], registry=registry)
        self.answers = Counter(
            "msao_answers", "Answers by model asked for, route and finish.", ["model", "route", "finish"],
            registry=registry,
        )  # fmt: skip
        self.unverified = Counter(
            "msao_unverified", "Answers of a route with a cloud that the edge ended.", registry=registry
        )
        self.alone = Counter("msao_alone", "Answers of the edge's own taken for the cloud's.", registry=registry)
        self.payloads = Counter(
            "msao_payloads", "Questions with pictures by what of those crosses.", ["payload"], registry=registry
        )
        self.given_up = Counter("msao_given_up", "Answers whose drafting was given up midway.", registry=registry)
        self.drafts = Counter("msao_drafts", "Drafts by what came of them.", ["outcome"], registry=registry)
        self.first_token = Histogram(
            "msao_first_token_seconds", "Generation's start to its first token.", ["route"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.whole = Histogram(
            "msao_request_seconds", "Whole chat requests, with their wait.", buckets=SECONDS, registry=registry
        )
        inside = Gauge("msao_requests_inside", "Chat requests running or waiting.", registry=registry)
        inside.set_function(lambda: door.inside)

    def answered(self, model: str, answer: Answer) -> None:
        """Count one answer."""
        self.answers.labels(model, answer.route, answer.finish).inc()
        self.tokens.labels("prompt").inc(answer.prompt_tokens or 0)
        self.tokens.labels("completion").inc(len(answer.token_ids))
        self.unverified.inc(answer.route != "edge" and not answer.verified)
        self.alone.inc(answer.alone)
        if answer.payload is not None:
            self.payloads.labels(answer.payload).inc()
        self.given_up.inc(bool((answer.drafts or {}).get("given_up")))
        for outcome in ("drafted", "accepted", "rejected"):
            self.drafts.labels(outcome).inc((answer.drafts or {}).get(outcome, 0))
        self.first_token.labels(answer.route).observe(answer.timing.ttft_ms / 1e3)

    def text(self) -> bytes:
        """In Prometheus's text format, version 0.0.4."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """A record as one JSON object on one line; `extra={"facts": {...}}` stands beside its words."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(level: int) -> None:
    """Send the log of this process to stderr as JSON lines, from `level` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
