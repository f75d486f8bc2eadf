"""Stage functions for the farm to run: each behaves in one way that the parent has to cope with."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msao_compile.errors import GateError, ShapeSpecialised

Arguments = Mapping[str, Any]
OnProgress = Callable[[Mapping[str, Any]], None]


class OwnGate(GateError):
    """A subclass that the parent cannot know by name."""


def double(arguments: Arguments, on_progress: OnProgress) -> object:
    for step in range(arguments.get("steps", 0)):
        on_progress({"step": step})
    return {"doubled": arguments["number"] * 2}


def allocate(arguments: Arguments, on_progress: OnProgress) -> int:
    return len(bytes([1]) * arguments["size_bytes"])


def spin(arguments: Arguments, on_progress: OnProgress) -> None:
    end = time.process_time() + arguments["seconds"]
    while time.process_time() < end:
        pass


def rest(arguments: Arguments, on_progress: OnProgress) -> None:
    time.sleep(arguments["seconds"])


def specialise(arguments: Arguments, on_progress: OnProgress) -> None:
    raise ShapeSpecialised("decoder froze batch_size at 1: mark it dynamic")


def refuse(arguments: Arguments, on_progress: OnProgress) -> None:
    raise OwnGate("cosine 0.14 is below 0.99")


def stumble(arguments: Arguments, on_progress: OnProgress) -> None:
    logging.getLogger("stage").info("about to stumble")
    raise KeyError("past_key_values.0.key")


def fill_the_disk(arguments: Arguments, on_progress: OnProgress) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.bin")


def return_an_object(arguments: Arguments, on_progress: OnProgress) -> object:
    return object()


def die(arguments: Arguments, on_progress: OnProgress) -> None:
    sys.stdout.write("building layer 17\n")
    sys.stdout.flush()
    ballast = bytearray(100_000_000)
    time.sleep(0.5)
    os.kill(os.getpid(), arguments["signal"])
    del ballast


def leave(arguments: Arguments, on_progress: OnProgress) -> None:
    sys.exit(7)


def environment(arguments: Arguments, on_progress: OnProgress) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def read_stdin(arguments: Arguments, on_progress: OnProgress) -> str:
    return sys.stdin.read()


def hang_with_a_child(arguments: Arguments, on_progress: OnProgress) -> None:
    """Start a process of its own, write both ids to a file, and stay; deaf to SIGTERM where asked."""
    if arguments.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleeper = subprocess.Popen(["sleep", "100"])
    pids = Path(arguments["pids"])
    pids.with_suffix(".new").write_text(f"{os.getpid()} {sleeper.pid}")
    pids.with_suffix(".new").rename(pids)
    time.sleep(100)


def leave_a_child_behind(arguments: Arguments, on_progress: OnProgress) -> int:
    return subprocess.Popen(["sleep", "100"]).pid
