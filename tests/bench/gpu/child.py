"""Runs one step: its output goes on as it comes, its result is read from the disk, and its end is told exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from threading import Thread
from typing import IO, Any

from tests.bench.children import REPOSITORY
from tests.bench.gpu.steps import Step, shown

KEPT_LINES = 60
GRACE_S = 5.0


def run(step: Step, limit_s: float, out: Path | None) -> dict[str, Any]:
    """What became of a step: status, exit code or signal, seconds, its last lines and what it wrote."""
    command = [*step.command, *(["--out", str(out)] if out is not None else [])]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **quiet, "PYTHONPATH": path, **step.environment}
    started, start = time.time(), time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=REPOSITORY,
        env=environment, start_new_session=True,
    )  # fmt: skip
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    reader = Thread(target=_forward, args=(child.stdout, lines), daemon=True)
    reader.start()
    late = _wait(child, limit_s)
    reader.join(GRACE_S)
    code = child.returncode
    return {
        "name": step.name,
        "command": shown(tuple(command)),
        "status": "timed out" if late else "ran" if code == 0 else "failed",
        "exit_code": code if code >= 0 else None,
        "signal": signal.Signals(-code).name if code < 0 else None,
        "limit_s": limit_s,
        "seconds": time.perf_counter() - start,
        "window": [started, time.time()],
        "last_lines": list(lines),
        "result": _read(out),
    }


def _wait(child: subprocess.Popen[str], limit_s: float) -> bool:
    """Whether it had to be ended; with it everything that it started."""
    try:
        child.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return True
    return False


def _forward(stream: IO[str] | None, lines: deque[str]) -> None:
    assert stream is not None  # it is a pipe
    for line in stream:
        text = line.rstrip()
        if text:
            lines.append(text[:500])
            sys.stderr.write(f"    {text[:300]}\n")
            sys.stderr.flush()


def _read(out: Path | None) -> dict[str, Any] | None:
    if out is None or not out.is_file():
        return None
    found: dict[str, Any] = json.loads(out.read_text())
    return found
