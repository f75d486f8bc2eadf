"""Requests that hypothesis makes up: every one is answered, and a session beside them never notices.

`FUZZ=10000 python -m pytest tests/runtime/serve/cloud/test_fuzz.py` tries ten times as many (`make fuzz`).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from answering import INPUTS, Answering, prefill, said, verify
from grpc import aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from msao_compile.runtime.bridge import Bridge
from msao_compile.runtime.serve.cloud.launch import CloudOptions, CloudServer
from msao_compile.runtime.serve.cloud.served import Served
from msao_compile.runtime.wire.contract import ERRORS, LAST, REPLIES, read
from msao_compile.runtime.wire.kserve.codec import decode_reply
from msao_compile.runtime.wire.kserve.connect import connect

COUNT = int(os.environ.get("FUZZ", "1000"))
CODES = {*ERRORS, "bad_request"} - {"internal"}
OPERATIONS = ["hello", "prefill", "verify", "decode", "close", "dance"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["session", "base", "prefix", "round", "count", "limit", "form", "modules", "tokenizer", "contract", "stream"]
GOOD = {
    "session": st.just("fuzzed-session"),
    "prefix": st.just("ab" * 32),
    "tokenizer": st.just("ab" * 32),
    "modules": st.just({"decoder": "ab" * 32}),
    "form": st.just("prompt"),
    "contract": st.just("msao/1"),
}
FIELDS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4) | st.fixed_dictionaries(
    GOOD, optional={name: st.integers(-1, 9) | JSON for name in ("base", "round", "count", "limit", "stream")}
)
ARRAY = st.tuples(
    st.sampled_from(["drafts", "draft_probs", "fields", "picture000", "pixel_values", "x", ""]),
    st.sampled_from(["INT64", "FP32", "UINT8", "BOOL", "FP16", "BYTES", "FP64", "?"]),
    st.lists(st.integers(-2, 4) | st.just(2**62), max_size=4),
    st.binary(max_size=64),
)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """A ModelInferRequest, right in some parts."""
    request = service_pb2.ModelInferRequest(
        model_name=draw(st.just("m") | st.text(max_size=5)), id=draw(st.text(max_size=150))
    )
    request.parameters["operation"].string_param = draw(st.sampled_from(OPERATIONS) | st.text(max_size=9))
    request.parameters["contract"].string_param = draw(st.just("msao/1") | st.text(max_size=9))
    content = draw(FIELDS.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=64))
    arrays = [("fields", "UINT8", [len(content)], content), *draw(st.lists(ARRAY, max_size=3))]
    for name, datatype, shape, raw in arrays:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    if draw(st.booleans()) and draw(st.booleans()):
        del request.raw_input_contents[-1]
    return request


class Cloud:
    """A server, a raw stream to it, and a session of another client beside it."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        bridge.run(self._start())

    async def _start(self) -> None:
        self.server = CloudServer(Served("m", Answering().handle, INPUTS), CloudOptions())
        await self.server.start()
        self.channel = aio.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.stream = service_pb2_grpc.GRPCInferenceServiceStub(self.channel).ModelStreamInfer()
        self.link = await connect(f"grpc://127.0.0.1:{self.server.port}")
        await said(self.link, prefill("beside-them"))
        self.committed = [4]

    async def send(self, request: Any) -> list[Any]:
        """The replies to a request, up to the last."""
        await self.stream.write(request)
        replies = []
        while not replies or not replies[-1].last:
            response = (await asyncio.wait_for(self.stream.read(), 60)).infer_response
            assert response.id == request.id
            replies.append(decode_reply(response))
        return replies

    async def beside(self) -> None:
        """One round of the other client's session."""
        (verified,) = await said(self.link, verify("beside-them", self.committed, [4 + len(self.committed)]))
        new = verified.tensors["tokens"].tolist()
        assert new == [4 + len(self.committed), 5 + len(self.committed)]
        self.committed += new

    async def stop(self) -> None:
        await self.link.close()
        await self.channel.close()
        await self.server.stop()


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    made = Cloud(Bridge())
    yield made
    made.bridge.run(made.stop())


@settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests())
def test_whatever_is_sent_is_answered_and_others_go_on(cloud: Cloud, request: Any) -> None:
    replies = cloud.bridge.run(cloud.send(request))
    for reply in replies:
        if reply.message is not None:
            assert reply.message.kind in REPLIES
            told = read(reply.message, REPLIES)
            assert reply.message.kind != "error" or told.code in CODES, told
    assert replies[-1].message is None or replies[-1].message.kind in LAST | {"ready"}
    if len(cloud.committed) < 400:
        cloud.bridge.run(cloud.beside())


@settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200), port=st.sampled_from(["port", "http_port"]))
def test_raw_bytes_at_a_port_harm_nobody(cloud: Cloud, content: bytes, port: str) -> None:
    with socket.create_connection(("127.0.0.1", getattr(cloud.server, port)), timeout=60) as connection:
        connection.sendall(content)
    if len(cloud.committed) < 800:
        cloud.bridge.run(cloud.beside())
