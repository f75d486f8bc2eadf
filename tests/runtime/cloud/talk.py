"""Talking to a cloud in this process, message by message."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import tiny

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.cloud.service import CloudService
from msao_compile.runtime.generate import tokens
from msao_compile.runtime.rules import choose
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.message import Message, pack, unpack

A, B, C = "session-a", "session-b", "session-c"
PROMPT, OTHER = tiny.prompt(4), tiny.prompt(5)
LIMIT = 12
Run = Callable[[Callable[[CloudService], Coroutine[Any, Any, Any]]], Any]


def prefill(session: ModelSession, name: str, prompt: str, **fields: Any) -> Message:
    """The message that opens a session with a prompt."""
    model = session.model
    given = {"session": name, "form": "prompt", "prompt": prompt, "modules": dict(model.components),
             "tokenizer": model.tokenizer_digest, "limit": 12}  # fmt: skip
    return Message("prefill", {**given, **fields})


def verify(
    name: str, known: Sequence[int], drafts: Sequence[int], probs: np.ndarray | None = None, **fields: Any
) -> Message:
    """A round of drafts behind what is known."""
    tensors: dict[str, np.ndarray] = {c.DRAFTS: np.asarray(drafts, np.int64)}
    if probs is not None:
        tensors[c.DRAFT_PROBS] = np.asarray(probs, np.float32)
    given = {"session": name, "round": 1, "base": len(known), "prefix": c.prefix_hash(known)}
    return Message("verify", {**given, **fields}, tensors)


def decode(name: str, known: Sequence[int], count: int, **fields: Any) -> Message:
    """Asks for more tokens behind what is known."""
    return Message(
        "decode", {"session": name, "base": len(known), "prefix": c.prefix_hash(known), "count": count, **fields}
    )


async def ask(service: CloudService, message: Message) -> list[Message]:
    """Every reply, as it crosses."""
    return [unpack(pack(reply)) async for reply in service.handle(unpack(pack(message)))]


async def only(service: CloudService, message: Message) -> Message:
    """The one reply there is."""
    [reply] = await ask(service, message)
    return reply


def said(replies: Sequence[Message]) -> list[int]:
    """The tokens of a stream, whose positions follow each other."""
    found: list[int] = []
    last = None
    for reply in replies:
        if reply.kind == "token":
            assert last is None or reply.fields["position"] == last + 1
            last = reply.fields["position"]
            found.append(reply.fields["id"])
        elif c.TOKENS in reply.tensors:
            found += reply.tensors[c.TOKENS].tolist()
    return found


def code(reply: Message) -> str:
    """What an error says it is."""
    assert reply.kind == "error", reply
    return str(reply.fields["code"])


def alone(session: ModelSession, prompt: str, limit: int, parameters: SamplingParameters | None = None) -> list[int]:
    """The answer of the model by itself, token by token."""
    parameters = parameters or SamplingParameters()
    logits, talk = session.prefill(session.prepare(prompt, ()), {}, Clock())
    if parameters.greedy:
        return list(tokens(session, logits[-1], talk, parameters, limit))
    found: list[int] = []
    row = logits[-1]
    while len(found) < limit:
        token = choose(row, len(found), parameters, session.tokenizer.vocab_size)
        if token in session.tokenizer.eos_token_ids:
            break
        found.append(token)
        row = session.extend(np.asarray([token]), talk, Clock())[-1]
    return found


def free(service: CloudService) -> int:
    """Rows that nobody has."""
    rows = []
    while (row := service.rows.open()) is not None:
        rows.append(row)
    for row in rows:
        service.rows.close(row)
    return len(rows)
