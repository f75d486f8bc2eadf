"""Full SHA-256 digests of files, bytes and plain JSON values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in blocks so that a file larger than memory is fine.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: object) -> bytes:
    """The one UTF-8 JSON text of a plain value: sorted keys, no white space; a tuple is written as a list.

    Raises:
        TypeError: something other than None, bool, int, float, str, list, tuple or a mapping with string keys.
        ValueError: a number that is not finite, or text that is not valid Unicode.
    """
    plain = _plain(value, "value")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _plain(value: object, where: str) -> object:
    # Exact types: a subclass (an enum, a NumPy float) may print differently from one release to the next.
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which has no JSON form")
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}, which has no canonical JSON form")


def _key(key: object, where: str) -> str:
    if type(key) is not str:
        raise TypeError(f"{where} has a key of type {type(key).__name__}: only strings are keys in JSON")
    return key
