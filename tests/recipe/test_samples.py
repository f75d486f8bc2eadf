"""Samples for ranges: every fault of the file is one sentence that names file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msao_compile.errors import RecipeError
from msao_compile.recipe.samples import APART, read_samples

GOOD = json.dumps({"question": "what?", "image": "a.png"})


def samples(folder: Path, *lines: str) -> Path:
    """A file of these lines beside a picture."""
    (folder / "a.png").write_bytes(b"picture")
    file = folder / "samples.jsonl"
    file.write_text("\n".join(lines))
    return file


def test_questions_come_with_the_picture_beside_the_file(tmp_path: Path) -> None:
    assert read_samples(samples(tmp_path, *[GOOD] * 4, "")) == [("what?", tmp_path / "a.png")] * 4


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GOOD, '{"question'], "line 2: is not JSON"),
        (["[1, 2]"], 'line 1: is no object with texts "question" and "image"'),
        (['{"question": 3, "image": "a.png"}'], 'line 1: is no object with texts "question" and "image"'),
        (['{"question": "what?", "image": "b.png"}'], "line 1: there is no picture .*b.png"),
        ([GOOD] * APART, f"holds {APART} samples, of which {APART} are kept"),
        ([], "holds 0 samples"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=f"ranges.samples: .*samples.jsonl.* ?{words}"):
        read_samples(samples(tmp_path, *lines))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing.jsonl cannot be read"):
        read_samples(tmp_path / "nothing.jsonl")
