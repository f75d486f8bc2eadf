"""Folders inside the store where stages write, gone when they end however they end."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msao_compile.store import locks

logger = logging.getLogger(__name__)


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """An empty folder under `root`, removed at the end; its lock tells others that its process lives.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = root / f"{os.getpid()}-{secrets.token_hex(8)}"
    with ExitStack() as held:
        # The gate keeps a sweep from seeing the lock file between its making and its locking.
        with _gate(root):
            handle = held.enter_context(locks.opened(_lock_of(folder)))
            locks.wait(handle, fcntl.LOCK_EX, "waiting for a workspace")
            folder.mkdir()
        try:
            yield folder
        finally:
            _remove(folder)


def sweep(root: Path) -> int:
    """Remove the workspaces whose process is dead; how many there were.

    A live process holds its workspace's lock. The process id in the name is for people: it may have been given to
    another process since, and means nothing outside its container.
    """
    if not root.is_dir():
        return 0
    with _gate(root):
        names = {path.name.removesuffix(".lock") for path in root.iterdir()} - {"gate"}
        dead = [root / name for name in sorted(names) if _is_dead(root / name)]
        for folder in dead:
            logger.info("removing what a process that died left in %s", folder)
            _remove(folder)
    return len(dead)


@contextmanager
def _gate(root: Path) -> Iterator[None]:
    with locks.opened(root / "gate.lock") as handle:
        locks.wait(handle, fcntl.LOCK_EX, "waiting for another process to open its workspace")
        yield


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _is_dead(folder: Path) -> bool:
    with locks.opened(_lock_of(folder)) as handle:
        return locks.taken(handle, fcntl.LOCK_EX)


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
        _lock_of(folder).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("could not remove the workspace %s: %s", folder, error)
