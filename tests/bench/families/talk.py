"""What the command line says, read back: its JSON object, its progress lines, its sentences without this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FINISHED = re.compile(r"^(\w+) (\S+?)(?: \((\w+)\))? … ", re.MULTILINE)
STARTED = re.compile(r"^(\w+ \S+(?: \(\w+\))?) started \(", re.MULTILINE)
# A path that begins at the root, at home or with dots: its last part alone says what it is.
PLACE = re.compile(r"(?<![\w./~-])(?:~|\.{1,2})?/(?:[^\s/:'\"`,;()]+/)*([^\s/:'\"`,;()]+)/?")


def answer(stdout: str) -> dict[str, Any]:
    """The JSON object that a command printed; empty where it printed none."""
    try:
        found = json.loads(stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def finished(stderr: str) -> Iterator[tuple[str, str, str]]:
    """Stages that came through, as (stage, component or model, dialect or nothing)."""
    for found in FINISHED.finditer(stderr):
        yield found[1], found[2].rpartition("/")[2], found[3] or ""


def unfinished(stderr: str) -> str:
    """The last stage that started and has not come through; empty where there is none."""
    open_stages = [found[1] for found in STARTED.finditer(stderr) if f"\n{found[1]} … " not in f"\n{stderr}"]
    return open_stages[-1] if open_stages else ""


def last_line(stderr: str, code: int) -> str:
    """What a command that printed no error object said last."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    said = lines[-1].strip().removeprefix("error: ") if lines else "said nothing"
    return f"exit code {code}: {said}"


def without_paths(sentence: str, checkpoint: Path, folder: Path) -> str:
    """One line in which folders of this machine are gone: the checkpoint is its name, other paths their last part."""
    line = " ".join(sentence.split())
    line = line.replace(str(checkpoint), checkpoint.name).replace(f"{folder}/", "").replace(str(folder), folder.name)
    return PLACE.sub(r"\1", line)
