"""Child processes, one after another: each peer alone on the machine, and whole commands with their wall time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.work import THREADS

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 1800.0


class ChildFailed(Exception):
    """A child gave no result; the message is the reason, on one line."""


@dataclass(frozen=True)
class Finished:
    """A command that exited with 0."""

    stdout: str
    seconds: float
    peak_rss_bytes: int


def finish(command: Sequence[str]) -> Finished:
    """Run a whole command.

    `peak_rss_bytes` is the largest of it and of every process it waited for.

    Raises:
        ChildFailed: it is not there, failed, or ran longer than the limit.
    """
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = os.environ | threads | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(command, stdout=out, stderr=err, cwd=REPOSITORY, env=environment)
        except OSError as error:
            raise ChildFailed(f"{command[0]}: {error.strerror}") from error
        status, peak = _wait(child, start)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        if status != 0:
            raise ChildFailed(f"{_shown(command)} gave {status}: {_last_line(err.read())}")
        return Finished(out.read(), seconds, peak)


def _wait(child: subprocess.Popen[Any], start: float) -> tuple[int, int]:
    """Exit status and peak RSS; `wait4` is polled so that a hanging child is ended at the limit."""
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage.ru_maxrss * 1024
        if time.perf_counter() - start > LIMIT_S:
            child.kill()
            raise ChildFailed(f"ran longer than {LIMIT_S:.0f} s")
        time.sleep(0.001)


def result(command: Sequence[str]) -> dict[str, Any]:
    """The JSON object on the last line of a command's stdout.

    Raises:
        ChildFailed: as `finish`, or there is none.
    """
    done = finish(command)
    try:
        found: dict[str, Any] = json.loads(_last_line(done.stdout))
    except ValueError as error:
        raise ChildFailed(f"{_shown(command)} printed no result") from error
    return found


def module(name: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """The command that runs a Python module."""
    return [python, "-m", name, *arguments]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no output"


def _shown(command: Sequence[str]) -> str:
    return " ".join([Path(command[0]).name, *command[1:]])
