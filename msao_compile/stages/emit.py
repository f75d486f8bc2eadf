"""Write a deployment folder: links to the store's objects in a folder beside it, which then takes its place at once."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msao_compile.manifest.schema import MANIFEST_NAME, Deployment
from msao_compile.manifest.signature import ENDING
from msao_compile.store import locks
from msao_compile.store.files import sync, translated
from msao_compile.store.record import Blob
from msao_compile.store.store import Store

logger = logging.getLogger(__name__)
SIGNATURE = MANIFEST_NAME + ENDING
ROOMS = ("modules", "engines", "tokenizer", "preprocessor", "evidence")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def write(folder: Path, deployment: Deployment, store: Store, blobs: Iterable[Blob]) -> Path:
    """Make the rooms of `folder` hold what the manifest names and nothing else; whoever looks sees all of it or none.

    What a user put beside the rooms stays. A folder that is right already is left as it is.

    Raises:
        StageError: an object is gone from the store or the folder cannot be written.
    """
    held = {blob.sha256: blob for blob in blobs}
    wanted = {path: held[reference.sha256] for path, reference in deployment.all_files().items()}
    text = deployment.model_dump_json(indent=1, exclude_none=True) + "\n"
    folder = folder.resolve()  # where it is a link, what it leads to changes and the link stays
    fresh, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    with translated("writing the deployment", folder), _alone(folder.parent):
        _recover(folder, fresh, old)
        if not _is_right(folder, text, {path: store.path(blob) for path, blob in wanted.items()}):
            fresh.mkdir()
            for path, blob in wanted.items():
                store.materialise(blob, fresh / path)
            if folder.exists():
                _carry_over(folder, fresh, not _reads(folder / MANIFEST_NAME, text))
            _write_last(fresh / MANIFEST_NAME, text)
            _take_the_place(fresh, folder, old)
    return folder / MANIFEST_NAME


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One writer at a time; the lock is the folder's above, because the deployment's own is exchanged."""
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        locks.wait(handle, fcntl.LOCK_EX, f"waiting for another build to write in {place}")
        yield
    finally:
        os.close(handle)


def _recover(folder: Path, fresh: Path, old: Path) -> None:
    """Clear up after a writer that was killed: between two renames the only complete folder is the old one."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left in (fresh, old):
        if left.exists():
            shutil.rmtree(left)


def _is_right(folder: Path, text: str, sources: dict[str, Path]) -> bool:
    """Whether the manifest reads so, and the rooms hold links to these objects, nothing else and no empty folder."""
    if not _reads(folder / MANIFEST_NAME, text):
        return False
    found = {path.relative_to(folder).as_posix() for room in ROOMS for path in (folder / room).rglob("*")}
    above = {parent.as_posix() for path in sources for parent in Path(path).parents[:-2]}
    there = (folder / path for path in sources)
    return found == {*sources, *above} and all(map(_same, there, sources.values()))


def _reads(manifest: Path, text: str) -> bool:
    return manifest.is_file() and manifest.read_bytes() == text.encode()


def _same(destination: Path, source: Path) -> bool:
    return destination.is_file() and not destination.is_symlink() and os.path.samefile(destination, source)


def _carry_over(folder: Path, fresh: Path, signs_other: bool) -> None:
    """Link what lies beside the rooms; it leaves the old folder only with the old folder.

    A signature of the manifest stays behind where it `signs_other` bytes.
    """

    def ours(place: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(place) == folder and name in (*ROOMS, MANIFEST_NAME, *stale)]

    stale = [SIGNATURE] if signs_other and (folder / SIGNATURE).exists() else []
    if stale:
        logger.warning(
            "%s: removed, because it signs the deployment.json before; sign the new one with `msao-compile sign`",
            folder / SIGNATURE,
        )

    shutil.copytree(folder, fresh, symlinks=True, ignore=ours, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, destination)


def _write_last(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)
    sync(path.parent)


def _take_the_place(fresh: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
    elif _exchanged(fresh, folder):
        shutil.rmtree(fresh)
    else:
        folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old)
    sync(folder.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change names in one step; False where the system cannot.

    Raises:
        OSError: it can, and refuses.
    """
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # no Linux, or a C library from before 2018
        return False
    if exchange(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
