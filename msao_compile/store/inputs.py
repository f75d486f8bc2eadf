"""Digests of files outside the store, remembered by their times, size and inode: a no-op build reads no weights."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from msao_compile.manifest.digest import sha256_file

PLAIN, CHANGED = slice(0, 3), 3  # modification time, size and inode; then the time that nobody can set back


class Inputs:
    """Remembers digests in one JSON file; a file that is damaged or absent only costs hashing again."""

    def __init__(self, path: Path, write: bool = True) -> None:
        self.path, self.write = path, write
        self._known = _read(path)
        self._checked: set[str] = set()  # in this process

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes, in hex.

        Bytes that change while size and modification time stay are found by the change time. Hard links made in between
        move it as well: the own ones are told by `settle`, others cost one reading.

        Raises:
            OSError: the file cannot be read.
        """
        name = str(path.resolve())
        now, held = _signature(path), self._known.get(name)
        same = held is not None and held[PLAIN] == now[PLAIN]
        if held is not None and same and (name in self._checked or held[CHANGED] == now[CHANGED]):
            self._checked.add(name)
            return str(held[-1])
        found = sha256_file(path)
        self._known[name] = [*now, found]
        self._checked.add(name)
        self._save()
        return found

    def settle(self) -> None:
        """Note the change times that the links of a finished build have left."""
        for name in self._checked:
            held, path = self._known[name], Path(name)
            if path.is_file() and held[PLAIN] == (now := _signature(path))[PLAIN]:
                self._known[name] = [*now, held[-1]]
        self._save()

    def _save(self) -> None:
        if not self.write:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{threading.get_ident()}")
        temporary.write_text(json.dumps(self._known), encoding="utf-8")
        temporary.replace(self.path)


def _signature(path: Path) -> list[int | str]:
    status = path.stat()
    return [status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns]


def _read(path: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    whole = isinstance(content, dict) and all(isinstance(value, list) and len(value) == 5 for value in content.values())
    return content if whole else {}
