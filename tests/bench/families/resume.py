"""What a run leaves for the next one: rows, each with a key of what made it, in a file that is never half written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.bench.families.judge import Family
from tests.bench.families.limits import Limits

TOOLS = ("msao-compile", "torch", "transformers", "onnx-ir", "onnxscript", "optimum", "onnxruntime", "numpy")
CODE = ("*.py", "*.json", "*.toml")
OWN = ("run.py", "judge.py")  # what of this package decides a row


@dataclass
class Sheet:
    """All that is known so far, as it stands in the JSON file."""

    about: dict[str, Any] = field(default_factory=dict)
    """How it was made: command, commit, machine, versions, limits."""
    wall_s: float = 0.0
    """Over every run that gave a row."""
    families: dict[str, Family] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> Sheet:
        """What an earlier run left; nothing where there is none or another version wrote it."""
        try:
            if path is None:
                return cls()
            held = json.loads(path.read_text(encoding="utf-8"))
            rows = {name: Family.read(row) for name, row in held["families"].items()}
            return cls(held["about"], float(held["wall_s"]), rows)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def text(self) -> str:
        """As JSON, families in order."""
        rows = {name: self.families[name].stored() for name in sorted(self.families)}
        return json.dumps({"about": self.about, "wall_s": self.wall_s, "families": rows}, indent=1) + "\n"


def key_of(checkpoint: Path, code: str, tools: Mapping[str, str]) -> str:
    """Names what a family's row depends on: the checkpoint's files, the code and the tools."""
    parts = {"kind": "family row", "checkpoint": digest_of(checkpoint, ("*",)), "code": code, "tools": dict(tools)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def holds(row: Family | None, key: str, limits: Limits) -> bool:
    """Whether an earlier row need not be made again; one that a limit ended is, under other limits."""
    if row is None or row.key != key:
        return False
    return not row.stopped or row.limits == limits_as_json(limits)


def limits_as_json(limits: Limits) -> dict[str, float]:
    """As they stand beside a row."""
    return {"seconds": limits.seconds, "bytes": limits.size_bytes}


def code_digest(package: Path) -> str:
    """Of the package's code and data and of what here decides a row."""
    own = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in OWN)).hexdigest()
    return hashlib.sha256(f"{digest_of(package, CODE)} {own}".encode()).hexdigest()


def digest_of(folder: Path, patterns: Iterable[str]) -> str:
    """Of the names and bytes of the files below a folder; compiled Python does not count."""
    total = hashlib.sha256()
    files = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    for path in sorted(file for file in files if "__pycache__" not in file.parts):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of this package and of the libraries that a build goes through."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def write_whole(path: Path | None, text: str) -> None:
    """Write a file so that a reader, or a run that is killed, sees the old or the new one."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)
