"""What was done already: one file for each phase of each module in `state/`, so that a kit killed anywhere goes on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msao_compile.errors import StageError
from msao_compile.runtime.kit.files import read_json, write_json, written

STATE = "state"


@dataclass(frozen=True)
class Entry:
    """How a phase ended: `done`, `failed`, or `not run` with the reason; `key` names everything it depended on."""

    verdict: str
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    exit_code: int = 0


class Journal:
    """The entries of a kit's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / STATE

    def place(self, module: str, phase: str) -> Path:
        """Where the entry of a phase stands; other files of the phase stand beside it."""
        return self.folder / module.replace("/", ".") / f"{phase}.json"

    def find(self, module: str, phase: str, key: str) -> Entry | None:
        """The entry of a phase that was done on just these grounds; None where it must be done (again)."""
        entry = self.recall(module, phase, key)
        return entry if entry is not None and entry.verdict == "done" else None

    def recall(self, module: str, phase: str, key: str) -> Entry | None:
        """The entry of a phase on just these grounds, however it ended; None where there is none."""
        content = read_json(self.place(module, phase))
        try:
            entry = Entry(**content)
        except TypeError:  # none, or damaged
            return None
        return entry if entry.key == key else None

    def write(self, module: str, phase: str, entry: Entry) -> Entry:
        """Keep an entry, whole or not at all."""
        write_json(self.place(module, phase), asdict(entry))
        return entry

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One kit.py at a time in a folder.

        Raises:
            StageError: another one runs here, or the folder cannot be written.
        """
        with written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StageError(f"{self.folder.parent}: another kit.py runs here; wait for it or end it") from error
            yield
        finally:
            os.close(handle)
