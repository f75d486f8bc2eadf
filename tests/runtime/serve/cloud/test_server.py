"""What a cloud server does: metadata, metrics, and a typed error for each client and request that is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import certificates
import numpy as np
import pytest
from answering import INPUTS, Answering, begun, prefill, said
from grpc import aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from msao_compile.errors import Busy, InputError, LinkDown, Refused
from msao_compile.runtime.serve.cloud.launch import CloudOptions, CloudServer
from msao_compile.runtime.serve.cloud.served import Bounds, Served
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.contract import Hello, write
from msao_compile.runtime.wire.kserve.codec import decode_reply, encode_request
from msao_compile.runtime.wire.kserve.connect import connect, greet, open_link
from msao_compile.runtime.wire.kserve.options import LinkOptions
from msao_compile.runtime.wire.message import Message

TOKEN = "a-token-of-some-length"
HELLO = write("hello", Hello(contract="msao/1"))


@asynccontextmanager
async def cloud(**options: Any) -> AsyncIterator[CloudServer]:
    server = CloudServer(Served("m", Answering().handle, INPUTS), CloudOptions(**options))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def address(server: CloudServer, kind: str) -> str:
    return f"{kind}://127.0.0.1:{server.http_port if kind.startswith('http') else server.port}"


async def lives(server: CloudServer, kind: str = "grpc", options: LinkOptions | None = None) -> None:
    link = await connect(address(server, kind), options)
    await link.close()


def go(case: Any) -> None:
    asyncio.run(asyncio.wait_for(case, 120))


@pytest.mark.parametrize("kind", ["grpc", "http"])
@pytest.mark.parametrize("token", [None, "another-token-of-length", TOKEN[:-1], TOKEN + "x"])
def test_a_wrong_token_is_refused(kind: str, token: str | None, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"some-other-one-here\n{TOKEN}\n")

    async def case() -> None:
        async with cloud(token_file=file) as server:
            with pytest.raises(Refused, match="token"):
                await connect(address(server, kind), LinkOptions(token=token))
            direct = open_link(address(server, kind), LinkOptions(token=token, model="m"))
            with pytest.raises(Refused, match="token"):
                await greet(direct)
            await direct.close()
            await lives(server, kind, LinkOptions(token=TOKEN))

    go(case())


def test_metrics_ask_for_the_token_and_health_does_not(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(TOKEN)

    async def case() -> None:
        async with cloud(token_file=file) as server, aiohttp.ClientSession(address(server, "http")) as web:
            statuses = {path: (await web.get(path)).status for path in ("/metrics", "/v2", "/v2/models/m")}
            assert set(statuses.values()) == {401}
            assert (await web.get("/v2/health/ready")).status == 200

    go(case())


@pytest.mark.parametrize("words", ["", "short\n", "with-ünlaut-in-it-somewhere"])
def test_a_file_of_bad_tokens_is_refused_at_start(words: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(words, "utf-8")
    with pytest.raises(InputError, match="token"):
        CloudServer(Served("m", Answering().handle), CloudOptions(token_file=file))


@pytest.mark.parametrize("kind", ["grpcs", "https"])
def test_a_trusted_certificate_is_taken_and_others_are_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    good, expired = certificates.write(tmp_path), certificates.write(tmp_path / "old", days=-1)

    async def case() -> None:
        async with cloud(certificate=good) as server:
            await lives(server, kind, LinkOptions(roots=good.chain))
            with pytest.raises(Refused, match="certificate"):
                await connect(address(server, kind))
            with pytest.raises((LinkDown, Refused)):
                await connect(address(server, kind.rstrip("s")))
        async with cloud(certificate=expired) as server:
            with pytest.raises(Refused, match="certificate"):
                await connect(address(server, kind), LinkOptions(roots=expired.chain))

    go(case())


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_request_above_the_bound_is_refused(kind: str) -> None:
    async def case() -> None:
        async with cloud(bounds=Bounds(request_bytes=100_000)) as server:
            link = await connect(address(server, kind))
            for size in (110_000, 150_000):
                with pytest.raises(InputError, match=r"100000 are taken|larger than"):
                    await said(link, prefill("session-1", tensors={"picture000": np.zeros(size, np.uint8)}))
            with pytest.raises((InputError, LinkDown), match="larger than|went away"):
                await said(link, prefill("session-1", tensors={"picture000": np.zeros(5_000_000, np.uint8)}))
            await greet(link)
            await link.close()

    go(case())


def test_a_link_sends_nothing_above_its_own_bound() -> None:
    async def case() -> None:
        async with cloud() as server:
            for kind in ("grpc", "http"):
                link = await connect(address(server, kind), LinkOptions(message_bytes=10_000))
                with pytest.raises(InputError, match="10000 may be sent"):
                    await said(link, prefill("session-1", tensors={"picture000": np.zeros(20_000, np.uint8)}))
                await link.close()

    go(case())


def test_too_many_requests_and_connections_are_told_to_wait() -> None:
    async def case() -> None:
        async with cloud(bounds=Bounds(requests=2, connections=1)) as server:
            link = await connect(address(server, "grpc"))
            slow = [await begun(link, prefill(f"session-{at}", stream=5, prompt="0.2")) for at in "12"]
            with pytest.raises(Busy, match="2 requests") as told:
                await greet(link)
            assert told.value.retry_after_ms == 200
            with pytest.raises(Busy, match="connections"):
                await connect(address(server, "grpc"))
            assert [len(answer) for answer in await asyncio.gather(*slow)] == [7, 7]
            await link.close()

    go(case())


@pytest.mark.parametrize(
    "garbage", [b"\0" * 64, b"GET / HTTP/9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500]
)
def test_raw_garbage_leaves_the_server_alive(garbage: bytes) -> None:
    def throw(port: int) -> None:
        for content in (garbage, os.urandom(5000), b""):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(content)

    async def case() -> None:
        async with cloud() as server:
            link = await connect(address(server, "grpc"))
            running = asyncio.create_task(said(link, prefill("session-1", stream=20, prompt="0.01")))
            for port in (server.port, server.http_port):
                await asyncio.to_thread(throw, port)
            assert len(await running) == 22
            await lives(server, "http")
            await link.close()

    go(case())


def changed(change: Callable[[Any], object]) -> Any:
    """A hello with something wrong."""
    request = encode_request(HELLO, "m", "r1")
    change(request)
    return request


def parameter(name: str, value: str) -> Callable[[Any], object]:
    return lambda request: setattr(request.parameters[name], "string_param", value)


def array(name: str, datatype: str, shape: list[int], raw: bytes | None) -> Callable[[Any], object]:
    def add(request: Any) -> None:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw is not None:
            request.raw_input_contents.append(raw)

    return add


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (parameter("contract", "msao/9"), "mismatch", "msao/9"),
        (parameter("operation", "dance"), "bad_request", "dance"),
        (lambda request: request.parameters.clear(), "mismatch", "contract"),
        (lambda request: setattr(request, "model_name", "other"), "bad_request", "other"),
        (lambda request: setattr(request, "id", ""), "bad_request", "id"),
        (array("x", "INT64", [3], b"123"), "bad_request", "3 bytes where its shape takes 24"),
        (array("x", "INT64", [-1], b""), "bad_request", "below 0"),
        (array("x", "INT64", [2**62, 2**62], b""), "bad_request", "takes"),
        (array("x", "INT64", [0, 2**62, 2**62], b""), "bad_request", "cannot have shape"),
        (array("x", "INT64", [1] * 9, b"12345678"), "bad_request", "rank"),
        (array("x", "FP64", [1], b"12345678"), "bad_request", "FP64"),
        (array("x", "BOOL", [1], b"\2"), "bad_request", "neither 0 nor 1"),
        (array("x", "INT64", [1], None), "bad_request", "raw contents"),
        (array("fields", "UINT8", [2], b"{}"), "bad_request", "twice"),
        (array("drafts", "INT64", [1], b"12345678"), "bad_request", "drafts"),
        (lambda request: request.raw_input_contents.__setitem__(0, b"{"), "bad_request", "bytes where it says"),
    ],
)  # fmt: skip
def test_a_malformed_request_is_an_error_of_its_own(change: Callable[[Any], object], code: str, words: str) -> None:
    async def case() -> None:
        async with cloud() as server, aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = changed(change)
            unary = decode_reply(await stub.ModelInfer(request))
            stream = stub.ModelStreamInfer()
            await stream.write(request)
            streamed = await stream.read()
            assert streamed.infer_response.id == request.id
            for reply in (unary, decode_reply(streamed.infer_response)):
                assert reply.message is not None
                assert reply.last
                assert reply.message.kind == "error"
                assert reply.message.fields["code"] == code
                assert words in reply.message.fields["message"]
            await stream.write(encode_request(HELLO, "m", "r2"))
            assert decode_reply((await stream.read()).infer_response).message.kind == "welcome"

    go(case())


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"[]", {}, 400, "object"),
        (b"{}", {}, 409, "contract"),
        (b"{}", {"Inference-Header-Content-Length": "-5"}, 400, "number of bytes"),
        (b"{}", {"Inference-Header-Content-Length": "99"}, 400, "99"),
        (b"[" * 100_000, {}, 400, "not JSON"),
        (json.dumps({"parameters": {"operation": "hello", "contract": "msao/1"}}).encode(), {}, 400, "list of arrays"),
        (b"x" * 2_000_000, {}, 413, "larger"),
    ],
)  # fmt: skip
def test_a_malformed_body_has_a_status_and_a_sentence(
    body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    async def case() -> None:
        async with cloud(bounds=Bounds(request_bytes=1_000_000)) as server:
            async with aiohttp.ClientSession(address(server, "http")) as web:
                reply = await web.post("/v2/models/m/infer", data=body, headers=headers)
                assert reply.status == status
                length = int(reply.headers.get("Inference-Header-Content-Length", reply.headers["Content-Length"]))
                assert words in json.loads((await reply.read())[:length])["error"]
                assert (await web.get("/v2/nothing")).status == 404
            await lives(server, "http")

    go(case())


def test_a_request_with_several_replies_is_told_to_use_the_stream() -> None:
    async def case() -> None:
        async with cloud() as server, aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            one = await stub.ModelInfer(encode_request(prefill("session-1"), "m", "r1"))
            assert decode_reply(one).message.kind == "ready"
            several = await stub.ModelInfer(encode_request(prefill("session-1", stream=3), "m", "r1"))
            assert "stream" in decode_reply(several).message.fields["message"]

    go(case())


def test_a_handler_that_breaks_is_an_internal_error_that_tells_no_secrets() -> None:
    async def broken(message: Message) -> AsyncIterator[Message]:
        raise ValueError("the secret")
        yield message

    async def case() -> None:
        server = CloudServer(Served("m", broken), CloudOptions())
        await server.start()
        link = open_link(address(server, "grpc"), LinkOptions(model="m"))
        with pytest.raises(Exception, match="its log tells") as told:
            await greet(link)
        assert "secret" not in str(told.value)
        await link.close()
        await server.stop()

    go(case())


def test_metadata_tell_the_arrays_of_the_contract() -> None:
    async def case() -> None:
        async with cloud() as server, aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            told = await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="m"))
            inputs = {one.name: (one.datatype, list(one.shape)) for one in told.inputs}
            assert inputs == {
                "fields": ("UINT8", [-1]), "drafts": ("INT64", [-1]), "draft_probs": ("FP32", [-1, -1]),
                "pixel_values": ("FP32", [-1, -1]), "flags": ("BOOL", [-1]), "half": ("FP16", [-1, -1, -1]),
            }  # fmt: skip
            assert [one.name for one in told.outputs] == ["fields", "tokens"]
            async with aiohttp.ClientSession(address(server, "http")) as web:
                assert [one["name"] for one in (await (await web.get("/v2/models/m")).json())["inputs"]] == list(inputs)
            assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live
            assert (await stub.ModelReady(service_pb2.ModelReadyRequest(name="m"))).ready
            assert not (await stub.ModelReady(service_pb2.ModelReadyRequest(name="n"))).ready
            assert (await stub.ServerMetadata(service_pb2.ServerMetadataRequest())).name == "msao-compile"

    go(case())


def test_metrics_count_requests_by_operation_and_outcome_and_show_gauges() -> None:
    async def case() -> None:
        served = Served("m", Answering().handle, INPUTS, lambda: {"steps": 7.0})
        server = CloudServer(served, CloudOptions())
        await server.start()
        link = await connect(address(server, "grpc"))
        await said(link, prefill("session-1"))
        with pytest.raises(InputError):
            await said(link, Message("dance", {}))
        async with aiohttp.ClientSession(address(server, "http")) as web:
            page = await (await web.get("/metrics")).text()
        lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        assert lines['msao_requests_total{operation="prefill",outcome="ok"}'] == "1.0"
        assert lines['msao_requests_total{operation="unknown",outcome="bad_request"}'] == "1.0"
        assert lines["msao_requests_active"] == "0.0"
        assert lines["msao_cloud_steps"] == "7.0"
        assert float(lines['msao_bytes_total{direction="in"}']) > 500
        assert lines['msao_request_seconds_count{operation="prefill"}'] == "1.0"
        await link.close()
        await server.stop()

    go(case())


def test_a_port_that_is_taken_is_told() -> None:
    async def case() -> None:
        async with cloud() as server:
            for options in (CloudOptions(port=server.port), CloudOptions(http_port=server.http_port)):
                with pytest.raises(InputError, match="cannot listen"):
                    await CloudServer(Served("m", Answering().handle), options).start()

    go(case())


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_client_that_reads_nothing_and_vanishes_leaves_nothing_running(kind: str) -> None:
    async def case() -> None:
        answering = Answering()
        server = CloudServer(Served("m", answering.handle, INPUTS), CloudOptions())
        await server.start()
        link = await connect(address(server, kind))
        flood = link.call(prefill("session-1", stream=1_000_000), Traffic())
        await anext(flood)
        await asyncio.sleep(0.3)
        await link.close()
        while not answering.cancelled:
            await asyncio.sleep(0.05)
        assert answering.cancelled == 1
        assert len(answering.sessions["session-1"].committed) < 1_000_000
        await lives(server, kind)
        await server.stop()

    go(case())


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_round_trip_waits_for_no_delayed_acknowledgement(kind: str) -> None:
    async def case() -> None:
        async with cloud() as server:
            link = await connect(address(server, kind))
            loop, passed_s = asyncio.get_running_loop(), []
            for _ in range(25):
                began_s = loop.time()
                await greet(link)
                passed_s.append(loop.time() - began_s)
            assert (
                min(passed_s) < 0.03
            )  # Linux delays each acknowledgement by 40 ms, which no quick moment makes up for
            await link.close()

    go(case())
