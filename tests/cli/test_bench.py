"""`bench --offload`: report, numbers and plot in a folder, and a second call that runs nothing again."""

from __future__ import annotations

import json
from pathlib import Path

import pairs
import pytest
import tiny

from .conftest import Cli

SETTING = """
name = "tiny"
why = "By hand."
[edge]
name = "edge"
[cloud]
name = "cloud"
slower = 20.0
[[sweeps]]
mbps = [50.0]
rtt_ms = [20.0]
"""


@pytest.fixture
def given(tmp_path: Path) -> list[object]:
    """Arguments of a small comparison."""
    (tmp_path / "setting.toml").write_text(SETTING)
    row = json.dumps({"question": tiny.prompt(0), "answer": "w1"})
    (tmp_path / "samples.jsonl").write_text(row + "\n")
    folder = pairs.write(tmp_path / "words")
    return ["bench", folder, "--samples", tmp_path / "samples.jsonl", "--setting", tmp_path / "setting.toml", "--out",
            tmp_path / "out", "--questions", 1, "--policy", "cloud-only", "--policy", "auto"]  # fmt: skip


def test_the_report_says_that_it_is_emulated_and_how_it_was_made(cli: Cli, given: list[object], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = cli(*given, "--offload", "--json")
    assert ran.code == 0, ran.err
    assert [row["policy"] for row in ran.json["rows"]] == ["cloud-only", "auto"]
    report = (tmp_path / "out" / "offloading.md").read_text()
    assert "**Emulated**" in report and f"msao-compile bench {tmp_path / 'words'} --offload" in report
    assert json.loads((tmp_path / "out" / "offloading.json").read_text()) == ran.json["rows"]
    assert (tmp_path / "out" / "offloading.svg").read_text().startswith("<?xml")
    kept = tmp_path / "out" / "points.jsonl"
    before = kept.stat().st_mtime_ns
    again = cli(*given, "--offload", "--json")
    assert (again.json["rows"], kept.stat().st_mtime_ns) == (ran.json["rows"], before)
    assert "2 of 2 points" in again.err


def test_a_comparison_has_to_be_asked_for(cli: Cli, given: list[object], tmp_path: Path) -> None:
    ran = cli(*given)
    assert ran.code == 2 and "add --offload" in ran.err
    assert not (tmp_path / "out").exists()


def test_an_unknown_policy_is_an_error_of_the_user(cli: Cli, given: list[object]) -> None:
    ran = cli(*given, "--offload", "--policy", "best")
    assert ran.code == 2 and "policy 'best' is not known" in ran.err
