"""What edge and cloud may say to each other: read back as it was written, and anything else refused."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msao_compile.errors import (
    Busy,
    CapacityExceeded,
    ContractMismatch,
    DeadlineExceeded,
    InputError,
    LinkDown,
    Refused,
    RemoteError,
    SessionLost,
    StageError,
)
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.message import Message, pack, unpack

SHA = "0123456789abcdef" * 4
EVERY: dict[str, tuple[Any, dict[str, np.ndarray]]] = {
    "hello": (c.Hello(contract=c.CONTRACT), {}),
    "prefill": (c.Prefill(session="session-a", form="prompt", modules={"decoder": SHA}, tokenizer=SHA, limit=9,
                          committed=(1, 2), prompt="why?"), {"anything": np.zeros((2, 2), np.float32)}),
    "verify": (c.Verify(session="session-a", round=1, base=2, prefix=SHA), {c.DRAFTS: np.arange(3)}),
    "decode": (c.Decode(session="session-a", base=2, prefix=SHA, count=4, deadline_ms=9), {}),
    "close": (c.Close(session="session-a"), {}),
    "ready": (c.Ready(session="session-a", limit=8, base=0, prompt_tokens=4, modules_ms={"decoder": 1.0}),
              {c.TOKENS: np.arange(1)}),
    "verified": (c.Verified(session="session-a", round=1, base=2, drafted=3, accepted=2, finish="stop"),
                 {c.TOKENS: np.arange(3)}),
    "judged": (c.Verified(session="session-a", round=1, base=2, drafted=3, accepted=1), {c.TOKENS: np.arange(2)}),
    "token": (c.TokenIs(session="session-a", position=3, id=7), {}),
    "done": (c.Done(session="session-a", known=5, finish="length"), {}),
    "closed": (c.Closed(session="session-a", known=True), {}),
    "error": (c.Fault(code="busy", message="later", retry_after_ms=5), {}),
}  # fmt: skip
ALL = {**c.REQUESTS, **c.REPLIES}


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_written_is_read_back(kind: str) -> None:
    fields, tensors = EVERY[kind]
    message = unpack(pack(c.write(kind, fields, tensors)))
    assert c.read(message, ALL) == fields
    for name, value in tensors.items():
        assert np.array_equal(message.tensors[name], value)


def test_every_kind_but_one_is_tried_and_ends_are_among_them() -> None:
    assert set(EVERY) | {"welcome"} == set(ALL)
    assert set(c.REPLIES) >= c.LAST


@pytest.mark.parametrize("kind", EVERY)
def test_a_field_too_many_or_too_few_is_refused(kind: str) -> None:
    fields, tensors = EVERY[kind]
    whole = fields.model_dump(mode="json")
    with pytest.raises(InputError, match=f"{kind}: more"):
        c.read(Message(kind, {**whole, "more": 1}, tensors), ALL)
    needed = next(name for name, field in type(fields).model_fields.items() if field.is_required())
    whole.pop(needed)
    with pytest.raises(InputError, match=f"{kind}: {needed}"):
        c.read(Message(kind, whole, tensors), ALL)


@pytest.mark.parametrize(
    "wrong", [np.arange(3, dtype=np.int32), np.arange(3, dtype=np.float32), np.zeros((1, 3), np.int64), np.int64(3)]
)
def test_an_array_of_another_type_or_rank_is_refused(wrong: np.ndarray) -> None:
    message = c.write("verify", EVERY["verify"][0], {c.DRAFTS: np.asarray(wrong)})
    with pytest.raises(InputError, match=f"{c.DRAFTS} is .* where {c.CONTRACT} has int64 of 1"):
        c.read(message, c.REQUESTS)


def test_a_reply_is_no_request() -> None:
    with pytest.raises(InputError, match="'token' is not known; known: hello"):
        c.read(c.write("token", EVERY["token"][0]), c.REQUESTS)


@pytest.mark.parametrize("kind", [LinkDown, SessionLost, DeadlineExceeded, Refused, ContractMismatch, RemoteError])
def test_a_fault_is_raised_there_as_what_it_was_here(kind: type[RemoteError]) -> None:
    with pytest.raises(kind, match="what is wrong") as told:
        c.raise_fault(unpack(pack(c.fault(kind("what is wrong")))))
    assert type(told.value) is kind


def test_a_busy_cloud_tells_when_to_come_back() -> None:
    with pytest.raises(Busy) as told:
        c.raise_fault(unpack(pack(c.fault(Busy("no room", 250)))))
    assert told.value.retry_after_ms == 250


@pytest.mark.parametrize(
    ("error", "kind"),
    [(InputError("a"), InputError), (CapacityExceeded("a"), InputError), (StageError("a"), StageError)],
)
def test_what_has_no_code_of_its_own_crosses_as_what_the_client_can_do(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        c.raise_fault(c.fault(error))


def test_a_code_that_is_not_known_is_still_an_error() -> None:
    with pytest.raises(RemoteError, match="odd"):
        c.raise_fault(c.write("error", c.Fault(code="new", message="odd")))
    c.raise_fault(c.write("closed", c.Closed(session="session-a", known=True)))


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_a_prefix_is_hashed_as_little_endian_words_of_eight_bytes(tokens: list[int]) -> None:
    assert c.prefix_hash(tokens) == hashlib.sha256(struct.pack(f"<{len(tokens)}q", *tokens)).hexdigest()
    assert c.prefix_hash(tokens) != c.prefix_hash([*tokens, 0])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2), max_leaves=4,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(EVERY)), data=st.data())
def test_fields_of_any_value_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    fields, tensors = EVERY[kind]
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(type(fields).model_fields)), PLAIN, max_size=3))
    message = Message(kind, {**fields.model_dump(mode="json"), **changed}, tensors)
    with suppress(InputError):
        assert isinstance(c.read(message, ALL), type(fields))
