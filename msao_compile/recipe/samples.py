"""Samples for ranges: JSON lines with a question and a picture that lies beside the file."""

from __future__ import annotations

import json
from pathlib import Path

from msao_compile.errors import RecipeError

APART = 3
"""The first samples, which give no ranges: parity compares what is quantised on them, and not on noise."""


def read_samples(path: Path) -> list[tuple[str, Path]]:
    """Question and picture of each line.

    Raises:
        RecipeError: the file, a line or a picture cannot be used, or there are too few; names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RecipeError(f"ranges.samples: {path} cannot be read ({said}); name a file of JSON lines") from error
    found = [_sample(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if len(found) <= APART:
        raise RecipeError(
            f"ranges.samples: {path} holds {len(found)} samples, of which {APART} are kept for parity and the others "
            "give ranges; add some, or take synthetic = true to try a build"
        )
    return found


def _sample(path: Path, number: int, line: str) -> tuple[str, Path]:
    where = f"ranges.samples: {path}, line {number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{where}: is not JSON ({error}); write one object a line") from error
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("question", "image")):
        raise RecipeError(f'{where}: is no object with texts "question" and "image"; give both')
    picture = path.parent / entry["image"]
    if not picture.is_file():
        raise RecipeError(f"{where}: there is no picture {picture}; give its path from the folder of the samples")
    return entry["question"], picture
