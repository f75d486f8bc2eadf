"""Locks between processes (and threads): files held with flock, which the kernel lets go when a holder dies."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.05

logger = logging.getLogger(__name__)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a lock file, made with its folder where missing; closing it lets the lock go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def taken(handle: int, mode: int) -> bool:
    """Take the lock (`fcntl.LOCK_SH` or `fcntl.LOCK_EX`) if nobody is in the way."""
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(handle: int, mode: int, message: str) -> None:
    """Take the lock, however long that lasts; the message is logged where it is not free at once."""
    if not taken(handle, mode):
        logger.info("%s", message)
        fcntl.flock(handle, mode)


def wait_at_most(handle: int, mode: int, seconds: float) -> bool:
    """Take the lock within a time; whether that succeeded."""
    deadline = time.monotonic() + seconds
    while not taken(handle, mode):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
