"""What edge and cloud say to each other: operations, their fields and arrays, and the hash that keys a round.

A session is one answer that a verifier writes. What it committed is the only truth: the client's list of committed
tokens is always a beginning of the cloud's. Positions count tokens of the answer, the prompt left out.

    hello    -> welcome                         once a connection: contract, modules, tokenizer, limits
    prefill  -> ready [token... done]           opens a session, anew or with what was committed; may stream on
    verify   -> verified                        drafts from `base` on; what is committed from `base` on comes back
             or judged token... done            the same, where drafts were refused and the cloud goes on meanwhile
    decode   -> token... done                   goes on without drafts
    close    -> closed                          forgets the session; of one that is not known as well
    anything -> error                           with a code of `msao_compile.errors.RemoteError`

Every operation may be sent twice: a verify that was answered before gives what is committed from its base on and runs
nothing. A verify whose drafts go beyond what is committed, from a base before its end, first agrees with what is
committed there: so a client may draft on from its own guess before it knows the answer. Where they disagree the reply
is `stale` and nothing ran.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from msao_compile.errors import (
    Busy,
    CapacityExceeded,
    ContractMismatch,
    DeadlineExceeded,
    InputError,
    LinkDown,
    MsaoError,
    Refused,
    RemoteError,
    SessionLost,
    StageError,
)
from msao_compile.manifest.frozen import Frozen, Sha256
from msao_compile.runtime.wire.message import Message

CONTRACT = "msao/1"
TOKENS, DRAFTS, DRAFT_PROBS = "tokens", "drafts", "draft_probs"
PICTURE = "picture"
"""Begins the name of a tensor that holds one compressed picture, uint8 [bytes]: picture000, picture001, ..."""
MOST_DRAFTS = 64
"""So many drafts a round may hold."""
MOST_TOKENS = 1 << 20

Rule = Literal["greedy", "gumbel", "reject"]
Finish = Literal["stop", "length"]
Session = Annotated[str, Field(pattern=r"^[0-9a-zA-Z_-]{8,64}$")]
Count = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Deadline = Annotated[int, Field(ge=1, le=86_400_000)]
Wait = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Components = dict[str, Sha256]
Pixels = Annotated[int, Field(ge=0, le=1 << 16)]


class Sampling(Frozen):
    """As `sampling.SamplingParameters`, which judges the values."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False


class Hello(Frozen):
    """Opens a connection; `model` None asks for the one that is served."""

    contract: str
    model: str | None = None


class Limits(Frozen):
    """What the cloud takes at most."""

    request_bytes: int
    picture_pixels: int
    sessions: int
    draft_tokens: int


class Welcome(Frozen):
    """What the cloud serves."""

    contract: str
    model: str
    modules: Components
    tokenizer: Sha256
    vocab_size: int
    kv_layout: str
    kv_capacity: int
    rules: tuple[Rule, ...]
    limits: Limits


class Prefill(Frozen):
    """Opens a session by one `form`: `prompt` (text and compressed pictures), `features` (ids and what encoders made),
    or `embeds` (merged embeddings and positions), the latter two of one model that is split.

    `prompt` is the user's words, or messages; `shown` the width and height in which each picture is to be seen, one
    after the other, where some came as thumbnails: 0 and 0 for one that came whole. `committed` is what an earlier
    session of this answer committed; `limit` counts it too, and None takes as many tokens as fit. `stream` > 0: after
    `ready`, so many tokens at most come as `token`, each as soon as it is known; None stands for all. `until_asked`
    ends that at the first round to verify.
    """

    session: Session
    form: Literal["prompt", "features", "embeds"]
    modules: Components
    tokenizer: Sha256
    limit: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    sampling: Sampling = Sampling()
    rule: Rule = "greedy"
    committed: tuple[Token, ...] = ()
    stream: Count | None = 0
    until_asked: bool = False
    prompt: str | tuple[dict[str, Any], ...] = ""
    shown: tuple[Pixels, ...] = ()
    encoded: tuple[str, ...] = ()
    offset: tuple[float, ...] = ()
    deadline_ms: Deadline | None = None


class Ready(Frozen):
    """The prompt is known; `tokens` [n] int64 are the answer's tokens from `base` on, which is how many were sent.

    `limit` is how long the answer may be; `spent_ms` all the time this took in the cloud, waiting included;
    `queue_ms` and `step_wait_ms` how long prompts, and steps of answers, waited lately for those of others.
    """

    session: Session
    base: Count
    prompt_tokens: Count
    limit: Count
    modules_ms: dict[str, float]
    spent_ms: float = 0.0
    queue_ms: Wait = 0.0
    step_wait_ms: Wait = 0.0
    finish: Finish | None = None


class Verify(Frozen):
    """`drafts` [K] int64 for positions `base`...; `prefix` is `prefix_hash` of the committed tokens before them.

    The verifier's own token follows the drafts it keeps, and `burst` more that it decodes. `drafts` from `base` on may
    begin with tokens that are committed by now, or that other rounds under way have too. Rule `reject` sends
    `draft_probs` [K, vocabulary] float32, the distribution each draft was drawn from.

    `rest`: where drafts were refused, the cloud decodes so many tokens at most, and tells each as soon as it is known,
    until the next round of this session comes.
    """

    session: Session
    round: Count
    base: Count
    prefix: Sha256
    burst: Annotated[int, Field(ge=0, le=MOST_DRAFTS)] = 0
    rest: Annotated[int, Field(ge=0, le=MOST_DRAFTS)] = 0
    deadline_ms: Deadline | None = None


class Verified(Frozen):
    """`tokens` [n] int64: all that is committed from `base` on. `accepted` of `drafted` drafts were kept; `verify_ms`
    is all the time this took in the cloud, waiting included.

    `stale`: the drafts do not follow what is committed, and nothing ran; `base` is then where the two sides still
    agreed, at most the base that was sent.
    """

    session: Session
    round: Count
    base: Count
    drafted: Count
    accepted: Count
    stale: bool = False
    verify_ms: float = 0.0
    finish: Finish | None = None


class Decode(Frozen):
    """`count` tokens more from `base` on, each as soon as it is known."""

    session: Session
    base: Count
    prefix: Sha256
    count: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    deadline_ms: Deadline | None = None


class TokenIs(Frozen):
    """One committed token."""

    session: Session
    position: Count
    id: Token


class Done(Frozen):
    """A stream ended: the answer did where `finish` says so."""

    session: Session
    known: Count
    finish: Finish | None = None


class Close(Frozen):
    """Forgets a session."""

    session: Session


class Closed(Frozen):
    """It is forgotten; `known` says whether there was one."""

    session: Session
    known: bool


class Fault(Frozen):
    """What went wrong, as an error's code and sentence."""

    code: str
    message: str
    retry_after_ms: int = 0


@dataclass(frozen=True)
class Operation:
    """One kind of message: its fields, and for each array its type and rank."""

    fields: type[Frozen]
    tensors: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    open_tensors: bool = False
    """Arrays named by the model's own inputs may come too."""


REQUESTS: dict[str, Operation] = {
    "hello": Operation(Hello),
    "prefill": Operation(Prefill, open_tensors=True),
    "verify": Operation(Verify, {DRAFTS: ("int64", 1), DRAFT_PROBS: ("float32", 2)}),
    "decode": Operation(Decode),
    "close": Operation(Close),
}
REPLIES: dict[str, Operation] = {
    "welcome": Operation(Welcome),
    "ready": Operation(Ready, {TOKENS: ("int64", 1)}),
    "verified": Operation(Verified, {TOKENS: ("int64", 1)}),
    "judged": Operation(Verified, {TOKENS: ("int64", 1)}),
    "token": Operation(TokenIs),
    "done": Operation(Done),
    "closed": Operation(Closed),
    "error": Operation(Fault),
}
LAST = frozenset(("welcome", "verified", "done", "closed", "error"))
"""Ends the replies to a request; `ready` does where nothing was to be streamed."""
ERRORS: dict[str, type[RemoteError]] = {
    kind.code: kind for kind in (LinkDown, Busy, SessionLost, DeadlineExceeded, Refused, ContractMismatch, RemoteError)
}

PLAIN: dict[str, type[MsaoError]] = {"too_long": CapacityExceeded, "bad_request": InputError, "failed": StageError}
"""Faults of a request and of a module, which are the same on either side."""


def read(message: Message, known: Mapping[str, Operation]) -> Any:
    """The fields of a message, checked; its arrays are checked too.

    Raises:
        InputError: the kind is none of `known`, or a field or an array is missing, unknown or of another form.
    """
    if message.kind not in known:
        raise InputError(f"a message of kind {message.kind!r} is not known; known: {', '.join(known)}")
    operation = known[message.kind]
    try:
        fields = operation.fields.model_validate(message.fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its fields"
        raise InputError(f"{message.kind}: {where}: {first['msg']}") from error
    for name, value in message.tensors.items():
        if name not in operation.tensors:
            if not operation.open_tensors:
                raise InputError(f"{message.kind}: an array {name!r} is not part of {CONTRACT}")
            continue
        dtype, rank = operation.tensors[name]
        if str(value.dtype) != dtype or value.ndim != rank:
            raise InputError(
                f"{message.kind}: {name} is {value.dtype} of rank {value.ndim} where {CONTRACT} has {dtype} of {rank}"
            )
    return fields


def write(kind: str, fields: Frozen, tensors: Mapping[str, np.ndarray] | None = None) -> Message:
    """A message of an operation."""
    return Message(kind, fields.model_dump(mode="json"), dict(tensors or {}))


def fault(error: BaseException) -> Message:
    """An error as it crosses: its code where it has one, else what kind of fault it is."""
    plain = next((code for code, kind in PLAIN.items() if isinstance(error, kind)), "internal")
    code = error.code if isinstance(error, RemoteError) else plain
    return write("error", Fault(code=code, message=str(error), retry_after_ms=getattr(error, "retry_after_ms", 0)))


def raise_fault(message: Message) -> None:
    """Raise what an `error` message tells; any other message passes.

    Raises:
        RemoteError: of the class that the code names. InputError: the request was not right. StageError: a module
            failed there.
    """
    if message.kind != "error":
        return
    told: Fault = read(message, REPLIES)
    if told.code in PLAIN:
        raise PLAIN[told.code](told.message)
    kind = ERRORS.get(told.code, RemoteError)
    raise Busy(told.message, told.retry_after_ms) if kind is Busy else kind(told.message)


def prefix_hash(tokens: Sequence[int]) -> str:
    """What keys a round: SHA-256 of the committed tokens before it, as little-endian int64."""
    return hashlib.sha256(np.asarray(tokens, "<i8").tobytes()).hexdigest()
