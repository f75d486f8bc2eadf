"""What is wrong is told so, and the sessions beside it do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.message import Message

from .talk import LIMIT, PROMPT, A, B, C, Run, alone, ask, code, decode, free, only, prefill, said, verify


def test_reject_needs_the_probabilities_its_drafts_were_drawn_from(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        sampling = {"temperature": 1.0, "seed": 3}
        known = said(await ask(service, prefill(verifier, A, PROMPT, rule="reject", sampling=sampling)))
        flat = np.full((2, tiny.VOCABULARY), 1 / tiny.VOCABULARY)
        wide = np.pad(flat, ((0, 0), (0, 1)))
        for probs in (None, flat[:1], flat[:, :-1], wide, flat * np.nan, -flat, 0 * flat, flat * 1e38):
            assert code(await only(service, verify(A, known, [1, 2], probs))) == "bad_request"
        known += said([await only(service, verify(A, known, [1, 2], flat))])
        known += said([await only(service, verify(A, known, []))])  # a drafter that was unsure at once
        assert len(known) >= 3

    serve(work)


def embedded(model: ModelSession, offset: list[float] | None = None, **changed: Any) -> Message:
    """A prompt of three embedded tokens, with something changed."""
    tensors = {"inputs_embeds": np.ones((1, 3, tiny.HIDDEN), np.float32), "position_ids": np.arange(3)[None]}
    fields = prefill(model, C, "", form="embeds", offset=[0.0] if offset is None else offset).fields
    return Message("prefill", fields, {**tensors, **changed})


WRONG: dict[str, Callable[[ModelSession], Message]] = {
    "draft beyond the vocabulary": lambda model: verify(A, [], [tiny.VOCABULARY]),
    "negative draft": lambda model: verify(A, [], [-1]),
    "too many drafts": lambda model: verify(A, [], [1] * (c.MOST_DRAFTS + 1)),
    "no drafts at all": lambda model: Message("verify", verify(A, [], []).fields),
    "drafts as floats": lambda model: Message("verify", verify(A, [], []).fields, {c.DRAFTS: np.ones(2, np.float32)}),
    "drafts in a matrix": lambda model: Message(
        "verify", verify(A, [], []).fields, {c.DRAFTS: np.ones((1, 2), np.int64)}
    ),
    "another array": lambda model: Message("decode", decode(A, [], 1).fields, {"more": np.ones(2, np.float32)}),
    "negative base": lambda model: verify(A, [], [], base=-1),
    "negative burst": lambda model: verify(A, [], [], burst=-1),
    "huge burst": lambda model: verify(A, [], [], burst=10**9),
    "no hash": lambda model: verify(A, [], [], prefix="none"),
    "no deadline": lambda model: verify(A, [], [], deadline_ms=0),
    "count 0": lambda model: decode(A, [], 0),
    "limit 0": lambda model: prefill(model, C, PROMPT, limit=0),
    "huge limit": lambda model: prefill(model, C, PROMPT, limit=2**40),
    "more than fits": lambda model: prefill(model, C, PROMPT, limit=tiny.CAPACITY),
    "empty prompt": lambda model: prefill(model, C, "  "),
    "half a character": lambda model: prefill(model, C, "\ud800"),
    "a name with a path": lambda model: prefill(model, "../../etc/passwd", PROMPT),
    "a short name": lambda model: prefill(model, "a", PROMPT),
    "unknown field": lambda model: prefill(model, C, PROMPT, more=1),
    "unknown rule": lambda model: prefill(model, C, PROMPT, rule="best"),
    "cold temperature": lambda model: prefill(model, C, PROMPT, sampling={"temperature": -1.0}),
    "no temperature": lambda model: prefill(model, C, PROMPT, sampling={"temperature": float("nan")}),
    "negative seed": lambda model: prefill(model, C, PROMPT, sampling={"seed": -1}),
    "committed beyond the limit": lambda model: prefill(model, C, PROMPT, committed=[1] * 13),
    "committed beyond the vocabulary": lambda model: prefill(model, C, PROMPT, committed=[tiny.VOCABULARY]),
    "negative committed": lambda model: prefill(model, C, PROMPT, committed=[-1]),
    "embeds without arrays": lambda model: prefill(model, C, "", form="embeds"),
    "features without arrays": lambda model: prefill(model, C, "", form="features"),
    "a picture for a model without": lambda model: Message(
        "prefill", prefill(model, C, PROMPT).fields, {"picture000": np.ones(9, np.uint8)}
    ),
    "an array beside a prompt": lambda model: Message(
        "prefill", prefill(model, C, PROMPT).fields, {"input_ids": np.ones(2, np.int64)}
    ),
    "ids beyond the vocabulary": lambda model: Message(
        "prefill", prefill(model, C, "", form="features").fields, {"input_ids": np.full(3, 99)}
    ),
    "an encoder's array twice": lambda model: prefill(model, C, "", form="features", encoded=["a", "a"]),
    "ids as an encoder's array": lambda model: prefill(model, C, "", form="features", encoded=["input_ids"]),
    **{
        what: lambda model, changed=changed: embedded(model, **changed)
        for what, changed in {
            "whole embeddings": {"inputs_embeds": np.ones((1, 3, tiny.HIDDEN), np.int64)},
            "positions for fewer tokens": {"position_ids": np.arange(2)[None]},
            "positions in between": {"position_ids": np.arange(3, dtype=np.float32)[None]},
            "negative positions": {"position_ids": np.full((1, 3), -1)},
            "positions beyond all": {"position_ids": np.full((1, 3), 2**63 - 1)},
            "no offset": {"offset": []},
            "an offset too many": {"offset": [0.0, 0.0]},
        }.items()
    },
    "unknown kind": lambda model: Message("reboot"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_so_and_nobody_notices(serve: Run, verifier: ModelSession, what: str) -> None:
    answer = alone(verifier, PROMPT, 4)

    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        expected = "too_long" if what == "more than fits" else "bad_request"
        assert code(await only(service, WRONG[what](verifier))) == expected
        assert said([await only(service, verify(A, answer[:1], answer[1:3]))]) == answer[1:4]
        assert free(service) == 2

    serve(work)


@pytest.mark.parametrize("shape", [(1, 40, tiny.HIDDEN), (1, 40, 3), (40, tiny.HIDDEN), (2, 40, tiny.HIDDEN)])
@pytest.mark.parametrize("value", [1.0, np.nan, np.inf, 3e38])
def test_embeddings_of_any_kind_spoil_no_other_session(
    serve: Run, verifier: ModelSession, answer: list[int], shape: tuple[int, ...], value: float
) -> None:
    """What is not finite would stay in a row that a mask hides, for the next session that has it."""

    async def work(service: CloudService) -> None:
        tensors = {"inputs_embeds": np.full(shape, value, np.float32), "position_ids": np.arange(40)[None]}
        fields = prefill(verifier, A, "", form="embeds", offset=[0.0]).fields
        replies = await ask(service, Message("prefill", fields, tensors))
        assert replies[-1].kind == ("ready" if value == 1.0 and shape == (1, 40, tiny.HIDDEN) else "error")
        await ask(service, Message("close", {"session": A}))
        for name in (A, B, C):
            assert said(await ask(service, prefill(verifier, name, PROMPT, stream=LIMIT))) == answer

    serve(work)


def test_strange_positions_harm_only_whoever_sent_them(serve: Run, verifier: ModelSession, answer: list[int]) -> None:
    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        for offset in ([], [0.0] * 50, [1e300], [float("nan")], [-5.0]):
            tensors = {"inputs_embeds": np.ones((1, 3, tiny.HIDDEN), np.float32), "position_ids": np.arange(3)[None]}
            fields = prefill(verifier, B, "", form="embeds", offset=offset, stream=5).fields
            both = await asyncio.gather(
                ask(service, Message("prefill", fields, tensors)), ask(service, decode(A, answer[:1], LIMIT - 1))
            )
            assert said(both[1]) == answer[1:]

    serve(work)


def test_another_build_is_refused(serve: Run, verifier: ModelSession) -> None:
    async def work(service: CloudService) -> None:
        for changed in ({"modules": {"decoder": "0" * 64}}, {"tokenizer": "0" * 64}):
            assert code(await only(service, prefill(verifier, A, PROMPT, **changed))) == "mismatch"
        assert free(service) == 3

    serve(work)


FIELD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip
NAMES = st.sampled_from(sorted({
    *c.Prefill.model_fields, *c.Verify.model_fields, *c.Decode.model_fields, *c.Hello.model_fields, "more"
}))  # fmt: skip
ARRAY = st.builds(
    lambda shape, kind, value: np.full(shape, value).astype(kind),
    st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["int64", "float32", "uint8", "bool", "float16", "int32"]),
    st.integers(-3, 60),
)  # fmt: skip
ARRAYS = st.dictionaries(
    st.sampled_from([c.DRAFTS, c.DRAFT_PROBS, "picture000", "inputs_embeds", "position_ids", "input_ids", "x"]), ARRAY,
    max_size=3,
)  # fmt: skip
KINDS = st.sampled_from([*c.REQUESTS, "token", ""])


@settings(max_examples=150, deadline=None)
@given(kind=KINDS, changed=st.dictionaries(NAMES, FIELD, max_size=3), tensors=ARRAYS, whole=st.booleans())
def test_no_message_raises_or_reaches_another_session(
    verifier: ModelSession, answer: list[int], kind: str, changed: dict[str, Any], tensors: dict[str, Any], whole: bool
) -> None:
    """Messages that are nearly right, and any at all, beside a session that goes on."""
    near: dict[str, Message] = {
        "prefill": prefill(verifier, B, PROMPT, stream=2), "verify": verify(B, answer[:1], answer[1:3]),
        "decode": decode(B, answer[:1], 2), "close": Message("close", {"session": B}),
        "hello": Message("hello", {"contract": c.CONTRACT}),
    }  # fmt: skip

    async def work() -> None:
        service = CloudService(verifier, CloudLimits(sessions=3))
        await ask(service, prefill(verifier, A, PROMPT))
        await ask(service, prefill(verifier, B, PROMPT))
        base = near.get(kind) if whole else None
        given_ = Message(kind, changed, tensors)
        if base is not None:
            given_ = Message(kind, {**base.fields, **changed}, {**base.tensors, **tensors})
        if given_.fields.get("session") == A:
            return
        replies, own = await asyncio.gather(ask(service, given_), ask(service, decode(A, answer[:1], 5)))
        assert said(own) == answer[1:6]
        assert replies
        assert [reply.kind for reply in replies[:-1]].count("error") == 0
        if replies[-1].kind == "error":
            assert code(replies[-1]) in {*c.PLAIN, *c.ERRORS}

    asyncio.run(work())
