"""The wire contract: bytes and back, and what is refused."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from msao_compile.errors import InputError
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import MAGIC, Message, pack, unpack

DTYPES = [np.dtype(name) for name in ("float32", "float16", "int64", "int32", "uint8", "bool")]
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda kind: arrays.arrays(kind, SHAPES))
TENSORS = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=4)
PLAIN = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_size=4
)
EXAMPLE = Message("features", {"limit": 3}, {"ids": np.arange(3), "features": np.ones((2, 2), np.float32)})


def of(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return MAGIC + struct.pack("<I", len(text)) + text + body


def with_tensor(dtype: object, shape: object, body: bytes = bytes(64)) -> bytes:
    return of({"kind": "k", "fields": {}, "tensors": [{"name": "t", "dtype": dtype, "shape": shape}]}, body)


@settings(deadline=None, max_examples=60)
@given(kind=st.text(max_size=8), fields=PLAIN, tensors=TENSORS)
def test_every_message_comes_back_as_it_was(kind: str, fields: dict, tensors: dict) -> None:
    back = unpack(pack(Message(kind, fields, tensors)))
    assert (back.kind, back.fields, list(back.tensors)) == (kind, fields, list(tensors))
    for name, sent in tensors.items():
        got = back.tensors[name]
        assert (got.dtype, got.shape, got.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())


def test_a_message_without_anything_comes_back() -> None:
    assert unpack(pack(Message(""))) == Message("")


def test_an_array_that_is_not_contiguous_arrives_in_order() -> None:
    sent = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert np.array_equal(unpack(pack(Message("k", {}, {"t": sent}))).tensors["t"], sent)


@pytest.mark.parametrize("length", range(len(pack(EXAMPLE))))
def test_a_message_cut_off_anywhere_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="MSA1 mark|damaged header|cut off"):
        unpack(pack(EXAMPLE)[:length])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "MSA1 mark"),
        (b"HTTP/1.1 400", "MSA1 mark"),
        (of(b"\xff\xfe"), "damaged header"),
        (of([1, 2]), "damaged header"),
        (of({"fields": {}, "tensors": []}), "damaged header"),
        (of({"kind": "k", "fields": {}, "tensors": [{"name": "t"}]}), "damaged header"),
        (with_tensor("float32", "no"), "damaged header"),
        (with_tensor("float32", None), "damaged header"),
        (with_tensor("float32", [-1, -4]), "cannot cross"),
        (with_tensor("float32", [2, -1]), "cannot cross"),
        (with_tensor("object", [1]), "cannot cross"),
        (with_tensor("complex64", [1]), "cannot cross"),
        (with_tensor("O8", [1]), "cannot cross"),
        (with_tensor("float32", [17]), "cut off inside tensor 't'"),
        (with_tensor("float32", [2**62, 4]), "cut off|cannot cross"),
        (with_tensor("uint8", [2**32, 2**32]), "cut off|cannot cross"),
        (with_tensor("uint8", [2**40, 2**40]), "cut off|cannot cross"),
    ],
)
def test_a_message_that_lies_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        unpack(content)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60))
def test_any_other_bytes_are_refused_in_one_way(body: bytes) -> None:
    with pytest.raises(InputError):
        unpack(MAGIC + body)


def test_the_loopback_counts_the_bytes_of_both_directions() -> None:
    traffic, reply = Traffic(), Message("token", {"id": 7})

    async def twice(message: Message) -> AsyncIterator[Message]:
        yield reply
        yield reply

    async def all_of(link: Loopback) -> list[Message]:
        return [answer async for answer in link.call(EXAMPLE, traffic)]

    answers = asyncio.run(all_of(Loopback(twice)))
    assert answers == [reply, reply]
    assert (traffic.up, traffic.down) == (len(pack(EXAMPLE)), 2 * len(pack(reply)))


@pytest.mark.parametrize("shape", [[1e999], [0, 2**70], [1] * 100, [1.5], "12", [True], [-1], [None], {"0": 1}, 4])
def test_a_shape_of_any_kind_is_refused(shape: object) -> None:
    with pytest.raises(InputError, match="cannot cross the wire|damaged header"):
        unpack(with_tensor("int64", shape))


def test_a_header_as_deep_as_can_be_is_refused() -> None:
    with pytest.raises(InputError, match="damaged header"):
        unpack(of(b'{"kind":"k","tensors":[],"fields":' + b"[" * 200_000 + b"]" * 200_000 + b"}"))


@settings(deadline=None, max_examples=200)
@given(at=st.integers(0, 200), value=st.binary(min_size=1, max_size=4))
def test_bytes_that_were_changed_give_a_message_or_are_refused(at: int, value: bytes) -> None:
    content = pack(EXAMPLE)
    with suppress(InputError):
        assert isinstance(unpack(content[:at] + value + content[at + len(value) :]), Message)
