"""A link to the cloud at an address: the connection is tried, and both sides say what contract they speak."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msao_compile.errors import ContractMismatch, InputError, LinkDown, MissingTool, RemoteError
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.contract import CONTRACT, REPLIES, Hello, Welcome, read, write
from msao_compile.runtime.wire.kserve.options import LinkOptions
from msao_compile.runtime.wire.kserve.parts import read_safely

if TYPE_CHECKING:
    from msao_compile.runtime.wire.kserve.grpc import GrpcLink
    from msao_compile.runtime.wire.kserve.http import HttpLink

SCHEMES = ("grpc", "grpcs", "http", "https")


async def connect(address: str, options: LinkOptions | None = None) -> Link:
    """A link to the cloud at `grpc://host:port`, `grpcs://`, `http://` or `https://`, after its handshake.

    Raises:
        InputError: the address, the model or a file of `options` is wrong.
        LinkDown: nothing answers there, or it is not ready. Refused: the token or a certificate is wrong.
        ContractMismatch: it speaks another contract. MissingTool: a library is not installed.
    """
    link = open_link(address, options or LinkOptions())
    try:
        if not await link.ready():
            raise LinkDown(f"{address}: the cloud is not ready: it starts or stops")
        served = await link.models()  # a plain call, which shows the token: a stream that is refused may not say why
        link.model = link.model or _only(served, address)
        await greet(link)
    except BaseException:
        await link.close()
        raise
    return link


def open_link(address: str, options: LinkOptions) -> GrpcLink | HttpLink:
    """A link that has not said a word yet.

    Raises:
        InputError: the address or a file of `options` is wrong. MissingTool: a library is not installed.
    """
    scheme, place = _split(address)
    try:
        if scheme in ("grpc", "grpcs"):
            from msao_compile.runtime.wire.kserve.grpc import GrpcLink

            return GrpcLink(place, options, tls=scheme == "grpcs")
        from msao_compile.runtime.wire.kserve.http import HttpLink

        return HttpLink(f"{scheme}://{place}", options)
    except ModuleNotFoundError as error:
        raise MissingTool(f"{error.name} is not installed: pip install 'msao-compile[remote]'") from error


async def greet(link: Link, model: str | None = None) -> Welcome:
    """Say hello over a link; what the cloud says it serves.

    Raises:
        ContractMismatch: it speaks another contract. RemoteError, InputError: as `Link.call`.
    """
    replies = [reply async for reply in link.call(write("hello", Hello(contract=CONTRACT, model=model)), Traffic())]
    if [reply.kind for reply in replies] != ["welcome"]:
        raise RemoteError("the cloud answered hello with something else than one welcome")
    welcome: Welcome = read_safely(read, replies[0], REPLIES)
    if welcome.contract != CONTRACT:
        raise ContractMismatch(f"the cloud speaks contract {welcome.contract!r}, this side {CONTRACT}")
    return welcome


def _split(address: str) -> tuple[str, str]:
    """Scheme and `host:port`."""
    try:
        parts = urlsplit(address)
        known = parts.scheme in SCHEMES and parts.hostname and parts.port and parts.path in ("", "/")
        known = known and not parts.query and parts.username is None
    except ValueError as error:
        raise InputError(f"cloud {address!r} is no address ({error}): give grpc://host:port") from error
    if not known:
        raise InputError(f"cloud {address!r} is no address: give one of {', '.join(SCHEMES)}, as in grpc://host:port")
    return parts.scheme, parts.netloc


def _only(models: list[str], address: str) -> str:
    if len(models) == 1:
        return models[0]
    if not models:
        raise LinkDown(f"{address}: no model is ready there yet")
    raise InputError(f"{address}: several models are served there; choose one of {', '.join(models)}")
