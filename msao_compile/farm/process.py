"""The life of a child process and of what it starts: a group of its own, and at the end nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from msao_compile.farm.job import Job

POLL_SECONDS = 0.02
GRACE_SECONDS = 3.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def child(job: Job, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that works on `job`, and the descriptor to read its answers from; its group ends with the block."""
    answers, theirs = os.pipe()
    try:
        process = _started(job, log, theirs)
    except BaseException:
        os.close(answers)
        raise
    finally:
        os.close(theirs)
    try:
        yield process, answers
    finally:
        end(process)
        os.close(answers)
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()


def _started(job: Job, log: Path, answers: int) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        # A group of its own: Ctrl-C in a terminal reaches the parent alone, which then ends the whole group in order.
        return subprocess.Popen(
            [sys.executable, "-m", "msao_compile.farm.child", str(answers)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(answers,),
            env=_environment(job),
            process_group=0,
        )


def _environment(job: Job) -> dict[str, str]:
    # The child imports what the parent can import, and writes a stack to the log when native code crashes.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    threads = {} if job.threads is None else dict.fromkeys(THREAD_VARIABLES, str(job.threads))
    return {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", **threads}


def exited(process: subprocess.Popen[bytes], seconds: float = 0.0) -> bool:
    """Whether the process ends within a time. It is not reaped, so its id, which is also its group's, stays its own."""
    if process.returncode is not None:
        return True
    deadline = time.monotonic() + seconds
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and everything in its group: asked first, then killed."""
    with suppress(ProcessLookupError, PermissionError):
        if not exited(process):
            os.killpg(process.pid, signal.SIGTERM)
            exited(process, GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM set `stop` instead of breaking in anywhere; without effect off the main thread.

    A signal that is ignored stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    known = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    replaced = {number: before for number, before in known.items() if before not in (signal.SIG_IGN, None)}
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, before in replaced.items():
            signal.signal(number, before)
