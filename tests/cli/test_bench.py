"""`bench --offload`: report, numbers and plot in a folder, and a second call that runs nothing again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pairs
import pytest
import tiny
from building import ROOT, command

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


@pytest.fixture
def checking(given: list[object], tmp_path: Path) -> list[object]:
    """Arguments of a small check."""
    rows = [json.dumps({"question": tiny.prompt(seed), "answer": "w1"}) for seed in range(12)]
    (tmp_path / "samples.jsonl").write_text("\n".join(rows) + "\n")
    return [*given, "--offload", "--check", "--mbps", 50, "--rtt-ms", 5]


def test_a_dry_check_says_what_would_run_and_for_how_long_and_writes_nothing(
    cli: Cli, checking: list[object], tmp_path: Path
) -> None:
    told = cli(*checking, "--dry-run", "--json").json
    assert told["policies"] == ["cloud-only", "auto"] and told["expected_s"] > 0 and told["written"] is False
    ran = cli(*checking, "--dry-run", "--edges", 2, "--declared")
    assert ran.code == 0 and "2 edge processes, declared speeds" in ran.out and "would take about" in ran.out
    assert not (tmp_path / "out").exists()


@pytest.mark.whole
def test_a_check_is_told_and_joins_those_of_other_points(cli: Cli, checking: list[object], tmp_path: Path) -> None:
    ran = cli(*checking, "--json")
    assert ran.code == 0, ran.err
    assert [(row["policy"], row["equal"]) for row in ran.json["rows"]] == [("cloud-only", 1), ("auto", 1)]
    assert "cloud-only, in real time" in ran.err
    again = cli(*checking, "--declared")
    assert again.code == 0 and "same tokens" in again.out and "timers were late" in again.out
    cli(*checking, "--json")
    kept = json.loads((tmp_path / "out" / "offloading-check.json").read_text())
    assert [one["speeds"] for one in kept] == ["declared", "measured"]
    report = (tmp_path / "out" / "offloading-check.md").read_text()
    assert kept[1]["command"] in report and report.count("## 50 Mbit/s, 5 ms") == 2
    assert kept[1]["command"].startswith("msao-compile bench") and "--check" in kept[1]["command"]


def gone(pids: list[int]) -> bool:
    """Whether all of them end; who is dead and was not asked for counts as ended."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        told = [Path(f"/proc/{pid}/stat") for pid in pids]
        with suppress(FileNotFoundError):
            if all(") Z" in stat.read_text() for stat in told if stat.exists()):
                return True
        time.sleep(0.05)
    return False


@pytest.mark.whole
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_is_interrupted_ends_what_it_started(
    checking: list[object], tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(command(*checking), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    assert any("in real time" in line for line in process.stderr)
    children = [int(name) for name in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "cloud, links and edges were ended, nothing was written" in said
    assert len(children) >= 2 and gone(children)
    assert not (tmp_path / "out" / "offloading-check.json").exists()


@pytest.mark.parametrize("content", ["{", "5", "[5]", '[{"mbps": 1.0}]'])
def test_damaged_results_of_checks_are_told_before_anything_runs(
    cli: Cli, checking: list[object], tmp_path: Path, content: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "offloading-check.json").write_text(content)
    ran = cli(*checking)
    assert ran.code == 2 and "holds other than results of checks" in ran.err and "remove it" in ran.err


def test_options_of_a_check_need_one(cli: Cli, given: list[object]) -> None:
    ran = cli(*given, "--offload", "--declared")
    assert ran.code == 2 and "add --check" in ran.err


def test_an_unknown_policy_is_an_error_of_the_user(cli: Cli, given: list[object]) -> None:
    ran = cli(*given, "--offload", "--policy", "best")
    assert ran.code == 2 and "policy 'best' is not known" in ran.err
