"""Archives whose bytes depend on what is in them alone: names in order, no times, no owners."""

from __future__ import annotations

import gzip
import io
import logging
import os
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from msao_compile.errors import InputError, MissingTool, StageError
from msao_compile.manifest.digest import sha256_bytes
from msao_compile.runtime.kit.plan import PLAN_NAME

logger = logging.getLogger(__name__)
MODE, LEVEL = 0o644, 9
ENDINGS = (".tar.zst", ".tar.gz", ".tar")


class Entry:
    """A file of an archive: its bytes, or the file that has them with its digest."""

    def __init__(self, path: str, content: bytes | Path, sha256: str | None = None) -> None:
        self.path, self.content, self._sha256 = path, content, sha256

    @cached_property
    def sha256(self) -> str:
        """The digest of its bytes."""
        if self._sha256 is not None:
            return self._sha256
        return sha256_bytes(self.content if isinstance(self.content, bytes) else self.content.read_bytes())

    @cached_property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def add_to(self, archive: tarfile.TarFile) -> None:
        """Write it, with no time and no owner."""
        about = tarfile.TarInfo(self.path)
        about.size, about.mode = self.size_bytes, MODE
        with self.opened() as content:
            archive.addfile(about, content)

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Its bytes as a stream."""
        if isinstance(self.content, bytes):
            yield io.BytesIO(self.content)
        else:
            with self.content.open("rb") as stream:
                yield stream


def check_ending(output: Path) -> None:
    """Refuse, before anything is made, what cannot be written.

    Raises:
        InputError: the ending is not known, or something is there already that is no kit's.
        MissingTool: the ending needs a library that is absent.
    """
    if output.name.endswith(".zst"):
        _zstandard()
    if output.suffix and not output.name.endswith(ENDINGS):
        raise InputError(f"{output}: kits are written as {', '.join(ENDINGS)} or into a folder without an ending")
    if not output.suffix and output.exists():
        raise InputError(f"{output}: exists already; choose another name with -o, or remove it")
    if output.suffix and os.path.lexists(output) and not _is_kit(output):
        raise InputError(f"{output}: exists already and is no kit; choose another name with -o, or remove it")


def _is_kit(path: Path) -> bool:
    """Whether an archive begins as `write` begins one: it may be made again, anything else is the user's."""
    begins = f"{PLAN_NAME}\0".encode()
    damaged = (OSError, EOFError, zlib.error, *((_zstandard().ZstdError,) if path.name.endswith(".zst") else ()))
    try:
        with path.open("rb") as file, _plain(file, path.name) as stream:
            found = stream.read(len(begins))
    except damaged as error:
        logger.debug("%s: is no archive: %s", path, error)
        return False
    return bool(found == begins)


def _plain(file: IO[bytes], name: str) -> Any:
    """What is in an archive, by the ending of its name, as a stream."""
    if name.endswith(".zst"):
        return _zstandard().ZstdDecompressor().stream_reader(file, closefd=False)
    return gzip.GzipFile(fileobj=file) if name.endswith(".gz") else nullcontext(file)


def write(output: Path, entries: Iterable[Entry]) -> Path:
    """Write a folder or an archive by the ending of its name; it is there whole or not at all.

    Raises:
        StageError: it cannot be written. InputError, MissingTool: as `check_ending`.
    """
    check_ending(output)
    partial = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix:
            with _compressed(partial, output.name) as stream:
                _tar(stream, entries)
        else:
            _folder(partial, entries)
        os.replace(partial, output)
    except OSError as error:
        raise StageError(f"{output}: the kit cannot be written ({error.strerror}); choose another place") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        elif partial.exists():
            partial.unlink()
    return output


def _tar(stream: Any, entries: Iterable[Entry]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            entry.add_to(archive)


def _folder(place: Path, entries: Iterable[Entry]) -> None:
    for entry in entries:
        path = place / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with entry.opened() as content, path.open("wb") as file:
            shutil.copyfileobj(content, file)


@contextmanager
def _compressed(partial: Path, name: str) -> Iterator[Any]:
    with partial.open("wb") as file:
        if name.endswith(".zst"):
            with _zstandard().ZstdCompressor(level=LEVEL).stream_writer(file, closefd=False) as stream:
                yield stream
        elif name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=LEVEL) as stream:
                yield stream
        else:
            yield file
        file.flush()
        os.fsync(file.fileno())


def has_zstandard() -> bool:
    """Whether `.tar.zst` can be written here."""
    try:
        _zstandard()
    except MissingTool:
        return False
    return True


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingTool(
            "a .tar.zst needs zstandard: pip install 'msao-compile[kit]', or name the kit .tar.gz"
        ) from error
    return zstandard
