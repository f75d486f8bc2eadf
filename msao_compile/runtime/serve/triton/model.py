"""A model of Triton's Python backend that answers as the cloud server does: one event loop in a thread of its own.

Arrays pass as DLPack, which Triton's stub does without a NumPy of its own age. A reply cannot have parameters there,
so everything it says is in its arrays; see `wire.kserve.parts`.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import json
import logging
import threading
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.runtime.cloud.service import CloudLimits
from msao_compile.runtime.serve.cloud.desk import Desk, Uncounted
from msao_compile.runtime.serve.cloud.logs import log_as_json
from msao_compile.runtime.serve.cloud.opening import open_deployment
from msao_compile.runtime.serve.cloud.served import Bounds, Served
from msao_compile.runtime.serve.triton.place import DEPLOYMENT, MODEL_NAME
from msao_compile.runtime.wire.contract import LAST
from msao_compile.runtime.wire.kserve.parts import (
    CANCEL,
    CANCELS,
    DATATYPES,
    OPERATION,
    Part,
    checked_id,
    read_request,
    reply_parts,
)
from msao_compile.runtime.wire.message import Message

LOOK_S = 0.25
"""How often a client that went away is looked for: Triton tells only who asks."""
log = logging.getLogger("msao_compile.serve")


class ServedInTriton:
    """What Triton calls; a subclass says what is served."""

    async def open(self, folder: Path) -> Served:
        """What to serve, made in the loop that serves it; `folder` holds model.py."""
        raise NotImplementedError

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; what it raises, Triton tells as the reason why the model is not ready."""
        log_as_json()
        self._triton = importlib.import_module("triton_python_backend_utils")
        self._running: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="cloud", daemon=True).start()
        folder = Path(args["model_repository"]) / args["model_version"]
        asyncio.run_coroutine_threadsafe(self._start(folder), self._loop).result()

    def execute(self, requests: list[Any]) -> None:
        """Take requests; their replies go out as they come."""
        for request in requests:
            arrived = _Arrived(request)
            self._loop.call_soon_threadsafe(self._take, arrived)

    def finalize(self) -> None:
        """Wait for what runs, within the bound."""
        bound = self._desk.bounds.drain_s
        asyncio.run_coroutine_threadsafe(self._desk.drained(bound), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self, folder: Path) -> None:
        served = await self.open(folder)
        self._desk = Desk(served, Bounds(), Uncounted())
        self._desk.open = True

    def _take(self, arrived: _Arrived) -> None:
        if arrived.parameters.get(OPERATION) == CANCEL:
            if task := self._running.get(str(arrived.parameters.get(CANCELS))):
                task.cancel()
            arrived.end(self._triton)
            return
        task = self._loop.create_task(self._answer(arrived))
        self._running[arrived.id] = task
        task.add_done_callback(partial(self._ended, arrived))

    def _ended(self, arrived: _Arrived, task: asyncio.Task[None]) -> None:
        if self._running.get(arrived.id) is task:
            del self._running[arrived.id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a reply could not be sent", exc_info=error)
        arrived.end(self._triton)

    async def _answer(self, arrived: _Arrived) -> None:
        index, watch = 0, self._loop.create_task(_left(arrived, asyncio.current_task()))
        try:
            async with aclosing(self._desk.answers(arrived.id, arrived.size_bytes, arrived.message)) as replies:
                async for reply in replies:
                    arrived.send(self._triton, reply, index)
                    index += 1
        finally:
            watch.cancel()


class DeploymentInTriton(ServedInTriton):
    """Serves the deployment beside model.py."""

    async def open(self, folder: Path) -> Served:
        """The model that the file beside the deployment names."""
        name = (folder / MODEL_NAME).read_text().strip()
        _, served = open_deployment(folder / DEPLOYMENT, name, CloudLimits())
        return served


class _Arrived:
    """One request of Triton's, copied out of its memory, and the way back."""

    def __init__(self, request: Any) -> None:
        self.id = str(request.request_id())
        self.parameters: dict[str, Any] = json.loads(request.parameters() or "{}")
        self._parts = [_part(tensor) for tensor in request.inputs()]
        self._sender = request.get_response_sender()
        self._open = True

    @property
    def size_bytes(self) -> int:
        """Of its arrays; what the transport puts around them Triton does not tell."""
        return sum(len(part.raw) for part in self._parts)

    @property
    def left(self) -> bool:
        """Whether the client went away."""
        return self._open and bool(self._sender.is_cancelled())

    def message(self) -> Message:
        """As `parts.read_request`."""
        checked_id(self.id)
        return read_request(self.parameters, self._parts)

    def send(self, triton: Any, reply: Message, index: int) -> None:
        """Send one reply; the last ends the request."""
        if not self._open:
            return
        last = reply.kind in LAST
        tensors = [triton.Tensor.from_dlpack(part.name, _Passed(part)) for part in reply_parts(reply, index)]
        flags = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        self._open = not last
        self._sender.send(triton.InferenceResponse(tensors), flags=flags)

    def end(self, triton: Any) -> None:
        """End the request where no reply did."""
        if self._open:
            self._open = False
            self._sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


async def _left(arrived: _Arrived, answering: asyncio.Task[Any] | None) -> None:
    while not arrived.left:
        await asyncio.sleep(LOOK_S)
    if answering is not None:
        answering.cancel()


def _part(tensor: Any) -> Part:
    array = np.from_dlpack(tensor)
    return Part(tensor.name(), DATATYPES[array.dtype.name], array.shape, array.tobytes())


class _Passed:
    """A part as an array that Triton takes over.

    Triton renames the capsule it took to another name than DLPack's, so the destructor that NumPy gave it would find
    an error; Triton calls the array's own deleter either way.
    """

    def __init__(self, part: Part) -> None:
        names = {code: name for name, code in DATATYPES.items()}
        # a copy, as DLPack passes only what may be written
        self._array = np.frombuffer(bytearray(part.raw), names[part.datatype]).reshape(part.shape)

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self._array.__dlpack__()
        forget = ctypes.pythonapi.PyCapsule_SetDestructor
        forget.argtypes = [ctypes.py_object, ctypes.c_void_p]
        forget(capsule, None)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)
