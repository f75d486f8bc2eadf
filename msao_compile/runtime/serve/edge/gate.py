"""The request boundary: who may come in, what every reply carries, and how errors of any kind end."""

from __future__ import annotations

import hmac
import logging
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msao_compile.errors import MsaoError
from msao_compile.runtime.serve.edge.account import Account, Metrics
from msao_compile.runtime.serve.edge.errors import GONE, Fault, Refusal, encode, fault_of

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/healthz", "/readyz")
"""What needs no token: the page holds no secret, and probes have none."""

PATHS = (*OPEN_PATHS, "/metrics", "/v1/models", "/v1/chat/completions")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class Admission:
    """Who may come in. Without a token only `hosts` may be named, so that no web page reaches a loopback server by a
    name of its own (DNS rebinding); None admits every name.
    """

    token: bytes | None = None
    hosts: frozenset[str] | None = LOOPBACK_NAMES

    def check(self, path: str, headers: Headers) -> None:
        """Refuse who may not come in.

        Raises:
            Refusal: 401 for a missing or wrong token, 403 for a host name that is not this server's.
        """
        if self.token is None:
            host = headers.get("host", "").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if self.hosts is not None and name not in self.hosts:
                said = f"this server has no token and is not called {name[:100]!r}: use localhost, or give it a token"
                raise Refusal(Fault(403, said, code="unknown_host"))
            return
        if path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token)
        if scheme.lower() != "bearer" or not right:
            said = "the bearer token is missing or wrong: send the server's own as Authorization: Bearer"
            raise Refusal(Fault(401, said, code="invalid_api_key"))


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, admission: Admission, metrics: Metrics) -> None:
        self.app, self.admission, self.metrics = app, admission, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; nothing it raises goes further."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reply = _Reply(send, Account(uuid.uuid4().hex))
        scope.setdefault("state", {})["account"] = reply.account
        try:
            self.admission.check(scope["path"], Headers(scope=scope))
            await self.app(scope, receive, reply.send)
        except ClientDisconnect:
            reply.status = GONE
        except MsaoError as error:
            await self._fail(scope, receive, reply, fault_of(error))
        except Exception:  # the boundary: a request's error ends that request alone
            logger.exception("a request failed unexpectedly", extra={"facts": {"request_id": reply.account.request_id}})
            said = f"the server failed unexpectedly: its log has the reason under {reply.account.request_id}"
            await self._fail(scope, receive, reply, Fault(500, said, code="internal_error"))
        finally:
            self._note(scope, reply)

    async def _fail(self, scope: Scope, receive: Receive, reply: _Reply, fault: Fault) -> None:
        reply.account.said |= {"error": fault.code, "sentence": fault.body["error"]["message"]}
        if fault.status == GONE:
            reply.status = GONE
        elif reply.status is None:
            await refuse(fault)(scope, receive, reply.send)
        elif reply.streams:
            await reply.send({"type": "http.response.body", "body": event(fault.body), "more_body": False})

    def _note(self, scope: Scope, reply: _Reply) -> None:
        account, status = reply.account, reply.status or GONE
        path = scope["path"] if scope["path"] in PATHS else "other"
        self.metrics.requests.labels(path, status).inc()
        if path in ("/healthz", "/readyz") and status == 200:
            return
        facts: dict[str, Any] = {"request_id": account.request_id, "method": scope["method"], "path": path}
        facts |= {"status": status, "ms": round(account.seconds * 1e3, 1), **account.said}
        logger.info("request", extra={"facts": facts})


class _Reply:
    """One reply on its way out: adds what every reply carries, and remembers how far it came."""

    def __init__(self, send: Send, account: Account) -> None:
        self._send, self.account = send, account
        self.status: int | None = None
        self.streams = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = MutableHeaders(scope=message)
            self.streams = headers.get("content-type", "").startswith("text/event-stream")
            headers["x-request-id"] = self.account.request_id
            headers["x-content-type-options"] = "nosniff"
            headers.setdefault("cache-control", "no-store")
        await self._send(message)


def refuse(fault: Fault) -> Response:
    """A fault as a reply."""
    return Response(encode(fault.body), fault.status, fault.headers, "application/json")


def event(content: object) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(content) + b"\n\n"


def not_found(_: object, error: Exception) -> Response:
    """Starlette's own refusals (no such path, method not allowed) in OpenAI's form."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    words = {404: "there is no such path", 405: "this path does not take that method"}
    said = f"{words.get(status, 'this request is refused')}: see GET / for what this server has"
    return refuse(Fault(status, said, code="not_found" if status == 404 else "method_not_allowed"))
