"""Write a deployment folder: links to the store's objects, and the manifest last."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msao_compile.errors import StageError
from msao_compile.manifest.schema import MANIFEST_NAME, Deployment, FileRef
from msao_compile.store import locks
from msao_compile.store.files import translated
from msao_compile.store.record import Blob
from msao_compile.store.store import Store

ROOMS = ("modules", "engines", "tokenizer", "preprocessor", "evidence")


def write(folder: Path, deployment: Deployment, store: Store, blobs: Iterable[Blob]) -> Path:
    """Make the rooms of `folder` hold what the manifest names; the manifest is replaced in one step, then old files go.

    Raises:
        StageError: an object is gone from the store or the folder cannot be written.
    """
    held = {blob.sha256: blob for blob in blobs}
    files = deployment.all_files()
    manifest = folder / MANIFEST_NAME
    text = deployment.model_dump_json(indent=1, exclude_none=True) + "\n"
    with translated("writing the deployment", folder), _alone(folder):
        for reference in files.values():
            destination = folder / reference.path
            if not _same(destination, store.path(held[reference.sha256])):
                destination.parent.mkdir(parents=True, exist_ok=True)
                store.materialise(held[reference.sha256], destination)
        if not manifest.is_file() or manifest.read_text(encoding="utf-8") != text:
            _replace(manifest, text)
        _remove_others(folder, files)
    return manifest


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time: another build of the same recipe would take half-written files for left-overs."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        locks.wait(handle, fcntl.LOCK_EX, f"waiting for another build to write {folder}")
        yield
    finally:
        os.close(handle)


def _same(destination: Path, source: Path) -> bool:
    return destination.is_file() and not destination.is_symlink() and os.path.samefile(destination, source)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StageError(f"{path}: cannot be written ({error.strerror}); free space and build again") from error


def _remove_others(folder: Path, files: Mapping[str, FileRef]) -> None:
    """Whatever earlier builds left in the rooms of a deployment; what a user put beside them is not ours to remove."""
    for directory, _, names in os.walk(folder, topdown=False):
        room = Path(directory).relative_to(folder).parts[:1]
        for name in names:
            path = Path(directory) / name
            left = room[0] in ROOMS if room else name.startswith(f".{MANIFEST_NAME}.")
            if left and path.relative_to(folder).as_posix() not in files:
                path.unlink()
        if room and room[0] in ROOMS and not os.listdir(directory):
            os.rmdir(directory)
