"""Changes to files that are either done or not, and the sentence for a disk that refuses them."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msao_compile.errors import StageError

FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = 0o444


@contextmanager
def translated(doing: str, place: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an OSError of the block into one sentence.

    Args:
        doing: what was going on, such as "storing weights.bin".
        place: a path on the file system concerned; it need not exist.
        needed_bytes: how much the block has to write, where that is known.

    Raises:
        StageError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StageError(full(doing, place, needed_bytes)) from error
        raise StageError(f"{doing} failed in {place}: {error}; correct that and build again") from error


def full(doing: str, place: Path, needed_bytes: int | None) -> str:
    """The sentence for a full disk: how much is needed and how much is free, in megabytes."""
    free = free_bytes(place) / 1e6
    needs = "more space" if needed_bytes is None else f"{needed_bytes / 1e6:.1f} MB"
    return (
        f"no space is left for {place}: {doing} needs {needs} and {free:.1f} MB are free; "
        "free some space, and the next build continues from what is finished"
    )


def free_bytes(place: Path) -> int:
    """Free bytes of the file system that a path is on, or would be."""
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and make their names last."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def place(source: Path, destination: Path) -> None:
    """Move a finished file to its name on the same file system, read-only: first contents last, then the name."""
    make_folder(destination.parent)
    os.chmod(source, READ_ONLY)
    sync(source)
    os.replace(source, destination)
    sync(destination.parent)


def movable(path: Path, folder: Path) -> bool:
    """Whether a file may become an object by renaming: in the same file system, and under this one name only.

    A file with a second hard link, or behind a symbolic link, belongs to someone else as well and is copied.
    """
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_dev == folder.stat().st_dev


def link_or_copy(source: Path, destination: Path) -> None:
    """Make `destination` the same file as `source`, or a read-only copy where linking is refused; never half a file.

    Raises:
        OSError: neither is possible; what was at `destination` is still there.
    """
    make_folder(destination.parent)
    partial = destination.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        _link(source, partial)
        os.replace(partial, destination)
        sync(destination.parent)
    finally:
        with suppress(
            FileNotFoundError
        ):  # it is still there where renaming one link of a file over another did nothing
            partial.unlink()


def _link(source: Path, partial: Path) -> None:
    try:
        os.link(source, partial)
    except OSError as error:
        if error.errno in (*FULL, errno.ENOENT):
            raise
        shutil.copyfile(source, partial)
        os.chmod(partial, READ_ONLY)
        sync(partial)
