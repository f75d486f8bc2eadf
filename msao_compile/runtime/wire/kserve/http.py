"""A link over HTTP: a request is one POST to `infer_stream`, whose chunked reply is a row of frames."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from msao_compile.errors import InputError, LinkDown, MsaoError
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.contract import raise_fault
from msao_compile.runtime.wire.kserve.json_form import FRAME, HEADER_LENGTH, decode_reply, encode_request
from msao_compile.runtime.wire.kserve.options import LinkOptions, Patience
from msao_compile.runtime.wire.kserve.parts import Reply, read_safely
from msao_compile.runtime.wire.kserve.translate import http_error, untrusted
from msao_compile.runtime.wire.message import Message

log = logging.getLogger(__name__)


class HttpLink:
    """A link to a cloud at `http://host:port`; use it in the event loop that made it.

    Triton's HTTP takes no models that answer more than once: to reach Triton use gRPC.
    """

    def __init__(self, address: str, options: LinkOptions) -> None:
        self.options = options
        self.model = options.model or ""
        self._address = address.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_trust(options)),
            headers=options.headers(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.connect_s),
        )
        self._short = aiohttp.ClientTimeout(total=options.connect_s)
        self._name, self._count = secrets.token_hex(8), itertools.count()

    async def call(self, message: Message, traffic: Traffic) -> AsyncIterator[Message]:
        """Send one request and give its replies as they arrive; as `base.Link.call`."""
        request_id = f"{self._name}-{next(self._count)}"
        body, header_length = encode_request(message, request_id)
        if len(body) > self.options.message_bytes:
            raise InputError(f"{message.kind} has {len(body)} bytes where {self.options.message_bytes} may be sent")
        patience, awaited, last = Patience(message, self.options), 0, False
        url = f"{self._address}/v2/models/{self.model}/infer_stream"
        traffic.up += len(body)
        async with self._post(url, body, header_length, patience) as response:
            while not last:
                size, given, reply = await self._frame(response, patience)
                traffic.down += size
                if given not in (request_id, "") or (reply.index < awaited and reply.message is not None):
                    log.debug("reply %d to request %r came late or twice: dropped", reply.index, given)
                    continue
                last = reply.last
                if reply.message is None:
                    continue
                if reply.index > awaited:
                    raise LinkDown(f"reply {awaited} to a request was lost: {reply.index} came")
                awaited += 1
                raise_fault(reply.message)
                yield reply.message

    async def close(self) -> None:
        """Give the connection back; further calls raise LinkDown."""
        await self._session.close()

    async def ready(self) -> bool:
        """Whether the server takes requests; raises as `call`."""
        url = f"{self._address}/v2/health/ready"
        async with self._translated(), self._session.get(url, timeout=self._short) as response:
            return response.status == 200

    async def models(self) -> list[str]:
        """The names of the models that are served; raises as `call`."""
        url = f"{self._address}/v2/repository/index"
        async with self._translated(), self._session.post(url, json={"ready": True}, timeout=self._short) as response:
            body = await response.read()
            if response.status != 200:
                raise http_error(response.status, body, response.headers.get("Retry-After"))
            return [str(entry["name"]) for entry in await response.json()]

    @asynccontextmanager
    async def _post(self, url: str, body: bytes, header_length: int, patience: Patience) -> AsyncIterator[Any]:
        headers = {HEADER_LENGTH: str(header_length), "Content-Type": "application/octet-stream"}
        async with self._translated():
            response = await patience.reply(self._session.post(url, data=body, headers=headers))
            try:
                if response.status != 200:
                    said = await patience.reply(response.read())
                    raise http_error(response.status, said, response.headers.get("Retry-After"))
                yield response
                await patience.reply(response.content.read())  # to its end, so that the connection can be used again
            finally:
                response.close()  # where it did not end, this is what cancels the request

    async def _frame(self, response: Any, patience: Patience) -> tuple[int, str, Reply]:
        content = response.content
        header, rest = FRAME.unpack(await patience.reply(content.readexactly(FRAME.size)))
        if header + rest > self.options.message_bytes:
            raise LinkDown(f"a reply of {header + rest} bytes came where {self.options.message_bytes} are taken")
        body = await patience.reply(content.readexactly(header + rest))
        given, reply = read_safely(decode_reply, body, header)
        return FRAME.size + len(body), given, reply

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        if self._session.closed:
            raise LinkDown("the link is closed: open another")
        try:
            yield
        except MsaoError:
            raise
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
            raise untrusted(str(error)) from error
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError, ValueError, TimeoutError) as error:
            said = str(error) or type(error).__name__
            raise LinkDown(f"the cloud cannot be reached or went away: {said}") from error


def _trust(options: LinkOptions) -> ssl.SSLContext | bool:
    roots = options.read_roots()
    return True if roots is None else ssl.create_default_context(cadata=roots.decode("ascii"))
