"""Where a benchmark ran: machine, interpreter, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from tests.bench.children import REPOSITORY

VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def machine() -> dict[str, str]:
    """Facts that a reader needs to judge the figures; `load_average` is that of the minute before the run."""
    info = _cpu_info()
    flags = (info.get("flags") or info.get("Features") or "").split()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "vector_extensions": " ".join(flag for flag in VECTOR_FLAGS if flag in flags),
        "cores": str(os.cpu_count()),
        "memory_gib": f"{memory_bytes / 2**30:.1f}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average": f"{os.getloadavg()[0]:.2f}",
    }


def commit() -> str:
    """The commit's short name, `+ changes` where the work tree differs from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} + changes" if _git("status", "--porcelain") else name


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
