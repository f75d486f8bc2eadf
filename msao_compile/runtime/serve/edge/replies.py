"""OpenAI's objects: a completion, the chunks of a stream, the list of models; and `msao` beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from msao_compile.runtime.answer import Answer


@dataclass(frozen=True)
class Reply:
    """What all objects of one reply carry; `reason` is given where the server chose the route, not the runtime."""

    id: str
    model: str
    created: int
    reason: str | None = None

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The completion, in one object."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        head = self._head("chat.completion")
        return {**head, "choices": [choice], "usage": usage(answer), "msao": self.account(answer)}

    def chunk(self, delta: dict[str, Any], with_usage: bool, finish: str | None = None) -> dict[str, Any]:
        """A part of a stream; where usage will follow, each part says that it is not there yet."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        empty = {"usage": None} if with_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **empty}

    def last(self, answer: Answer, with_usage: bool) -> dict[str, Any]:
        """The part that says why the answer ended and where its time went."""
        return {**self.chunk({}, with_usage, answer.finish), "msao": self.account(answer)}

    def usage(self, answer: Answer) -> dict[str, Any]:
        """The part after the last."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer)}

    def account(self, answer: Answer) -> dict[str, Any]:
        """Where and why the answer was made there, what crosses, whether all of it is the cloud model's, and times."""
        return {
            "route": answer.route,
            "reason": self.reason or answer.reason,
            "verified": answer.verified,
            "alone": answer.alone,
            "payload": answer.payload,
            "drafts": answer.drafts,
            "timing": asdict(answer.timing),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(answer: Answer) -> dict[str, int]:
    """Tokens of prompt and answer."""
    prompt, completion = answer.prompt_tokens or 0, len(answer.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def models(routes: Mapping[str, Sequence[str]], created: int) -> dict[str, Any]:
    """The list of `/v1/models`, from the names of each one's routes."""
    entry = {"object": "model", "created": created, "owned_by": "msao-compile"}
    return {
        "object": "list",
        "data": [{"id": name, **entry, "msao": {"routes": list(own)}} for name, own in routes.items()],
    }
