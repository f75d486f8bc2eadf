"""What the store says about its contents: blobs, records, damage, and what a collection removed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.store.key import Key

Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Reason = Literal["missing", "size", "digest", "record"]


class Frozen(BaseModel):
    """Frozen and strict, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Blob(Frozen):
    """An object of the store, named by its content."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class Record(Frozen):
    """What came out of a request: named objects, and a small payload."""

    schema_version: Literal[1] = 1
    key: Key
    outputs: Mapping[str, Blob]
    payload: Mapping[str, JsonValue]

    @property
    def digest(self) -> str:
        """The digest of the key, by which `Store.collect` is told to keep this record."""
        return self.key.digest


class Damage(Frozen):
    """An object, or a record itself, that is not what was stored."""

    reason: Reason
    detail: str
    sha256: str
    """The object's digest; the key's digest where the record itself is damaged."""
    output: str | None = None
    """The name of the output; None for a record, or for an object that no record names."""
    kind: str | None = None
    key_digest: str | None = None
    subject: str | None = None

    def __str__(self) -> str:
        """One sentence that names the object and the output."""
        about = f"output '{self.output}' of {self.kind} {self.subject or self.key_digest}, " if self.output else ""
        return f"{about}object {self.sha256} {self.detail}"


class Collected(Frozen):
    """What a garbage collection removed: how many objects and records, and the bytes that became free."""

    count: int
    size_bytes: int
    kept_objects: int


def encode(record: Record) -> bytes:
    """The bytes of a record file; they carry their own digest."""
    body = record.model_dump(mode="json")
    return canonical_json({"record": body, "sha256": sha256_bytes(canonical_json(body))}) + b"\n"


def decode(data: bytes) -> Record | None:
    """The record in a record file's bytes, or None where they are not what `encode` wrote."""
    try:
        envelope = json.loads(data)
        body = envelope["record"]
        if envelope["sha256"] != sha256_bytes(canonical_json(body)):
            return None
        return Record.model_validate_json(canonical_json(body))
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
        return None


def read(path: Path, key_digest: str) -> Record | Damage | None:
    """The record in a file, the damage to it, or None where there is no file.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    record = decode(data)
    if record is None or record.digest != key_digest:
        return Damage(reason="record", detail="has a damaged record", sha256=key_digest, key_digest=key_digest)
    return record
