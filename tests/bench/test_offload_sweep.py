"""A sweep is kept as it goes, goes on where it was stopped, and says what is wrong with what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from msao_compile.bench import sweep as sweeping
from msao_compile.bench.policies import policies
from msao_compile.bench.run import asked, pair_of
from msao_compile.bench.sweep import Asking, one, rows_of, sweep
from msao_compile.errors import DamagedFile, DeploymentError, InputError
from msao_compile.runtime import load

SETTING = """
name = "tiny"
why = "by hand"
[edge]
name = "edge"
[cloud]
name = "cloud"
slower = 20.0
[[sweeps]]
mbps = [5.0, 50.0]
rtt_ms = [20.0]
[[sweeps]]
mbps = [50.0]
rtt_ms = [20.0, 80.0]
sessions = [1, 2]
"""
POINTS = 5
"""One of those above stands twice."""


@pytest.fixture
def asking(words: Path, tmp_path: Path) -> Asking:
    (tmp_path / "setting.toml").write_text(SETTING)
    rows = [{"question": tiny.prompt(seed), "answer": "w1", "kind": "words"} for seed in range(6)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Asking(words, tmp_path / "setting.toml", tmp_path / "samples.jsonl", 4, ("cloud-only", "auto"))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What is run, in this process instead of in others."""
    found: list[tuple[int, str]] = []

    def here(asking: Asking, left: Sequence[tuple[int, str]], jobs: int) -> Iterator[dict[str, Any]]:
        for index, name in left:
            found.append((index, name))
            yield one(asking, index, name)

    monkeypatch.setattr(sweeping, "_run", here)
    return found


def untold(done: int, of: int) -> None:
    """Nobody looks."""


def test_every_point_is_run_once_with_every_policy_and_what_is_kept_is_not_run_again(
    asking: Asking, ran: list[tuple[int, str]], tmp_path: Path
) -> None:
    kept, told = tmp_path / "points.jsonl", list[tuple[int, int]]()
    rows = sweep(asking, kept, 1, lambda done, of: told.append((done, of)))
    assert len(ran) == len(set(ran)) == len(rows) == 2 * POINTS
    assert told[0] == (0, 10) and told[-1] == (10, 10)
    assert [row["policy"] for row in rows] == ["cloud-only", "auto"] * POINTS
    assert {(row["n"], row["equal"]) for row in rows} == {(4, 4)}
    ran.clear()
    assert sweep(asking, kept, 1, untold) == rows
    assert ran == []


def test_a_sweep_goes_on_where_it_was_stopped(asking: Asking, ran: list[tuple[int, str]], tmp_path: Path) -> None:
    kept = tmp_path / "points.jsonl"
    rows = sweep(asking, kept, 1, untold)
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:7]))
    ran.clear()
    assert sweep(asking, kept, 1, untold) == rows
    assert len(ran) == 3
    assert kept.read_text() == "".join(lines)  # the same numbers again


@pytest.mark.parametrize("changed", ["setting", "samples", "questions"])
def test_results_of_something_else_are_not_taken(
    asking: Asking, ran: list[tuple[int, str]], tmp_path: Path, changed: str
) -> None:
    kept = tmp_path / "points.jsonl"
    sweep(asking, kept, 1, untold)
    ran.clear()
    if changed == "questions":
        asking = replace(asking, questions=3)
    else:
        file: Path = getattr(asking, changed)
        file.write_text(file.read_text().replace("slower = 20.0", "slower = 10.0").replace('"w1"', '"w2"'))
    sweep(asking, kept, 1, untold)
    assert len(ran) == 2 * POINTS


def test_results_of_other_code_are_not_taken(
    asking: Asking, ran: list[tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "points.jsonl"
    sweep(asking, kept, 1, untold)
    ran.clear()
    monkeypatch.setattr(sweeping, "code", lambda: "of another version")
    sweep(asking, kept, 1, untold)
    assert len(ran) == 2 * POINTS


@pytest.mark.parametrize("line", ["{", "5", "[]", '{"key": "other"}', '{"mbps": 1.0}'])
def test_a_damaged_file_of_results_is_told_and_not_overwritten(asking: Asking, tmp_path: Path, line: str) -> None:
    kept = tmp_path / "points.jsonl"
    kept.write_text(line + "\n")
    with pytest.raises(DamagedFile, match=r"points\.jsonl: holds other than results .*: remove it"):
        sweep(asking, kept, 1, untold)
    assert kept.read_text() == line + "\n"


def test_an_unknown_policy_is_told_with_those_there_are(asking: Asking, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="policy 'best' is not known: choose from 'cloud-only', 'edge-only', 'stop-and-wait'"
    ):
        sweep(replace(asking, only=("best",)), tmp_path / "points.jsonl", 1, untold)


@pytest.mark.parametrize(
    "content",
    ["", "\n", "{", "[]\n", '{"question": "what?"}\n', '{"question": "what?", "answer": 5}\n',
     '{"question": "what?", "answer": "w1", "image": 5}\n'],
)  # fmt: skip
def test_samples_that_are_none_are_told(tmp_path: Path, content: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=r"samples\.jsonl: (no samples as JSON lines|each line needs question and)"):
        rows_of(file, 5)


def test_a_missing_picture_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png: the picture of a sample cannot be read"):
        asked([{"question": "what?", "answer": "w1", "image": "none.png"}], tmp_path)


def test_a_deployment_that_measured_nothing_cannot_be_benched(copied: Callable[..., Path]) -> None:
    with pytest.raises(DeploymentError, match="both measured: build a recipe with roles draft and target"):
        pair_of(load(copied(primitives=[])))
    with pytest.raises(DeploymentError, match="one that verifies"):
        pair_of(load(copied(speculation=[])))


def test_policies_that_need_a_fit_are_left_out_without_one(words: Path) -> None:
    assert set(policies(None)) - set(policies(load(words).deployment)) == {
        "calibrated", "calibrated, no MAS", "calibrated, no speculation", "calibrated, no scheduling",
    }  # fmt: skip


def test_other_processes_give_the_same(asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(asking, only=("cloud-only",))
    rows = sweep(few, tmp_path / "there.jsonl", 2, untold)
    assert rows == [one(few, index, "cloud-only") for index in range(POINTS)]
