"""The name of a request to the store: everything that could change the bytes that come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from msao_compile.manifest.digest import canonical_json, sha256_bytes

Word = Annotated[str, Field(pattern=r"\A[a-z][a-z0-9_-]{0,63}\z")]


class Key(BaseModel):
    """What is asked for: kind tag, stage and its version, plain JSON fields such as input digests and tool versions.

    Two keys ask for the same exactly when their digests are equal. The field `subject`, where there is one, says in
    words what the request is about ("edge/vision_encoder") and lets `explain.nearest` find the request that this one
    replaces. It changes nothing in what comes out, so it is no part of the digest: a renamed model is not built again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Word
    stage: Word
    version: Annotated[int, Field(ge=1)]
    fields: Mapping[str, JsonValue]

    @model_validator(mode="after")
    def _has_a_digest(self) -> Self:
        taken = {"stage", "version"} & set(self.fields)
        if taken:
            raise ValueError(f"fields may not be called {' or '.join(sorted(taken))}: the key has its own")
        canonical_json(self.fields)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the key without its subject, kind tag first."""
        asked = {name: value for name, value in self.fields.items() if name != "subject"}
        return sha256_bytes(canonical_json([self.kind, self.stage, self.version, asked]))

    @property
    def subject(self) -> str | None:
        """What the request is about, in words."""
        subject = self.fields.get("subject")
        return subject if isinstance(subject, str) else None

    @property
    def told(self) -> dict[str, JsonValue]:
        """Stage, version and fields as one mapping: what `explain` compares."""
        return {"stage": self.stage, "version": self.version, **self.fields}
