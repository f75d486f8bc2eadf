"""The real `tritonserver` in a process: its binary and stub come out of the nvidia-pytriton wheel.

The wheel wants NumPy 1 and cannot be installed beside this package; nothing of it is imported, so it is unpacked alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msao_compile.runtime.serve.triton.config import KEEPALIVE

WHEEL = "nvidia-pytriton==0.7.0"
UNPACKED = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "msao-compile" / WHEEL.replace("==", "-")
STARTS_S = 60


def unpacked() -> Path:
    """The folder of the wheel's files, fetched at the first use."""
    if not UNPACKED.is_dir():
        partial = UNPACKED.with_suffix(f".{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(partial), WHEEL]
        subprocess.run(command, check=True)
        partial.rename(UNPACKED)
    return UNPACKED


def backends(folder: Path) -> Path:
    """A folder of backends with the Python backend and the stub for this very Python beside it."""
    server = unpacked() / "pytriton" / "tritonserver"
    python = folder / "backends" / "python"
    shutil.copytree(server / "backends" / "python", python)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = python / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    return folder / "backends"


@contextmanager
def serving(repository: Path, folder: Path) -> Iterator[int]:
    """The gRPC port of a server of this model repository.

    The stub reads no PYTHONPATH: it takes the packages of the `python3` that comes first in PATH.
    """
    binary = unpacked() / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    binary.chmod(0o755)
    grpc, http, metrics = _free(3)
    libraries = [unpacked() / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [
        str(binary), f"--model-repository={repository}", f"--backend-directory={backends(folder)}", KEEPALIVE,
        f"--grpc-port={grpc}", f"--http-port={http}", f"--metrics-port={metrics}",
        "--grpc-address=127.0.0.1", "--http-address=127.0.0.1", "--exit-timeout-secs=5",
    ]  # fmt: skip
    log = folder / "triton.log"
    with log.open("wb") as told, subprocess.Popen(command, env=environment, stdout=told, stderr=told) as process:
        try:
            _wait(process, http, log)
            yield grpc
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(STARTS_S * 10):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
        if process.poll() is not None:
            break
    raise RuntimeError(f"tritonserver is not ready; its log: {log.read_text(errors='replace')[-4000:]}")


def _free(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
