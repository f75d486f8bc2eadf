"""A message as the parts that both forms of KServe v2 carry: parameters, and named arrays as raw bytes.

A request's kind is the parameter `operation`, its fields are the array `fields`: UINT8 [bytes], a JSON object. A reply
has no parameters that Triton's Python backend could set, so its `fields` hold `{"operation", "index", "fields"}`;
`index` counts the replies to one request. UINT8 and not BYTES: Triton's backend unpacks BYTES through a NumPy of its
own age, while UINT8 passes as DLPack. A request with BYTES [1] is read all the same.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from msao_compile.errors import ContractMismatch, InputError, RemoteError
from msao_compile.runtime.wire.contract import CONTRACT, LAST
from msao_compile.runtime.wire.message import Message

FIELDS = "fields"
OPERATION, VERSION, CANCELS = "operation", "contract", "cancels"
CANCEL = "cancel"
"""An operation of the wire itself: stop the request whose id the parameter `cancels` holds. Nothing answers it."""
FINAL, ASK_FINAL = "triton_final_response", "triton_enable_empty_final_response"
DATATYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in DATATYPES.items()}
MOST_ARRAYS, MOST_RANK, MOST_ID = 256, 8, 128

Parameter = bool | int | str
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Part:
    """One array as it crosses."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview


@dataclass(frozen=True)
class Reply:
    """One reply and its place among those to its request; `message` is None where a request ended without a word."""

    message: Message | None
    index: int
    last: bool


def request_parameters(message: Message) -> dict[str, Parameter]:
    """What names a request to servers and proxies; a session is the sequence that Triton knows."""
    told: dict[str, Parameter] = {OPERATION: message.kind, VERSION: CONTRACT}
    if session := message.fields.get("session"):
        told |= {"sequence_id": str(session)}
        told |= {"sequence_start": True} if message.kind == "prefill" else {}
        told |= {"sequence_end": True} if message.kind == "close" else {}
    return told


def request_parts(message: Message) -> list[Part]:
    """A request's fields and arrays.

    Raises:
        InputError: an array of a type that does not cross, or called `fields`.
    """
    return _parts(message.fields, message)


def reply_parts(message: Message, index: int) -> list[Part]:
    """A reply's fields and arrays; raises as `request_parts`."""
    told = {OPERATION: message.kind, "index": index, FIELDS: message.fields}
    return _parts(told, message)


def check_arrays(message: Message) -> None:
    """Whether every array of a message can cross.

    Raises:
        InputError: one cannot.
    """
    for name, value in message.tensors.items():
        if name == FIELDS or np.asarray(value).dtype.name not in DATATYPES:
            raise InputError(f"array {name!r} of {value.dtype} cannot cross the wire: types {', '.join(DATATYPES)}")


def read_request(parameters: Mapping[str, Any], parts: Iterable[Part]) -> Message:
    """The request behind parameters and parts; its fields and arrays are not yet those of an operation.

    Raises:
        ContractMismatch: it is of another contract.
        InputError: a parameter or an array is missing, damaged, or there twice.
    """
    kind, version = parameters.get(OPERATION), parameters.get(VERSION)
    if version != CONTRACT:
        raise ContractMismatch(f"the request is of contract {_short(version)}: this server speaks {CONTRACT}")
    if not isinstance(kind, str):
        raise InputError(f"the parameter {OPERATION} is {_short(kind)}: name an operation of {CONTRACT}")
    fields, tensors = _read(parts)
    return Message(kind, fields, tensors)


def read_reply(parts: Iterable[Part], last: bool) -> Reply:
    """The reply behind the parts; none where there are no parts.

    Raises:
        InputError: as `read_request`.
    """
    held = list(parts)
    if not held:
        return Reply(None, 0, last)
    told, tensors = _read(held)
    kind, index, fields = told.get(OPERATION), told.get("index"), told.get(FIELDS)
    if not isinstance(kind, str) or not isinstance(index, int) or not isinstance(fields, dict):
        raise InputError(f"a reply without {OPERATION}, index and {FIELDS}: the other side is not of {CONTRACT}")
    return Reply(Message(kind, fields, tensors), index, last or kind in LAST)


def read_safely(read: Callable[..., Thing], *given: Any) -> Thing:
    """What `read` makes of a reply; damage in it is the cloud's fault and not that of a request.

    Raises:
        RemoteError: the reply cannot be read.
    """
    try:
        return read(*given)
    except InputError as error:
        raise RemoteError(f"the cloud's reply cannot be read: {error}") from error


def checked_id(value: Any) -> str:
    """The id of a request.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= MOST_ID or not value.isprintable():
        raise InputError(f"the request's id is {_short(value)}: give 1 to {MOST_ID} printable characters")
    return value


def _parts(fields: Mapping[str, Any], message: Message) -> list[Part]:
    check_arrays(message)
    return [_json(fields), *(_part(name, value) for name, value in message.tensors.items())]


def _part(name: str, value: np.ndarray) -> Part:
    datatype = DATATYPES[value.dtype.name]
    return Part(name, datatype, tuple(value.shape), np.asarray(value, _DTYPES[datatype], order="C").tobytes())


def _json(value: Mapping[str, Any]) -> Part:
    raw = json.dumps(value, separators=(",", ":")).encode()
    return Part(FIELDS, "UINT8", (len(raw),), raw)


def _read(parts: Iterable[Part]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    fields: dict[str, Any] | None = None
    tensors: dict[str, np.ndarray] = {}
    for count, part in enumerate(parts):
        if count >= MOST_ARRAYS:
            raise InputError(f"more than {MOST_ARRAYS} arrays in one message: send fewer")
        if part.name in tensors or (part.name == FIELDS and fields is not None):
            raise InputError(f"array {_short(part.name)} is there twice: send it once")
        if part.name == FIELDS:
            fields = _object(part)
        else:
            tensors[part.name] = _array(part)
    if fields is None:
        raise InputError(f"a message without the array {FIELDS}: it is a JSON object as UINT8")
    return fields, tensors


def _array(part: Part) -> np.ndarray:
    dtype = _DTYPES.get(part.datatype)
    if dtype is None:
        raise InputError(f"array {_short(part.name)} is of {_short(part.datatype)}: send {', '.join(_DTYPES)}")
    if len(part.shape) > MOST_RANK or any(size < 0 for size in part.shape):
        raise InputError(
            f"array {_short(part.name)} has shape {_short(part.shape)}: no rank above {MOST_RANK}, no size below 0"
        )
    wanted = math.prod(part.shape) * dtype.itemsize
    if wanted != len(part.raw):
        raise InputError(f"array {_short(part.name)} has {len(part.raw)} bytes where its shape takes {wanted}")
    try:
        value: np.ndarray = np.ndarray(part.shape, dtype, part.raw) if wanted else np.zeros(part.shape, dtype)
    except ValueError as error:
        raise InputError(f"array {_short(part.name)} cannot have shape {_short(part.shape)}") from error
    if part.datatype == "BOOL" and (value.view(np.uint8) > 1).any():
        raise InputError(f"array {_short(part.name)} is BOOL with bytes that are neither 0 nor 1")
    return value


def _object(part: Part) -> dict[str, Any]:
    raw = bytes(part.raw)
    if part.datatype == "BYTES" and part.shape == (1,) and len(raw) >= 4:
        size, raw = struct.unpack("<I", raw[:4])[0], raw[4:]
    elif part.datatype == "UINT8" and len(part.shape) == 1:
        size = part.shape[0]
    else:
        raise InputError(f"{FIELDS} is {_short(part.datatype)} {_short(part.shape)}: send UINT8 [bytes] or BYTES [1]")
    if size != len(raw):
        raise InputError(f"{FIELDS} has {len(raw)} bytes where it says {size}")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{FIELDS} is not JSON ({_short(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{FIELDS} is {_short(value)}: send a JSON object")
    return value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 60 else text[:57] + "...")
