"""The child's side of a job: `python -m msao_compile.farm.child FD` reads it on stdin and answers in JSON lines on FD.

Lines are `{"progress": {...}}` any number of times, then one `{"value": ..., "usage": {...}}` or
`{"error": {"class": ..., "message": ..., "traceback": ...}}`. stdin stays open as long as the parent lives.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import logging
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msao_compile import errors


def main() -> None:
    """Run one job and answer."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as answers:
        turn = threading.Lock()  # a stage may report from several threads

        def send(message: object) -> None:
            line = json.dumps(message, allow_nan=False) + "\n"
            with turn:
                answers.write(line)
                answers.flush()

        job = json.loads(sys.stdin.readline())
        _watch_parent()
        send(_outcome(job["function"], job["arguments"], lambda record: send({"progress": record})))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the answer is out: taking torch apart again would only cost seconds


def _outcome(function: str, arguments: Mapping[str, Any], on_progress: Callable[[Mapping[str, Any]], None]) -> object:
    # The whole process is this one call: whatever escapes here would reach the parent as a bare exit code.
    try:
        module, _, name = function.partition(":")
        value = getattr(importlib.import_module(module), name)(arguments, on_progress)
        json.dumps(value, allow_nan=False)
        return {"value": value, "usage": usage()}
    except Exception as error:  # noqa: BLE001
        traceback.print_exc(file=sys.stderr)
        return {"error": {**_described(error), "traceback": traceback.format_exc()}}


def _described(error: Exception) -> dict[str, str]:
    for kind in type(error).__mro__:
        if kind.__module__ == errors.__name__:
            return {"class": kind.__name__, "message": str(error)}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"no space is left on the disk ({error}); free some space, and the next build continues"
        return {"class": "StageError", "message": message}
    return {"class": "", "message": f"{type(error).__name__}: {error}"}


def usage() -> dict[str, float]:
    """Peak memory in bytes and processor time in seconds of this process."""
    own, waited_for = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = own.ru_utime + own.ru_stime + waited_for.ru_utime + waited_for.ru_stime
    return {"peak_rss_bytes": peak_rss_bytes("self") or own.ru_maxrss * 1024, "cpu_seconds": cpu_seconds}


def peak_rss_bytes(process: int | str) -> int | None:
    """The most memory a live process held so far, from the kernel; None where that is not to be had.

    `ru_maxrss` is no substitute where this works: after fork and exec it starts from the size of the *parent*.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((int(kibibytes) * 1024 for kibibytes in found), None)


def _watch_parent() -> None:
    """End this process and those it started when the parent's end of stdin closes, however the parent ended."""
    line = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if hasattr(fcntl, "F_SETSIG"):
        # Linux itself kills the group, at once, even while native code keeps Python from running.
        fcntl.fcntl(line, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(line, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(line, fcntl.F_SETFL, fcntl.fcntl(line, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_end_at_silence, args=(line,), daemon=True, name="watch-parent").start()


def _end_at_silence(line: int) -> None:
    while os.read(line, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
