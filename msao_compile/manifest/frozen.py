"""The ground that every manifest model stands on: frozen data, paths that stay inside, digests."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

NEWER_MINOR = "newer minor"  # the validation context in which fields that are unknown here are left out


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ":" in parts[0] or ".." in parts:
        raise ValueError(f"path {path!r} leaves the deployment folder: only relative paths below it are allowed")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Frozen(BaseModel):
    """Data that never changes after it was read: nothing is converted, unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, content: Any, info: ValidationInfo) -> Any:
        """JSON's arrays as tuples, which strictness would refuse; a newer minor's fields are left out."""
        if not isinstance(content, dict):
            return content
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
            if info.context != NEWER_MINOR or name in cls.model_fields
        }


class FileRef(Frozen):
    """A file below the deployment folder and what its bytes must be."""

    path: RelativePath
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
