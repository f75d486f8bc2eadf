"""A command under a time limit and a memory limit: a session of its own is watched, and nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.1
ENDING_SECONDS = 10.0
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Limits:
    """What a command may take: wall time, and the resident memory of all its processes together."""

    seconds: float
    size_bytes: int


@dataclass(frozen=True)
class Ended:
    """A command that has ended; `stopped` says why it was made to, and is empty where it ended by itself."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    """Of the command and of all that it waited for; what other work on the machine takes is not in it."""
    peak_rss_bytes: int
    stopped: str = ""


@dataclass(frozen=True)
class Member:
    """One process of a session."""

    group: int
    rss_bytes: int
    alive: bool


def run(
    command: Sequence[str],
    limits: Limits,
    folder: Path,
    environment: Mapping[str, str],
    stop: threading.Event,
    spent_s: float = 0.0,
) -> Ended:
    """Run a command in a folder until it ends, breaks a limit or `stop` is set; `spent_s` of its time is gone already.

    The address space is no measure of memory for torch, which reserves far more than it touches: what counts is the
    sum of resident sizes of the processes that the command started and that kept its session.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            stopped, peak = _watched(process.pid, limits, start - spent_s, stop)
        finally:
            cpu_seconds = _end(process)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        return Ended(process.returncode, out.read(), err.read(), seconds, cpu_seconds, peak, stopped)


def size_of(text: str) -> int:
    """Bytes from `6G`, `500M`, `2Gi` or a plain number.

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if found is None or found[2] not in UNITS:
        raise ValueError(f"'{text}' is no size: write a number of bytes with K, M, G, Ki, Mi or Gi, such as 6G")
    return int(float(found[1]) * UNITS[found[2]])


def members(session: int) -> list[Member]:
    """The processes of a session, from the kernel; none where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended in the meantime
            # The second field is the command in parentheses and may hold anything; the state follows it.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if fields and int(fields[3]) == session:
                found.append(Member(int(fields[2]), int(fields[21]) * PAGE_BYTES, fields[0] not in "ZX"))
    return found


def _watched(process: int, limits: Limits, start: float, stop: threading.Event) -> tuple[str, int]:
    """Why the command must be stopped, empty when it has ended by itself, and the most memory seen."""
    peak = 0
    while not _exited(process):
        held = sum(member.rss_bytes for member in members(process))
        peak = max(peak, held)
        if held > limits.size_bytes:
            return f"held more than {limits.size_bytes / 1e9:.3g} GB", peak
        if time.perf_counter() - start > limits.seconds:
            return f"ran longer than {limits.seconds:.3g} s", peak
        if stop.wait(POLL_SECONDS):
            return "interrupted", peak
    return "", peak


def _exited(process: int) -> bool:
    """Whether a child has ended; it is not reaped, so its id, which is also its session's, stays its own."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> float:
    """Kill what is left of the session, by the ids of its process groups, then reap its leader; its CPU seconds."""
    deadline = time.perf_counter() + ENDING_SECONDS
    while time.perf_counter() < deadline:
        left = {member.group for member in members(process.pid) if member.alive}
        if not _exited(process.pid):
            left.add(process.pid)
        if not left:
            break
        for group in left:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 10)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime
