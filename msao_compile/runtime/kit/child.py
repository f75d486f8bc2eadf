"""Child processes: each builds or runs one module, so that a crash ends it alone and its peak of memory is its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msao_compile.runtime.kit.files import read_json, write_json, written
from msao_compile.runtime.kit.journal import Entry

WORKER = "msao_compile.runtime.kit.worker"
PROGRESS = b"progress "
"""Starts a line of a child that is told on."""
LAST_CHARACTERS = 400
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(folder: Path, job: Mapping[str, Any], place: Path, tell: Callable[[str], None]) -> Entry:
    """Let a child do `job` in the kit's folder; its progress is told, and its other talk goes to `<place>.log`.

    Gives how it ended, with `seconds` and `peak_rss_bytes` among the facts.

    Raises:
        StageError: the disk is full.
    """
    asked, answered = place.with_suffix(".job"), place.with_suffix(".answer")
    write_json(asked, dict(job))
    if answered.exists():
        answered.unlink()
    started = time.perf_counter()
    with written(place), place.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(asked), str(answered)],
            cwd=folder, env=_environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, preexec_fn=_end_with_parent,
        )  # fmt: skip
        for line in process.stdout or ():
            if line.startswith(PROGRESS):
                tell(line.decode(errors="replace").strip())
            else:
                log.write(line)
        _, ended, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(ended)
    measured = {"seconds": round(time.perf_counter() - started, 3), "peak_rss_bytes": used.ru_maxrss * 1024}
    content = read_json(answered)
    if process.returncode != 0 or content is None:
        reason = f"{_how(process.returncode)}; {_last_words(place.with_suffix('.log'))}"
        return Entry("failed", reason, measured, exit_code=3)
    entry = Entry(**content)
    return replace(entry, facts={**entry.facts, **measured})


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONFAULTHANDLER": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _end_with_parent() -> None:
    """Called in the child: whoever kills kit.py leaves no build behind that would write beside the next one's."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _how(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, as the system does when memory runs out"
    return f"its process ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit {code}"


def _last_words(log: Path) -> str:
    words = " ".join(log.read_text(errors="replace").split())
    return f"it said: {words[-LAST_CHARACTERS:]}" if words else "it said nothing"
