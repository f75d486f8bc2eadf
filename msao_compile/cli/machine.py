"""What this machine is: processor, memory, disk, Jetson; read from the files in which Linux says so."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PROBE_LIMIT_S = 30.0
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
ARM_FEATURES = ("asimd", "asimddp", "i8mm", "bf16", "sve")
TEGRA_RELEASE = Path("/etc/nv_tegra_release")
JETPACK_OF_L4T = {"35": "5", "36": "6", "38": "7"}


def python_facts() -> dict[str, str]:
    """Interpreter and platform."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "architecture": platform.machine(),
    }


def cpu_facts(cpuinfo: str, affinity: int, cgroup_max: str) -> dict[str, Any]:
    """Processor name, features that matter to engines, and how many threads may run at once."""
    names = re.findall(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return {
        "name": names[0].strip() if names else platform.processor() or "unknown",
        "cpus": os.cpu_count() or 1,
        "usable_cpus": usable_cpus(affinity, cgroup_max),
        "features": cpu_features(cpuinfo),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def cpu_features(cpuinfo: str) -> list[str]:
    """The features of /proc/cpuinfo that engines use; `asimd` is also told by its common name neon."""
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(lines[0].split()) if lines else set()
    found = [name for name in (*FEATURES, *ARM_FEATURES) if name in present]
    return ["neon", *found] if "asimd" in present else found


def usable_cpus(affinity: int, cgroup_max: str) -> float:
    """CPUs this process may use: its affinity mask, cut down by a cgroup quota such as `200000 100000`."""
    quota, _, period = cgroup_max.strip().partition(" ")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return float(affinity)
    return min(float(affinity), int(quota) / int(period))


def memory_facts(meminfo: str) -> dict[str, int]:
    """Total, available and swap memory in bytes, from /proc/meminfo."""
    kib = {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}
    names = {"total_bytes": "MemTotal", "available_bytes": "MemAvailable", "swap_free_bytes": "SwapFree"}
    return {ours: kib.get(theirs, 0) * 1024 for ours, theirs in names.items()}


def jetson_facts(tegra_release: str) -> dict[str, str | None]:
    """L4T from /etc/nv_tegra_release (`# R36 (release), REVISION: 4.3, …`), its JetPack line, and the power mode."""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", tegra_release)
    major, revision = match.groups() if match else (None, None)
    package = _output("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack")
    line = JETPACK_OF_L4T.get(major or "")
    return {
        "l4t": f"{major}.{revision}" if match else None,
        "jetpack": package.partition("-")[0] if package else line and f"{line}.x",
        "power_mode": power_mode(_output("nvpmodel", "-q")),
    }


def power_mode(nvpmodel: str) -> str | None:
    """The mode in the answer of `nvpmodel -q`: `NV Power Mode: MAXN`."""
    match = re.search(r"NV Power Mode:\s*(.+)", nvpmodel)
    return match.group(1).strip() if match else None


def machine_facts(folder: Path) -> dict[str, Any]:
    """Everything above for this machine; free disk space is that of `folder`."""
    usage = shutil.disk_usage(folder)
    affinity = len(os.sched_getaffinity(0))
    return {
        **python_facts(),
        "cpu": cpu_facts(_text(Path("/proc/cpuinfo")), affinity, _text(Path("/sys/fs/cgroup/cpu.max"))),
        "memory": memory_facts(_text(Path("/proc/meminfo"))),
        "disk": {"folder": str(folder.resolve()), "free_bytes": usage.free, "total_bytes": usage.total},
        "jetson": jetson_facts(_text(TEGRA_RELEASE)) if TEGRA_RELEASE.exists() else None,
    }


def ask(name: str) -> dict[str, Any]:
    """The answer of a probe in a child process, or `{"error": why}`: a crash takes only the child with it."""
    command = [sys.executable, "-m", "msao_compile.cli.probe", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"gave no answer in {PROBE_LIMIT_S:.0f} s"}
    return reading(done.returncode, done.stdout, done.stderr)


def reading(code: int, stdout: str, stderr: str) -> dict[str, Any]:
    """What a child's exit status and words mean."""
    if code == 0:
        try:
            found: dict[str, Any] = json.loads(stdout.strip().rpartition("\n")[2])
        except ValueError:
            return {"error": "gave an answer that is not JSON"}
        return found
    if code < 0:
        return {"error": f"crashed with signal {-code}"}
    last = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit status {code}"
    return {"error": last}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
