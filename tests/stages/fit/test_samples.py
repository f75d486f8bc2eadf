"""What is fitted on is never what the loss is shown on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from msao_compile.errors import InputError
from msao_compile.stages.fit.samples import files, read, read_sets


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"what is {number}?", "answer": f" {number} "} for number in range(start, start + count)]


def test_one_file_is_divided_by_what_its_samples_hold_and_by_the_seed(tmp_path: Path) -> None:
    some = rows(50)
    sets = read_sets(write(tmp_path / "a.jsonl", some), None, 7)
    assert (len(sets.fit), len(sets.held_out)) == (30, 20)
    assert not {one.digest for one in sets.fit} & {one.digest for one in sets.held_out}
    turned = read_sets(write(tmp_path / "b.jsonl", some[::-1]), None, 7)
    assert turned.told() == sets.told()
    assert read_sets(tmp_path / "a.jsonl", None, 8).told() != sets.told()


def test_the_same_sample_twice_is_one_so_that_it_cannot_be_in_both(tmp_path: Path) -> None:
    sets = read_sets(write(tmp_path / "a.jsonl", rows(30) + rows(30)), None, 0)
    assert len(sets.fit) + len(sets.held_out) == 30


def test_a_file_held_out_that_overlaps_is_refused(tmp_path: Path) -> None:
    fit = write(tmp_path / "fit.jsonl", rows(20))
    other = write(tmp_path / "other.jsonl", rows(20, start=20))
    assert len(read_sets(fit, other, 0).held_out) == 20
    write(other, [*rows(20, start=20), {"question": "what is 3?", "answer": "another label"}])
    with pytest.raises(
        InputError, match=r"other.jsonl: 1 of its samples are in .*fit.jsonl too, such as 'what is 3\?'"
    ):
        read_sets(fit, other, 0)


def test_a_question_with_another_picture_is_another_sample(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    same = {"question": "what is it?", "answer": "a"}
    found = read(write(tmp_path / "q.jsonl", [{**same, "image": "a.png"}, {**same, "image": "b.png"}, same]))
    assert [one.pictures for one in found] == [(b"a.png",), (b"b.png",), ()]
    assert found[0].answer == "a" and len({one.digest for one in found}) == 3
    assert files(tmp_path / "q.jsonl") == [tmp_path / "q.jsonl", tmp_path / "a.png", tmp_path / "b.png"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: is not JSON"),
        ("[1]", 'line 1: is no object with texts "question" and "answer"'),
        ('{"question": "a?"}', 'texts "question" and "answer"'),
        ('{"question": "a?", "answer": 3}', 'texts "question" and "answer"'),
        ('{"question": "a?", "answer": "b", "image": "gone.png"}', r"picture .*gone.png cannot be read"),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=said):
        read(path)


def test_too_few_samples_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 different samples held out say nothing"):
        read_sets(write(tmp_path / "a.jsonl", rows(20)), write(tmp_path / "b.jsonl", rows(4, start=20)), 0)
    with pytest.raises(InputError, match="cannot be read"):
        read_sets(tmp_path / "none.jsonl", None, 0)
