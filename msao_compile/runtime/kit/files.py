"""Files on the device: digests in blocks, JSON that is there whole or not at all, and the sentence for a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msao_compile.errors import StageError

BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def digest(value: object) -> str:
    """The SHA-256 of a plain value's canonical JSON, as `msao_compile.manifest.digest.canonical_json` writes it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write beside, make it last, then rename: whoever is killed leaves the old file or the new one.

    Raises:
        StageError: the disk is full or cannot be written.
    """
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=1, sort_keys=True, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)


def keep(partial: Path, path: Path) -> None:
    """Give a finished file its name, after its bytes are on the disk.

    Raises:
        StageError: the disk is full or cannot be written.
    """
    with written(path):
        handle = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)


def read_json(path: Path) -> Any:
    """The value in a JSON file; None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into one sentence.

    Raises:
        StageError: instead of it.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StageError(f"no space is left for {path}: free some and run kit.py again, it continues") from error
        raise StageError(f"{path}: cannot be written ({error.strerror}); correct that and run kit.py again") from error
