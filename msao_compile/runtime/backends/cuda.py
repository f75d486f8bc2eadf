"""The CUDA driver by ctypes: what the GPU is, memory on it, streams, events and captured graphs; Python 3.10, no wheel.

Nothing here was run on a GPU unless a file under docs/gpu says so.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.errors import StageError

LIBRARY = "libcuda.so.1"
KERNEL_MODULE = Path("/proc/driver/nvidia/version")  # NVIDIA's kernel module says its own version here, on Jetson too
_HANDLE, _ADDRESS, _OUT = c_void_p, c_uint64, POINTER(c_void_p)
# Members of CUdevice_attribute (cuda.h), whose numbers are part of the driver's ABI.
_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile
_ON_DEVICE = 2  # CU_MEMORYTYPE_DEVICE


class _Copy2D(Structure):
    """CUDA_MEMCPY2D: rows of `width` bytes, each `pitch` bytes after the one before."""

    _fields_ = [
        *((f"src_{name}", kind) for name, kind in (("x", c_size_t), ("y", c_size_t), ("type", c_int))),
        *(("src_host", c_void_p), ("src", _ADDRESS), ("src_array", c_void_p), ("src_pitch", c_size_t)),
        *((f"dst_{name}", kind) for name, kind in (("x", c_size_t), ("y", c_size_t), ("type", c_int))),
        *(("dst_host", c_void_p), ("dst", _ADDRESS), ("dst_array", c_void_p), ("dst_pitch", c_size_t)),
        *(("width", c_size_t), ("height", c_size_t)),
    ]


# Without these ctypes would pass addresses as 32-bit numbers.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, c_int),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(_ADDRESS), c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_OUT, c_size_t, c_uint),
    "cuMemFreeHost": (_HANDLE,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, c_void_p, c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _ADDRESS, c_size_t, _HANDLE),
    "cuMemcpy2DAsync_v2": (POINTER(_Copy2D), _HANDLE),
    "cuMemsetD8Async": (_ADDRESS, ctypes.c_ubyte, c_size_t, _HANDLE),
    "cuStreamCreate": (_OUT, c_uint),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamBeginCapture_v2": (_HANDLE, c_int),
    "cuStreamEndCapture": (_HANDLE, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphDestroy": (_HANDLE,),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuEventCreate": (_OUT, c_uint),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventElapsedTime": (POINTER(c_float), _HANDLE, _HANDLE),
    "cuEventDestroy_v2": (_HANDLE,),
}


@dataclass(frozen=True)
class Device:
    """What the driver says of a GPU.

    `sm` is the compute capability as one number, 89 for 8.9. `cuda` is the newest CUDA that the driver serves,
    `driver` the version of its kernel module. `integrated` memory is the host's own, as on Jetson.
    """

    name: str
    sm: int
    memory_bytes: int
    multiprocessors: int
    integrated: bool
    cuda: str
    driver: str | None

    def facts(self) -> dict[str, Any]:
        """What engine files say of the GPU that they are for."""
        return {
            "gpu_architectures": [f"sm{self.sm}"],
            "gpu_name": self.name,
            "cuda": self.cuda,
            "driver": self.driver,
        }


class Driver:
    """The driver of one GPU; its primary context is shared with every library of this process, and kept to its end."""

    def __init__(self, library: Any, ordinal: int = 0) -> None:
        self._library = library
        for name, kinds in _ARGUMENTS.items():
            if hasattr(library, name):  # an old driver lacks some, which then are not called
                getattr(library, name).argtypes = kinds
        handle, context = c_int(), c_void_p()
        self.call("cuDeviceGet", byref(handle), ordinal)
        self._device = handle.value
        self.device = self._facts()
        self.call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._context = context.value
        self.use()

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            StageError: it fails; names function and error as the driver does.
        """
        if not hasattr(self._library, name):
            raise StageError(f"the NVIDIA driver here has no {name}: install a newer driver")
        code = getattr(self._library, name)(*arguments)
        if code:
            raise StageError(f"{name} failed on the GPU: {error_name(self._library, code)}")

    def use(self) -> None:
        """Make the context current on this thread, which every call below needs."""
        self.call("cuCtxSetCurrent", self._context)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the GPU now, with what other processes hold."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def _facts(self) -> Device:
        name, total, version = ctypes.create_string_buffer(256), c_size_t(), c_int()
        self.call("cuDeviceGetName", name, len(name), self._device)
        self.call("cuDeviceTotalMem_v2", byref(total), self._device)
        self.call("cuDriverGetVersion", byref(version))
        return Device(
            name=name.value.decode(errors="replace"),
            sm=10 * self._attribute(_MAJOR) + self._attribute(_MINOR),
            memory_bytes=total.value,
            multiprocessors=self._attribute(_MULTIPROCESSORS),
            integrated=bool(self._attribute(_INTEGRATED)),
            cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
            driver=kernel_module(KERNEL_MODULE.read_text() if KERNEL_MODULE.exists() else ""),
        )

    def _attribute(self, which: int) -> int:
        found = c_int()
        self.call("cuDeviceGetAttribute", byref(found), which, self._device)
        return found.value


def probe(ordinal: int = 0) -> Driver | str:
    """The driver, or a sentence that says why no GPU can be used; touches no library of a vendor but the driver."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return f"there is no NVIDIA driver on this machine ({LIBRARY} is missing)"
    code = library.cuInit(0)
    if code:
        return f"the NVIDIA driver does not start: cuInit says {error_name(library, code)}"
    try:
        return Driver(library, ordinal)
    except StageError as error:
        return f"GPU {ordinal} cannot be used: {error}"


def error_name(library: Any, code: int) -> str:
    """CUDA's name for an error, such as CUDA_ERROR_NO_DEVICE."""
    name = c_char_p()
    library.cuGetErrorName(c_int(code), byref(name))
    return f"{name.value.decode()} ({code})" if name.value else f"error {code}"


def kernel_module(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version: `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06 …`."""
    found = re.search(r"Module.*?\s(\d+(?:\.\d+)+)", text)
    return found.group(1) if found else None


class Stream:
    """An ordered queue of work on the GPU."""

    def __init__(self, driver: Driver) -> None:
        self.driver, found = driver, c_void_p()
        driver.call("cuStreamCreate", byref(found), 1)  # CU_STREAM_NON_BLOCKING: not held up by others' default stream
        self.handle: int = found.value or 0

    def synchronize(self) -> None:
        """Wait for all of its work; faults of the GPU show here."""
        self.driver.call("cuStreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` queues here, recorded and not run.

        Raises:
            StageError: something of it cannot be captured; the stream is as before.
        """
        graph = c_void_p()
        self.driver.call("cuStreamBeginCapture_v2", self.handle, _THREAD_LOCAL)
        try:
            work()
        except StageError:  # its reason is worth more than that the capture is invalid now
            self.driver._library.cuStreamEndCapture(self.handle, byref(graph))
            raise
        self.driver.call("cuStreamEndCapture", self.handle, byref(graph))
        return Graph(self.driver, graph.value or 0)

    def __del__(self) -> None:
        _release(self, "cuStreamDestroy_v2", "handle")


class Graph:
    """Captured work, launched as one."""

    def __init__(self, driver: Driver, graph: int) -> None:
        self.driver, found = driver, c_void_p()
        try:
            driver.call("cuGraphInstantiateWithFlags", byref(found), graph, 0)
        finally:
            driver.call("cuGraphDestroy", graph)
        self.handle: int = found.value or 0

    def launch(self, stream: Stream) -> None:
        """Queue all of it."""
        self.driver.call("cuGraphLaunch", self.handle, stream.handle)

    def __del__(self) -> None:
        _release(self, "cuGraphExecDestroy", "handle")


class Event:
    """A moment in a stream."""

    def __init__(self, driver: Driver) -> None:
        self.driver, found = driver, c_void_p()
        driver.call("cuEventCreate", byref(found), 0)
        self.handle: int = found.value or 0

    def record(self, stream: Stream) -> None:
        """The moment is when the stream's work so far is done."""
        self.driver.call("cuEventRecord", self.handle, stream.handle)

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds from another recorded event to this one; waits for this one."""
        found = c_float()
        self.driver.call("cuEventSynchronize", self.handle)
        self.driver.call("cuEventElapsedTime", byref(found), since.handle, self.handle)
        return found.value

    def __del__(self) -> None:
        _release(self, "cuEventDestroy_v2", "handle")


class DeviceBuffer:
    """Memory of the GPU, freed with this object; never of size 0, so that its address is always one.

    Raises:
        StageError: there is not that much; says how much is free.
    """

    def __init__(self, driver: Driver, size_bytes: int) -> None:
        self.driver, self.size_bytes, found = driver, max(size_bytes, 256), c_uint64()
        try:
            driver.call("cuMemAlloc_v2", byref(found), self.size_bytes)
        except StageError as error:
            free, total = driver.memory()
            raise StageError(f"{error}: {self.size_bytes} bytes asked, {free} of {total} are free") from error
        self.address = found.value

    def put(self, host: int, size_bytes: int, stream: Stream) -> None:
        """Queue a copy of host memory at address `host` to here."""
        self.driver.call("cuMemcpyHtoDAsync_v2", self.address, host, size_bytes, stream.handle)

    def get(self, host: int, size_bytes: int, stream: Stream) -> None:
        """Queue a copy from here to host memory at address `host`."""
        self.driver.call("cuMemcpyDtoHAsync_v2", host, self.address, size_bytes, stream.handle)

    def clear(self, stream: Stream) -> None:
        """Queue filling it with zeros."""
        self.driver.call("cuMemsetD8Async", self.address, 0, self.size_bytes, stream.handle)

    def take_rows(self, source: DeviceBuffer, rows: int, pitches: tuple[int, int], stream: Stream) -> None:
        """Queue a copy of the first `pitches[1]` bytes of each row, `pitches[0]` bytes long, of another buffer."""
        wide, narrow = pitches
        copy = _Copy2D(src_type=_ON_DEVICE, src=source.address, src_pitch=wide, dst_type=_ON_DEVICE)
        copy.dst, copy.dst_pitch, copy.width, copy.height = self.address, narrow, narrow, rows
        if narrow and rows:
            self.driver.call("cuMemcpy2DAsync_v2", byref(copy), stream.handle)

    def __del__(self) -> None:
        _release(self, "cuMemFree_v2", "address")


class PinnedBuffer:
    """Host memory that the GPU reads and writes by itself while the host goes on."""

    def __init__(self, driver: Driver, size_bytes: int) -> None:
        self.driver, self.size_bytes, found = driver, max(size_bytes, 256), c_void_p()
        driver.call("cuMemHostAlloc", byref(found), self.size_bytes, 0)
        self.address: int = found.value or 0

    def array(self, shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
        """A view of its first bytes, good while this buffer lives."""
        size = math.prod(shape) * kind.itemsize
        return np.frombuffer(memoryview((ctypes.c_char * size).from_address(self.address)).cast("B"), kind).reshape(
            shape
        )

    def __del__(self) -> None:
        _release(self, "cuMemFreeHost", "address")


class Slot:
    """One input or output: device memory and the pinned host memory it is filled from, both grown where needed."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.room(0)

    def room(self, size_bytes: int) -> int:
        """The device address of at least so many bytes."""
        held = getattr(self, "device", None)
        if held is None or held.size_bytes < size_bytes:
            self.device = DeviceBuffer(self.driver, 1 << max(size_bytes - 1, 0).bit_length())
            self.host = PinnedBuffer(self.driver, self.device.size_bytes)
        return self.device.address

    def put(self, value: np.ndarray, stream: Stream) -> None:
        """Queue a copy of `value` to the device; room was made."""
        np.copyto(self.host.array(value.shape, value.dtype), value)
        self.device.put(self.host.address, value.nbytes, stream)

    def get(self, shape: tuple[int, ...], kind: str, stream: Stream) -> np.ndarray:
        """Queue a copy from the device; what is given is filled when the stream is done, and good until the next."""
        found = self.host.array(shape, np.dtype(kind))
        self.device.get(self.host.address, found.nbytes, stream)
        return found


def _release(owner: Any, name: str, field: str) -> None:
    """Give back what `owner` holds, if it came to hold it; that the driver is gone already, at exit, is no fault."""
    held = getattr(owner, field, 0)
    if held:
        setattr(owner, field, 0)
        library = owner.driver._library
        library.cuCtxSetCurrent(owner.driver._context)
        getattr(library, name)(held)
