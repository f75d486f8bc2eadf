"""What a gRPC link does with replies that a faulty cloud sends: twice, late, for nobody, out of order, damaged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from answering import decode, said
from grpc import StatusCode, aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from msao_compile.errors import Busy, DeadlineExceeded, InputError, LinkDown, MsaoError, Refused, RemoteError
from msao_compile.runtime.wire import contract
from msao_compile.runtime.wire.contract import write
from msao_compile.runtime.wire.kserve.codec import encode_reply
from msao_compile.runtime.wire.kserve.grpc import GrpcLink
from msao_compile.runtime.wire.kserve.options import LinkOptions

Script = Callable[[str, Any], AsyncIterator[Any]]


class Scripted(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Sends what a script gives for the id of the first request; then waits."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def ModelStreamInfer(self, requests: Any, context: Any) -> None:
        request = await context.read()
        async for reply in self.script(request.id, context):
            await context.write(reply)
        await context.read()


def follow(script: Script, options: LinkOptions | None = None, deadline_ms: int = 60_000) -> list[int]:
    """The ids of the tokens that a decode gives over a cloud with such a script."""

    async def whole() -> list[int]:
        server = aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Scripted(script), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        link = GrpcLink(f"127.0.0.1:{port}", options or LinkOptions(model="m"), tls=False)
        try:
            replies = await said(link, decode("session-1", 3, deadline_ms=deadline_ms))
            return [reply.fields["id"] for reply in replies if reply.kind == "token"]
        finally:
            await link.close()
            await server.stop(0)

    return asyncio.run(asyncio.wait_for(whole(), 120))


def token(request_id: str, index: int, last: bool = False) -> Any:
    told = write("token", contract.TokenIs(session="session-1", position=index, id=index))
    return service_pb2.ModelStreamInferResponse(infer_response=encode_reply(told, "m", request_id, index, last))


def done(request_id: str, index: int) -> Any:
    told = write("done", contract.Done(session="session-1", known=index))
    return service_pb2.ModelStreamInferResponse(infer_response=encode_reply(told, "m", request_id, index, last=True))


def test_replies_that_come_twice_are_dropped() -> None:
    async def script(request_id: str, context: Any) -> AsyncIterator[Any]:
        for index in (0, 0, 1, 0, 1, 2):
            yield token(request_id, index)
        yield done(request_id, 3)
        yield done(request_id, 3)

    assert follow(script) == [0, 1, 2]


def test_replies_for_nobody_are_dropped() -> None:
    async def script(request_id: str, context: Any) -> AsyncIterator[Any]:
        yield token("a-request-of-long-ago", 0)
        yield token(request_id, 0)
        yield done("a-request-of-long-ago", 1)
        yield done(request_id, 1)

    assert follow(script) == [0]


def test_a_lost_reply_is_noticed() -> None:
    async def script(request_id: str, context: Any) -> AsyncIterator[Any]:
        yield token(request_id, 0)
        yield token(request_id, 2)

    with pytest.raises(LinkDown, match="reply 1 to a request was lost"):
        follow(script)


def test_a_request_that_ends_without_a_word_ends() -> None:
    async def script(request_id: str, context: Any) -> AsyncIterator[Any]:
        yield token(request_id, 0)
        yield service_pb2.ModelStreamInferResponse(infer_response=encode_reply(None, "m", request_id, 1, last=True))

    assert follow(script) == [0]


def test_a_late_reply_is_a_missed_deadline() -> None:
    async def script(request_id: str, context: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(3600)
        yield token(request_id, 0)

    with pytest.raises(DeadlineExceeded):
        follow(script, LinkOptions(model="m", margin_s=0.1), deadline_ms=300)


def test_a_damaged_reply_is_the_clouds_fault() -> None:
    async def script(request_id: str, context: Any) -> AsyncIterator[Any]:
        reply = token(request_id, 0)
        reply.infer_response.raw_output_contents[0] = b"{"
        yield reply

    with pytest.raises(RemoteError, match="cannot be read"):
        follow(script)


def test_what_triton_refuses_itself_is_wrong_input_and_what_its_backend_says_is_not() -> None:
    async def refused(request_id: str, context: Any) -> AsyncIterator[Any]:
        reply = service_pb2.ModelStreamInferResponse(error_message=f"[request id: {request_id}] unexpected input 'x'")
        reply.infer_response.id = request_id
        yield reply

    async def failed(request_id: str, context: Any) -> AsyncIterator[Any]:
        reply = service_pb2.ModelStreamInferResponse(error_message="Stub process 'm_0_0' is not healthy.")
        reply.infer_response.CopyFrom(encode_reply(None, "m", request_id, 0, last=True))
        yield reply

    with pytest.raises(InputError, match="the cloud says: unexpected input"):
        follow(refused)
    with pytest.raises(RemoteError, match="not healthy"):
        follow(failed)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.UNAUTHENTICATED, Refused),
        (StatusCode.PERMISSION_DENIED, Refused),
        (StatusCode.RESOURCE_EXHAUSTED, Busy),
        (StatusCode.UNAVAILABLE, LinkDown),
        (StatusCode.INTERNAL, LinkDown),
        (StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (StatusCode.NOT_FOUND, InputError),
        (StatusCode.UNIMPLEMENTED, RemoteError),
    ],
)
def test_a_status_of_grpc_becomes_an_error_of_ours(code: StatusCode, kind: type[MsaoError]) -> None:
    async def script(request_id: str, context: Any) -> AsyncIterator[Any]:
        yield token(request_id, 0)
        await context.abort(code, "because")

    with pytest.raises(kind, match="because") as told:
        follow(script)
    assert type(told.value) is kind
