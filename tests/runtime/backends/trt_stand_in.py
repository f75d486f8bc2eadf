"""A driver whose device memory is the host's, and a library whose engines are graphs that ONNX Runtime runs there.

Both keep to the calls of the real ones, so that what the runner does between them is tested without a GPU: addresses,
shapes, profiles, capture. Of the libraries themselves they prove nothing.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from msao_compile.runtime.backends import cuda
from msao_compile.runtime.backends.ort import _give_threads

OUT_OF_MEMORY, NO_DEVICE, CAPTURE_REFUSED, CAPTURE_INVALID = 2, 100, 900, 901
ERRORS = {2: b"CUDA_ERROR_OUT_OF_MEMORY", 100: b"CUDA_ERROR_NO_DEVICE", 900: b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}
ATTRIBUTES = {16: 46, 18: 0, 75: 8, 76: 9}
TOTAL = 1 << 24


class Driver:
    """What `ctypes.CDLL("libcuda.so.1")` gives, through C calls of the declared types; SM 8.9, 16 MiB."""

    def __init__(self, init: int = 0) -> None:
        self.capture_invalid = 0
        self.init, self.capture_refused, self.launches, self.handles = init, 0, 0, 0
        self.memory: dict[int, Any] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        for name, kinds in cuda._ARGUMENTS.items():
            taken = (ctypes.c_void_p, *kinds[1:]) if name == "cuDeviceGetName" else kinds
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *taken)(getattr(self, f"_{name}", self._handle)))

    def memory_of(self, size: int) -> int:
        """How many blocks there are of that size."""
        return sum(len(block) == size for block in self.memory.values())

    def _cuInit(self, flags: int) -> int:
        return self.init

    def _cuGetErrorName(self, code: int, name: Any) -> int:
        name[0] = ERRORS.get(code)
        return 0

    def _cuDriverGetVersion(self, version: Any) -> int:
        version[0] = 13020
        return 0

    def _cuDeviceGetName(self, name: int, length: int, device: int) -> int:
        ctypes.memmove(name, b"Stand-in\0", 9)
        return 0

    def _cuDeviceTotalMem_v2(self, total: Any, device: int) -> int:
        total[0] = TOTAL
        return 0

    def _cuDeviceGetAttribute(self, found: Any, which: int, device: int) -> int:
        found[0] = ATTRIBUTES[which]
        return 0

    def _cuCtxSetCurrent(self, context: int) -> int:
        return 0

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free[0], total[0] = TOTAL - sum(map(len, self.memory.values())), TOTAL
        return 0

    def _cuMemAlloc_v2(self, found: Any, size: int) -> int:
        if size > TOTAL:
            return OUT_OF_MEMORY
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # as NaN as memory can be
        found[0] = ctypes.addressof(block)
        self.memory[ctypes.addressof(block)] = block
        return 0

    def _cuMemFree_v2(self, address: int) -> int:
        del self.memory[address]
        return 0

    def _cuMemHostAlloc(self, found: Any, size: int, flags: int) -> int:
        return self._cuMemAlloc_v2(found, size)

    def _cuMemFreeHost(self, address: int) -> int:
        return self._cuMemFree_v2(address)

    def _cuMemcpyHtoDAsync_v2(self, device: int, host: int, size: int, stream: int) -> int:
        ctypes.memmove(device, host, size)
        return 0

    def _cuMemcpyDtoHAsync_v2(self, host: int, device: int, size: int, stream: int) -> int:
        ctypes.memmove(host, device, size)
        return 0

    def _cuMemcpy2DAsync_v2(self, copy: Any, stream: int) -> int:
        one = copy[0]
        for row in range(one.height):
            ctypes.memmove(one.dst + row * one.dst_pitch, one.src + row * one.src_pitch, one.width)
        return 0

    def _cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> int:
        if self.recording is not None:
            self.recording.append(lambda: ctypes.memset(address, value, size))
        else:
            ctypes.memset(address, value, size)
        return 0

    def _handle(self, *arguments: Any) -> int:
        """Whatever makes a handle writes it through its first argument; whatever takes one does nothing."""
        if hasattr(arguments[0], "contents"):
            self.handles += 1
            arguments[0][0] = self.handles
        return 0

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        self.recording = None if self.capture_refused else []
        return self.capture_refused

    def _cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        if self.capture_invalid:
            self.recording = None
            return self.capture_invalid
        self.handles += 1
        graph[0], self.graphs[self.handles], self.recording = self.handles, self.recording or [], None
        return 0

    def _cuGraphInstantiateWithFlags(self, found: Any, graph: int, flags: int) -> int:
        found[0] = graph
        return 0

    def _cuGraphLaunch(self, graph: int, stream: int) -> int:
        self.launches += 1
        for work in self.graphs[graph]:
            work()
        return 0

    def _cuEventElapsedTime(self, found: Any, since: int, until: int) -> int:
        found[0] = 1.5
        return 0


def plan(graph: Path, profiles: list[dict[str, Any]]) -> bytes:
    """What this library takes for an engine."""
    return json.dumps({"graph": str(graph), "profiles": profiles}).encode()


def library(driver: Driver, shares: bool = True, version: str = "1.7.1.116") -> SimpleNamespace:
    """A module such as tensorrt; `shares` says whether states are written in place."""
    loaded: list[Engine] = []

    class Runtime:
        def __init__(self, listener: Any) -> None:
            self.listener = listener

        def deserialize_cuda_engine(self, content: Any) -> Any:
            if bytes(content[:1]) != b"{":
                self.listener.log(SimpleNamespace(name="ERROR"), "[engine.cpp::read::1] the plan is of no kind")
                return None
            loaded.append(Engine(driver, json.loads(bytes(content)), shares))
            return loaded[-1]

    class Listener:
        pass

    return SimpleNamespace(
        Runtime=Runtime, ILogger=Listener, __version__=version, __name__="stand_in", loaded=loaded,
        EngineStat=SimpleNamespace(TOTAL_WEIGHTS_SIZE=0),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=1),
    )  # fmt: skip


Mode = Enum("Mode", ["INPUT", "OUTPUT"])
Kind = Enum("Kind", {"FLOAT": 1, "HALF": 10, "INT64": 7})


class Engine:
    """A graph with profiles, as ICudaEngine."""

    def __init__(self, driver: Driver, said: dict[str, Any], shares: bool) -> None:
        self.driver, self.profiles, self.shares = driver, said["profiles"], shares
        options = ort.SessionOptions()
        _give_threads(options, 1)
        self.session = ort.InferenceSession(said["graph"], options, providers=["CPUExecutionProvider"])
        graph = onnx.load(said["graph"], load_external_data=False).graph
        self.inputs = {value.name: value.type.tensor_type for value in graph.input}
        self.outputs = {value.name: value.type.tensor_type for value in graph.output}
        self.tensors = {**self.inputs, **self.outputs}
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(self.profiles)
        self.contexts: list[Context] = []

    def dimensions(self, name: str) -> list[int | str]:
        return [one.dim_param or one.dim_value for one in self.tensors[name].shape.dim]

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Kind:
        return Kind(self.tensors[name].elem_type)

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1 if isinstance(size, str) else size for size in self.dimensions(name)]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        found = next(one for one in self.profiles[profile]["inputs"] if one["name"] == name)
        return [found["min"], found["opt"], found["max"]]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1000 * (profile + 1)

    def get_engine_stat(self, which: int) -> int:
        return 12345

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.replace("present", "past_key_values") if self.shares else None

    def create_execution_context(self, strategy: int) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    """As IExecutionContext: what it is given is checked the way the library would."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses, self.runs = engine, {}, {}, 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        needed = self.engine.get_device_memory_size_for_profile_v2(self.profile)
        if size < needed or address not in self.engine.driver.memory:
            raise ValueError("no such memory")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self.shapes:
            return list(self.shapes[name])
        known: dict[str, int] = {}
        for one, shape in self.shapes.items():
            known |= {str(wanted): size for wanted, size in zip(self.engine.dimensions(one), shape, strict=True)}
        return [known[str(size)] if isinstance(size, str) else size for size in self.engine.dimensions(name)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors and address in self.engine.driver.memory

    def execute_async_v3(self, stream: int) -> bool:
        names = self.engine.tensors
        shapes = {name: tuple(self.get_tensor_shape(name)) for name in names}
        addresses, driver = dict(self.addresses), self.engine.driver

        def work() -> None:
            self.runs += 1
            for name, shape in shapes.items():
                if math.prod(shape) * self._kind(name).itemsize > len(driver.memory[addresses[name]]):
                    raise ValueError(f"{name} {shape} does not fit its memory")
            feed = {name: self._at(name, shapes[name], addresses[name]).copy() for name in self.engine.inputs}
            found = self.engine.session.run(list(self.engine.outputs), feed)
            for name, value in zip(self.engine.outputs, found, strict=True):
                np.copyto(self._at(name, value.shape, addresses[name]), value)

        work() if driver.recording is None else driver.recording.append(work)
        return True

    def _kind(self, name: str) -> np.dtype[Any]:
        return np.dtype(
            {"FLOAT": "float32", "HALF": "float16", "INT64": "int64"}[self.engine.get_tensor_dtype(name).name]
        )

    def _at(self, name: str, shape: tuple[int, ...], address: int) -> np.ndarray:
        size = math.prod(shape) * self._kind(name).itemsize
        held = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        return np.frombuffer(held, self._kind(name)).reshape(shape)
