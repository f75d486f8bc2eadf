"""What went wrong below a link, as one of `msao_compile.errors`: the only place that reads gRPC's and HTTP's words."""

from __future__ import annotations

import json
import re

import grpc

from msao_compile.errors import (
    Busy,
    DeadlineExceeded,
    InputError,
    LinkDown,
    MsaoError,
    Refused,
    RemoteError,
)

_CERTIFICATE = ("CERTIFICATE_VERIFY_FAILED", "Ssl handshake failed", "Hostname Verification", "Peer name")
_TRITON_ID = re.compile(r"^\[request id: [^]]*\] ")
RETRY_MS = 1000


def grpc_error(code: grpc.StatusCode | None, details: str) -> MsaoError:
    """What a call or a stream ended with."""
    said = _sentence(details)
    if any(word in details for word in _CERTIFICATE):
        return untrusted(said)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return Refused(f"the cloud refused this client: {said}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than max" in details:
            return LinkDown(f"a message was larger than the cloud takes, and the stream ended: {said}")
        return Busy(f"the cloud has no room: {said}", RETRY_MS)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the cloud did not answer in time: {said}")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
        return InputError(f"the cloud says: {said}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return RemoteError(f"the other side is no cloud of ours: {said}")
    return LinkDown(f"the cloud cannot be reached or went away: {said}")


def untrusted(said: str) -> Refused:
    """TLS failed: what there is to do, and what the library says."""
    return Refused(
        "the cloud's certificate is not trusted, or it speaks no TLS: give who signed it with --cloud-roots, renew it "
        f"if it has expired, and use a name that it was made for ({said})"
    )


def http_error(status: int, body: bytes, retry_after: str | None = None) -> MsaoError:
    """What an HTTP reply that holds no message tells."""
    said = _sentence(_http_words(body))
    if status in (401, 403):
        return Refused(f"the cloud refused this client: {said}")
    if status in (429, 503):
        wait = int(retry_after) * 1000 if retry_after and retry_after.isdigit() else RETRY_MS
        return Busy(f"the cloud has no room: {said}", wait)
    if status == 504:
        return DeadlineExceeded(f"the cloud did not answer in time: {said}")
    if 400 <= status < 500:
        return InputError(f"the cloud says: {said}")
    return RemoteError(f"the cloud answered with HTTP {status}: {said}")


def refused_before_it_ran(details: str) -> InputError:
    """A request that Triton itself found wrong, so that the model never saw it."""
    return InputError(f"the cloud says: {_sentence(_TRITON_ID.sub('', details))}")


def failed_while_it_ran(details: str) -> RemoteError:
    """A request that ended inside Triton's backend."""
    return RemoteError(f"the cloud failed: {_sentence(details)}")


def _http_words(body: bytes) -> str:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")
    return str(told["error"]) if isinstance(told, dict) and "error" in told else str(told)


def _sentence(details: str) -> str:
    said = " ".join(details.split()) or "it gives no reason"
    return said if len(said) <= 300 else said[:297] + "..."
