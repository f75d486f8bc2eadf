"""Messages as KServe v2's HTTP form: a JSON header, then the arrays' bytes in its order.

A plain body's header length is told by the HTTP header `Inference-Header-Content-Length`. A stream of replies is a row
of frames, each two little-endian uint32 (bytes of header, bytes of arrays) and then both; the last frame's parameter
`triton_final_response` is true.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msao_compile.errors import InputError
from msao_compile.runtime.wire.kserve.parts import (
    FIELDS,
    FINAL,
    Part,
    Reply,
    read_reply,
    read_request,
    reply_parts,
    request_parameters,
    request_parts,
)
from msao_compile.runtime.wire.message import Message

HEADER_LENGTH = "Inference-Header-Content-Length"
SIZE = "binary_data_size"
FRAME = struct.Struct("<II")


def encode_request(message: Message, request_id: str) -> tuple[bytes, int]:
    """The body of a request and its header's length; raises as `parts.request_parts`."""
    header, rest = _encode("inputs", request_parts(message), request_id, request_parameters(message))
    return header + rest, len(header)


def decode_request(body: bytes, header_length: int | None) -> tuple[str, Message]:
    """The id and message behind a request's body; raises as `parts.read_request`."""
    length = len(body) if header_length is None else header_length
    header = _header(body, length)
    request_id = header.get("id", "")
    if not isinstance(request_id, str):
        raise InputError("the request's id is no text")
    parameters = header.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError("parameters is no JSON object")
    return request_id, read_request(parameters, _parts(header.get("inputs"), memoryview(body)[length:]))


def encode_frame(message: Message | None, model: str, request_id: str, index: int, last: bool) -> bytes:
    """One reply as a frame of a stream; without a message one that only ends a request."""
    header, rest = encode_reply(message, model, request_id, index, last)
    return FRAME.pack(len(header), len(rest)) + header + rest


def encode_reply(message: Message | None, model: str, request_id: str, index: int, last: bool) -> tuple[bytes, bytes]:
    """Header and arrays of one reply; an `error` is told as KServe does too."""
    parts = reply_parts(message, index) if message is not None else []
    extra: dict[str, Any] = {"model_name": model}
    if message is not None and message.kind == "error":
        extra["error"] = message.fields.get("message", "")
    return _encode("outputs", parts, request_id, {FINAL: last}, extra)


def decode_reply(body: bytes | memoryview, header_length: int) -> tuple[str, Reply]:
    """The id and reply behind a body or a frame; raises as `parts.read_reply`."""
    header = _header(body, header_length)
    parameters = header.get("parameters")
    last = bool(isinstance(parameters, dict) and parameters.get(FINAL))
    parts = _parts(header.get("outputs"), memoryview(body)[header_length:])
    return str(header.get("id", "")), read_reply(parts, last)


def _encode(
    side: str,
    parts: Sequence[Part],
    request_id: str,
    parameters: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> tuple[bytes, bytes]:
    told = [
        {"name": part.name, "datatype": part.datatype, "shape": part.shape, "parameters": {SIZE: len(part.raw)}}
        for part in parts
    ]
    header = {"id": request_id, **(extra or {}), "parameters": dict(parameters), side: told}
    return json.dumps(header, separators=(",", ":")).encode(), b"".join(bytes(part.raw) for part in parts)


def _header(body: bytes | memoryview, length: int) -> dict[str, Any]:
    if not 0 <= length <= len(body):
        raise InputError(f"{HEADER_LENGTH} is {length} where the body has {len(body)} bytes")
    try:
        header = json.loads(bytes(body[:length]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body's header is not JSON: {str(error)[:80]}") from error
    if not isinstance(header, dict):
        raise InputError("the body's header is no JSON object")
    return header


def _parts(specs: Any, rest: memoryview) -> Iterator[Part]:
    if not isinstance(specs, list):
        raise InputError("a body without a list of arrays")
    start = 0
    for spec in specs:
        part, size = _part(spec, rest[start:])
        start += size
        yield part
    if start != len(rest):
        raise InputError(f"{len(rest) - start} bytes follow the last array")


def _part(spec: Any, rest: memoryview) -> tuple[Part, int]:
    try:
        name, datatype = str(spec["name"]), str(spec["datatype"])
        shape = tuple(int(size) for size in spec["shape"])
        if name == FIELDS and "data" in spec:  # as `curl` can write it
            (text,) = spec["data"]
            raw = str(text).encode()
            return Part(name, "UINT8", (len(raw),), raw), 0
        size = int(spec["parameters"][SIZE])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"an array's name, datatype, shape or parameters.{SIZE} is missing or damaged: {str(error)[:80]}"
        ) from error
    if not 0 <= size <= len(rest):
        raise InputError(f"array {name[:60]!r} says {size} bytes where {len(rest)} are left")
    return Part(name, datatype, shape, rest[:size]), size
