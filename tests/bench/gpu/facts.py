"""What the machine is: card, driver, libraries, and what its memory and its matrix units really give."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from statistics import median
from typing import Any

import torch

from msao_compile.runtime.backends import cuda
from tests.bench.gpu.asking import FAULTS
from tests.bench.gpu.work import Device, Result, parser, say, work_of
from tests.bench.machine import machine
from tests.bench.timing import clocked

PACKAGES = ("torch", "transformers", "triton", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "tensorrt",
            "tensorrt-rtx", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-runtime", "numpy")  # fmt: skip
ASKED = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "clocks.max.mem", "power.limit",
         "pcie.link.gen.current", "pcie.link.width.current", "persistence_mode")  # fmt: skip
COPY_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
MATRIX = {"cuda": 8192, "cpu": 256}
TRIES, WARM_UPS = 20, 3


def main() -> None:
    """Find out everything; what cannot be asked is written down as such."""
    chosen = parser(__doc__).parse_args()
    work = work_of(chosen)
    result = Result(chosen.out, machine=machine(), versions=versions(), nvidia_smi=nvidia_smi())
    driver = cuda.probe()
    result.add(gpu=driver if isinstance(driver, str) else vars(driver.device), torch_cuda=torch.version.cuda)
    for name, measured in (("bytes_per_s", bandwidth), ("fp16_flops_per_s", matrix_rate)):
        try:
            result.add(**{name: measured(work.device)})
        except FAULTS as error:
            result.add(**{f"{name}_fault": str(error)[:400]})
    say(", ".join(f"{name} {value}" for name, value in result.facts.items() if name not in ("machine", "versions")))


def versions() -> dict[str, str]:
    """Of the packages that matter and are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def nvidia_smi() -> dict[str, str] | str:
    """What the driver's own tool says, or why it says nothing."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not installed"
    command = ["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return (done.stdout + done.stderr).strip()[:400]
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return dict(zip(ASKED, values, strict=False))


def bandwidth(device: Device) -> float:
    """Bytes a second that a copy within the device reads and writes."""
    source = torch.ones(COPY_BYTES[device] // 2, dtype=torch.float16, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES[device] / (timed_ms(lambda: target.copy_(source), device) / 1e3)


def matrix_rate(device: Device) -> float:
    """Multiplications and additions a second of the fastest product in fp16 (fp32 on a CPU)."""
    size, kind = MATRIX[device], torch.float16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    return 2 * size**3 / (timed_ms(lambda: left @ right, device) / 1e3)


def timed_ms(work: Callable[[], Any], device: Device) -> float:
    """The median of several, by CUDA events on a GPU."""
    found = []
    for _ in range(WARM_UPS + TRIES):
        if device == "cpu":
            found.append(clocked(work)[1])
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return median(found[WARM_UPS:])


if __name__ == "__main__":
    main()
