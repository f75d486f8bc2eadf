"""What a cloud server serves, within which bounds, and how KServe v2 describes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol

from msao_compile.errors import InputError
from msao_compile.runtime.wire.contract import CONTRACT, REPLIES, REQUESTS
from msao_compile.runtime.wire.kserve.parts import DATATYPES, FIELDS
from msao_compile.runtime.wire.message import Message

NAME = "msao-compile"
EXTENSIONS = ("sequence", "binary_tensor_data", "parameters", "model_repository", CONTRACT)


class Serve(Protocol):
    """A `wire.base.Handler` that is told who asks, as the server knows it: never what a request says of itself."""

    def __call__(self, message: Message, client: str = "") -> AsyncIterator[Message]: ...


@dataclass(frozen=True)
class Bounds:
    """What the server takes at most; what a handler bounds itself, such as sessions, is not here."""

    request_bytes: int = 32 << 20
    connections: int = 256
    requests: int = 1024
    """Requests that run at once; one more is answered with `busy`."""
    client_requests: int = 512
    """Of those, one client's."""
    seconds: float = 300.0
    """A request without a deadline of its own ends after so long."""
    drain_s: float = 20.0
    retry_after_ms: int = 200


@dataclass(frozen=True)
class Tensor:
    """One array as metadata tell it: KServe's datatype, and -1 for sizes that vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def no_gauges() -> Mapping[str, float]:
    """A handler that has nothing to show."""
    return {}


@dataclass(frozen=True)
class Served:
    """One model: its name, what answers for it, and the arrays of its own that `prefill` may bring."""

    name: str
    handle: Serve
    inputs: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Name to NumPy type and rank."""
    gauges: Callable[[], Mapping[str, float]] = no_gauges
    """Read at every look at `/metrics`."""

    def check_name(self, name: str) -> None:
        """Refuse another model's name.

        Raises:
            InputError: it is not this model.
        """
        if name != self.name:
            raise InputError(f"model {name[:60]!r} is not served here: ask for {self.name!r}")


def input_tensors(own: Mapping[str, tuple[str, int]]) -> list[Tensor]:
    """The fields, and every array that any operation may bring; `own` are the model's."""
    known = dict(own)
    for operation in REQUESTS.values():
        known |= operation.tensors
    return [Tensor(FIELDS, "UINT8", (-1,)), *_tensors(known)]


def output_tensors() -> list[Tensor]:
    """The fields, and every array that any reply may bring."""
    known = {name: form for operation in REPLIES.values() for name, form in operation.tensors.items()}
    return [Tensor(FIELDS, "UINT8", (-1,)), *_tensors(known)]


def server_version() -> str:
    """The version of this package."""
    return version(NAME)


def _tensors(known: Mapping[str, tuple[str, int]]) -> list[Tensor]:
    return [Tensor(name, DATATYPES[dtype], (-1,) * rank) for name, (dtype, rank) in known.items()]
