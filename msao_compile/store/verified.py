"""Remember which objects were hashed, so that looking again costs one stat and not one read."""

from __future__ import annotations

import os
from pathlib import Path


class Verified:
    """One small file an object: the modification time, size and inode it had when its bytes were last hashed.

    An object whose three numbers are still the same is taken for intact without reading it. That is enough against
    truncation, interrupted copies and programs that write to the file, and not against a byte that changes while the
    modification time stays (a failing disk, or somebody who sets the time back): only `Store.verify`, which reads
    everything, finds that.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def knows(self, sha256: str, status: os.stat_result) -> bool:
        """Whether the object was hashed when it had this status."""
        try:
            return self._file(sha256).read_text() == _signature(status)
        except (FileNotFoundError, UnicodeDecodeError):
            return False

    def remember(self, sha256: str, status: os.stat_result) -> None:
        """Note that the object was intact with this status; a half-written note equals none and costs a hash."""
        file = self._file(sha256)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_signature(status))

    def forget(self, sha256: str) -> None:
        """Hash the object when it is looked at next."""
        self._file(sha256).unlink(missing_ok=True)

    def _file(self, sha256: str) -> Path:
        return self.root / sha256[:2] / sha256


def _signature(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}\n"
