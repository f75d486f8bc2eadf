"""`python -m msao_compile.cli.probe NAME`: ask one library a question in a process that may die of it."""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

CUDA_SUCCESS = 0
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


def cuda() -> dict[str, Any]:
    """The driver's own answer: is it there, does it start, which GPUs does it see."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"usable": False, "reason": "no NVIDIA driver (libcuda.so.1 is not installed)"}
    status = driver.cuInit(0)
    if status != CUDA_SUCCESS:
        return {"usable": False, "reason": f"the NVIDIA driver does not start (cuInit gives {status})"}
    version, devices = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(devices))
    gpus = [_gpu(driver, index) for index in range(devices.value)]
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    reason = "" if gpus else "the NVIDIA driver sees no GPU"
    return {"usable": bool(gpus), "reason": reason, "cuda": cuda_version, "gpus": gpus}


def _gpu(driver: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return {"name": name.value.decode(), "memory_bytes": memory.value, "compute_capability": ".".join(capability)}


def onnxruntime() -> dict[str, Any]:
    """The version of ONNX Runtime and the execution providers it was built with."""
    library = importlib.import_module("onnxruntime")
    return {"version": library.__version__, "providers": library.get_available_providers()}


def tensorrt() -> dict[str, Any]:
    """The version of TensorRT's Python package; only asked once the driver has answered."""
    return {"version": importlib.import_module("tensorrt").__version__}


def tensorrt_rtx() -> dict[str, Any]:
    """The version of TensorRT for RTX's Python package; only asked once the driver has answered."""
    return {"version": importlib.import_module("tensorrt_rtx").__version__}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "cuda": cuda,
    "onnxruntime": onnxruntime,
    "tensorrt": tensorrt,
    "tensorrt_rtx": tensorrt_rtx,
}


def answer(name: str) -> dict[str, Any]:
    """What a probe finds; a library that is simply not there is no accident."""
    try:
        return PROBES[name]()
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return {"error": "not installed"}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1])))
