"""The wire contract in one small versioned form: a kind, plain fields and named arrays as bytes and back.

Layout: 4-byte magic `MSA1`, 4-byte little-endian header length, JSON header, then the arrays' bytes in header order.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from msao_compile.errors import InputError

MAGIC = b"MSA1"
MOST_AXES = 8
_DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")


@dataclass(frozen=True)
class Message:
    """One request or reply."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def pack(message: Message) -> bytes:
    """Bytes of a message; arrays are made contiguous."""
    arrays = {name: np.asarray(value, order="C") for name, value in message.tensors.items()}
    specs = [{"name": name, "dtype": str(value.dtype), "shape": list(value.shape)} for name, value in arrays.items()]
    header = json.dumps({"kind": message.kind, "fields": message.fields, "tensors": specs}).encode()
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *(value.tobytes() for value in arrays.values())])


def unpack(content: bytes) -> Message:
    """The message behind the bytes.

    Raises:
        InputError: the bytes are not a whole, well-formed message.
    """
    if len(content) < 8 or content[:4] != MAGIC:
        raise InputError("a message without the MSA1 mark: the other side speaks another protocol")
    start = 8 + struct.unpack("<I", content[4:8])[0]
    try:
        header = json.loads(content[8:start])
        specs = [(str(spec["name"]), str(spec["dtype"]), _shape(spec["shape"])) for spec in header["tensors"]]
        kind, fields = str(header["kind"]), dict(header["fields"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"a message with a damaged header ({error}): send it again") from error
    tensors = {}
    for name, dtype, shape in specs:
        whole = len(shape) <= MOST_AXES and all(type(size) is int and 0 <= size < 2**32 for size in shape)
        if dtype not in _DTYPES or not whole:
            raise InputError(f"tensor {name!r} of type {dtype} and shape {shape} cannot cross the wire")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if start + size > len(content):
            raise InputError(f"a message cut off inside tensor {name!r}: send it again")
        tensors[name] = np.frombuffer(content, np.dtype(dtype), size // np.dtype(dtype).itemsize, start).reshape(shape)
        start += size
    return Message(kind, fields, tensors)


def _shape(told: Any) -> tuple[Any, ...]:
    if not isinstance(told, list):
        raise TypeError(f"a shape is a list, not {told!r}")
    return tuple(told)
