"""What a client is told when its request is refused or fails, in OpenAI's form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from msao_compile.errors import (
    CapacityExceeded,
    DeploymentError,
    InputError,
    MissingTool,
    MsaoError,
    PictureError,
    PromptError,
)
from msao_compile.runtime.sampling import SamplingError

LONGEST_MESSAGE_CHARACTERS = 600
GONE = 499
"""The client left before there was an answer (nginx's number); nobody reads it but the log."""


@dataclass(frozen=True)
class Fault:
    """One refusal: HTTP status, a sentence, the field at fault, a word for programs, and when to try again."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    @property
    def kind(self) -> str:
        """OpenAI's `type` of error."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def body(self) -> dict[str, Any]:
        """The object that OpenAI's clients read."""
        sentence = " ".join(self.message.split())
        if len(sentence) > LONGEST_MESSAGE_CHARACTERS:
            sentence = sentence[:LONGEST_MESSAGE_CHARACTERS] + "…"
        return {"error": {"message": sentence, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers beside it."""
        found = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {**found, "www-authenticate": "Bearer"} if self.status == 401 else found


class Refusal(InputError):
    """A request is refused; `fault` is what its client is told."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


CODES: tuple[tuple[type[MsaoError], tuple[int, str | None, str]], ...] = (
    (PictureError, (400, "messages", "invalid_image")),
    (CapacityExceeded, (400, "messages", "context_length_exceeded")),
    (PromptError, (400, "messages", "invalid_prompt")),
    (SamplingError, (400, None, "invalid_value")),
    (DeploymentError, (500, None, "deployment_damaged")),
    (InputError, (400, None, "invalid_request")),
    (MissingTool, (500, None, "missing_tool")),
    (MsaoError, (500, None, "generation_failed")),
)
"""Of the project's errors the first that fits: status, field, word for programs."""


def fault_of(error: MsaoError) -> Fault:
    """What a client is told of one of the project's errors."""
    if isinstance(error, Refusal):
        return error.fault
    status, param, code = next(rest for kind, rest in CODES if isinstance(error, kind))
    return Fault(status, str(error), param, code)


def encode(content: object) -> bytes:
    """JSON in ASCII, so that no half of a surrogate pair can spoil it."""
    return json.dumps(content, separators=(",", ":")).encode("ascii")
