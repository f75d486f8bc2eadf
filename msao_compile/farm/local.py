"""Run stages on this machine, each in a child process of its own, so that its peak memory is its own and is known."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msao_compile import errors
from msao_compile.errors import Interrupted, MsaoError, StageError
from msao_compile.farm.child import peak_rss_bytes
from msao_compile.farm.job import Job, OnProgress, Progress, Result
from msao_compile.farm.process import GRACE_SECONDS, child, exited, stopped_by_signals

LISTEN_SECONDS = 0.1
LOG_LINES = 5

logger = logging.getLogger(__name__)


def run(job: Job, on_progress: OnProgress | None = None, stop: threading.Event | None = None) -> Result:
    """Run a job in a child process; Ctrl-C or SIGTERM ends the child and everything it started.

    Signals are handled where this is called on the main thread; elsewhere give `stop`, which ends the job when set.

    Raises:
        MsaoError: whatever error of `msao_compile.errors` the job raised, with its message.
        StageError: the job raised anything else, or its process died; the message names the log.
        Interrupted: Ctrl-C or SIGTERM.
    """
    stop = stop or threading.Event()
    with stopped_by_signals(stop):
        return _run(job, on_progress, stop)


@dataclass
class _Account:
    """What is known so far of a child that may die without a word."""

    peak_bytes: int = 0
    answer: dict[str, Any] | None = None


def _run(job: Job, on_progress: OnProgress | None, stop: threading.Event) -> Result:
    if stop.is_set():
        raise _interrupted(job)
    start = time.perf_counter()
    account = _Account()
    with _log_of(job) as log:
        with child(job, log) as (process, answers):
            _hand_over(job, process)
            for record in _progress(job, process, answers, account, stop):
                if on_progress is not None:
                    on_progress(record)
            _let_end(job, process)
        if account.answer is None:
            raise _death(job, process.returncode, account.peak_bytes, log)
        if "error" in account.answer:
            raise _error(job, account.answer["error"], log)
    took = account.answer["usage"]
    return Result(value=account.answer["value"], seconds=time.perf_counter() - start, **took)


def _hand_over(job: Job, process: subprocess.Popen[bytes]) -> None:
    line = json.dumps({"function": job.function, "arguments": dict(job.arguments)}).encode() + b"\n"
    assert process.stdin is not None  # for the type checker: it was opened as a pipe
    with suppress(BrokenPipeError):  # the child is dead already; what it left tells why
        process.stdin.write(line)
        process.stdin.flush()


def _progress(
    job: Job, process: subprocess.Popen[bytes], answers: int, account: _Account, stop: threading.Event
) -> Iterator[Progress]:
    """The child's progress records until it has answered or is dead; the answer goes to the account."""
    ready = select.poll()
    ready.register(answers, select.POLLIN)
    unread = b""
    while account.answer is None:
        if stop.is_set():
            raise _interrupted(job)
        alive = not exited(process)
        account.peak_bytes = max(account.peak_bytes, peak_rss_bytes(process.pid) or 0)
        heard = ready.poll(LISTEN_SECONDS * 1000 if alive else 0)
        chunk = os.read(answers, 1 << 16) if heard else b""
        if not chunk and (heard or not alive):
            return
        *lines, unread = (unread + chunk).split(b"\n")
        for message in map(json.loads, lines):
            if "progress" in message:
                yield message["progress"]
            else:
                account.answer = message


def _let_end(job: Job, process: subprocess.Popen[bytes]) -> None:
    if not exited(process, GRACE_SECONDS):
        logger.warning("the process of %s answered but does not end; killing it", job.called)


@contextmanager
def _log_of(job: Job) -> Iterator[Path]:
    """The job's log; a temporary one stays only where an error sends the user to it."""
    if job.log is not None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        yield job.log
        return
    handle, name = tempfile.mkstemp(prefix="msao-compile-", suffix=".log")
    os.close(handle)
    wanted = False
    try:
        yield Path(name)
    except StageError as error:
        wanted = name in str(error)
        raise
    finally:
        if not wanted:
            Path(name).unlink(missing_ok=True)


def _interrupted(job: Job) -> Interrupted:
    return Interrupted(f"interrupted in {job.called}; what was finished is kept, and the next build continues")


def _death(job: Job, exit_code: int, peak_bytes: int, log: Path) -> StageError:
    if exit_code < 0:
        how = f"was killed by {signal.Signals(-exit_code).name}"
        if -exit_code == signal.SIGKILL:
            how += ", which the system does when memory runs out"
    else:
        how = f"ended with exit code {exit_code} before it answered"
    return StageError(
        f"the process of {job.called} {how}; it held at least {peak_bytes / 1e6:.0f} MB, "
        f"and its log {log} ends with: {_last_lines(log)}"
    )


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"nothing readable ({error.strerror})"
    return " | ".join(lines[-LOG_LINES:]) or "nothing"


def _error(job: Job, told: dict[str, str], log: Path) -> MsaoError:
    kind = getattr(errors, told["class"], None) if told["class"] else None
    if kind is None:
        error: MsaoError = StageError(f"{job.called} failed with {told['message']}; the traceback is in {log}")
    else:
        error = kind(told["message"])
    error.add_note(told["traceback"])
    return error
