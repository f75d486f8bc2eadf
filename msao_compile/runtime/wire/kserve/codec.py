"""Messages as ModelInferRequest and ModelInferResponse, the gRPC form of KServe v2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from msao_compile.errors import InputError
from msao_compile.runtime.wire.contract import CONTRACT
from msao_compile.runtime.wire.kserve.parts import (
    ASK_FINAL,
    CANCEL,
    CANCELS,
    FINAL,
    OPERATION,
    VERSION,
    Part,
    Reply,
    read_reply,
    read_request,
    reply_parts,
    request_parameters,
    request_parts,
)
from msao_compile.runtime.wire.message import Message


def encode_request(message: Message, model: str, request_id: str) -> Any:
    """A ModelInferRequest; raises as `parts.request_parts`."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    _put_parameters(request, {**request_parameters(message), ASK_FINAL: True})
    for part in request_parts(message):
        request.inputs.add(name=part.name, datatype=part.datatype, shape=part.shape)
        request.raw_input_contents.append(bytes(part.raw))
    return request


def encode_cancel(model: str, request_id: str) -> Any:
    """A ModelInferRequest that stops the one of this id."""
    request = service_pb2.ModelInferRequest(model_name=model, id=f"{request_id}-{CANCEL}")
    _put_parameters(request, {OPERATION: CANCEL, VERSION: CONTRACT, CANCELS: request_id})
    request.inputs.add(name="fields", datatype="UINT8", shape=(2,))
    request.raw_input_contents.append(b"{}")
    return request


def decode_request(request: Any) -> Message:
    """The message behind a ModelInferRequest; raises as `parts.read_request`."""
    return read_request(parameters_of(request), _parts(request.inputs, request.raw_input_contents))


def encode_reply(message: Message | None, model: str, request_id: str, index: int, last: bool) -> Any:
    """A ModelInferResponse; without a message one that only ends a request."""
    response = service_pb2.ModelInferResponse(model_name=model, id=request_id)
    _put_parameters(response, {FINAL: last})
    for part in reply_parts(message, index) if message is not None else ():
        response.outputs.add(name=part.name, datatype=part.datatype, shape=part.shape)
        response.raw_output_contents.append(bytes(part.raw))
    return response


def decode_reply(response: Any) -> Reply:
    """The reply behind a ModelInferResponse; raises as `parts.read_reply`."""
    last = response.parameters[FINAL].bool_param if FINAL in response.parameters else False
    return read_reply(_parts(response.outputs, response.raw_output_contents), last)


def parameters_of(request: Any) -> dict[str, Any]:
    """The parameters of a request or a reply, as plain values."""
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in request.parameters.items()}
    return {name: getattr(request.parameters[name], choice) for name, choice in chosen.items() if choice}


def _put_parameters(target: Any, parameters: Mapping[str, bool | int | str]) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            target.parameters[name].bool_param = value
        elif isinstance(value, int):
            target.parameters[name].int64_param = value
        else:
            target.parameters[name].string_param = value


def _parts(specs: Sequence[Any], raws: Sequence[bytes]) -> Iterator[Part]:
    if len(specs) != len(raws):
        raise InputError(
            f"{len(specs)} arrays are named and {len(raws)} are sent as raw contents: send each array that way"
        )
    for spec, raw in zip(specs, raws):
        yield Part(spec.name, spec.datatype, tuple(spec.shape), raw)
