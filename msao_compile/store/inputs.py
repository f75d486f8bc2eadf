"""Digests of files outside the store, remembered by time, size and inode: a no-op build reads no weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from msao_compile.manifest.digest import sha256_file


class Inputs:
    """Remembers digests in one JSON file; a file that is damaged or absent only costs hashing again."""

    def __init__(self, path: Path, write: bool = True) -> None:
        self.path, self.write = path, write
        self._known = _read(path)

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes, in hex.

        Raises:
            OSError: the file cannot be read.
        """
        name = str(path.resolve())
        status = path.stat()
        signature = [status.st_mtime_ns, status.st_size, status.st_ino]
        held = self._known.get(name)
        if held is not None and held[:3] == signature:
            return str(held[3])
        found = sha256_file(path)
        self._known[name] = [*signature, found]
        if self.write:
            self._save()
        return found

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self._known), encoding="utf-8")
        temporary.replace(self.path)


def _read(path: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    whole = isinstance(content, dict) and all(isinstance(value, list) and len(value) == 4 for value in content.values())
    return content if whole else {}
