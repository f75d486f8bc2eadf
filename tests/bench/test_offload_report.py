"""The report's numbers and their signs, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from msao_compile.bench.report import markdown, plot
from msao_compile.bench.setting import Setting, Side, Sweep

SETTING = Setting(
    name="tiny", why="By hand.", edge=Side(name="a slow edge"), cloud=Side(name="a fast cloud"),
    sweeps=(Sweep(mbps=(20.0,), rtt_ms=(20.0,)),),
)  # fmt: skip


def row(policy: str, mean_ms: float, accuracy: float = 0.9, lossless: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "mbps": 20.0, "rtt_ms": 80.0, "sessions": 1, "policy": policy, "lossless": lossless, "n": 10,
        "mean_ms": mean_ms, "p50_ms": 90.4, "p95_ms": 150.6, "ttft_ms": 40.0, "tpot_ms": 6.25, "tokens_per_s": 33.33,
        "accuracy": accuracy, "equal": 9, "up_bytes": 12_345.0, "down_bytes": 400.0, "cloud_ms_per_token": 7.77,
        "kept": None, "rounds": 0.0, "alone": 2, "guarded": 0, **more,
    }  # fmt: skip


def told(rows: list[dict[str, Any]]) -> str:
    return markdown(SETTING, rows, "msao-compile bench", {"questions": "10"})


def bar(rows: list[dict[str, Any]]) -> list[str]:
    """The cells of the one line of the last table."""
    return [cell.strip() for cell in told(rows).splitlines()[-1].strip("|").split("|")]


def test_a_row_shows_each_number_in_its_unit() -> None:
    report = told([row("auto", 123.4, kept=0.756), row("cloud-only", 100.0, ttft_ms=None, tpot_ms=None)])
    assert "## 20 Mbit/s, 80 ms\n" in report
    assert "| auto | 123 | 90 | 151 | 40 | 6.2 | 33.3 | 90.0 % | 9/10 | 2 | 12.3 | 7.8 | 76 % |" in report
    assert "| cloud-only | 100 | 90 | 151 | – | – | 33.3 | 90.0 % | 9/10 | 2 | 12.3 | 7.8 | – |" in report
    assert "**Emulated**" in report and "Made by `msao-compile bench`. questions 10." in report


def test_several_edges_are_told_in_the_head() -> None:
    assert "## 20 Mbit/s, 80 ms, 16 edges at once\n" in told([row("auto", 1.0, sessions=16)])


ROWS = [
    row("cloud-only", 100.0, 0.900),
    row("edge-only", 50.0, 0.890, lossless=False),  # a point less than the cloud: too much
    row("stop-and-wait", 80.0, 0.900),
    row("cs-ucb", 90.0, 0.897, lossless=False),
    row("auto", 84.0, 0.900),
]


def test_less_time_is_a_minus_and_more_a_plus() -> None:
    cells = bar([*ROWS, row("calibrated", 60.0, 0.898, lossless=False)])
    assert cells == ["20", "80", "1", "1.050 x", "0.20", "−25 %", "+20 %"]


def test_a_rival_whose_answers_are_as_good_counts() -> None:
    rows = [*ROWS, row("calibrated", 60.0, 0.902, lossless=False)]
    rows[1] = row("edge-only", 50.0, 0.8961, lossless=False)
    assert bar(rows)[4:] == ["-0.20", "+20 %", "+20 %"]


def test_a_part_of_auto_that_would_do_better_alone_counts_against_it() -> None:
    assert bar([*ROWS, row("auto, no guard", 60.0)])[3] == "1.400 x"
    assert bar([*ROWS, row("covspec", 60.0, lossless=False)])[3] == "1.050 x"


def test_what_was_not_run_is_a_dash_and_without_the_cloud_there_is_no_bar() -> None:
    assert bar(ROWS)[3:] == ["1.050 x", "–", "–", "–"]
    assert bar(ROWS[:2])[3] == "–"
    assert told([row("auto", 1.0)]).rstrip().endswith("|---|---|---|---|---|---|---|")


def test_each_point_has_its_table_and_its_bar() -> None:
    other = [{**one, "mbps": 5.0, "mean_ms": 2 * one["mean_ms"]} for one in ROWS]
    lines = told([*ROWS, *other]).splitlines()
    assert sum(line.startswith("## ") for line in lines) == 3
    assert [line.split("|")[4].strip() for line in lines[-2:]] == ["1.050 x", "1.050 x"]


@pytest.mark.parametrize("sessions", [1, 16])
def test_a_plot_is_the_same_picture_each_time(tmp_path: Path, sessions: int) -> None:
    pytest.importorskip("matplotlib")
    rows = [{**one, "mbps": rate, "sessions": sessions} for one in ROWS for rate in (5.0, 20.0)]
    for name in ("one.svg", "two.svg"):
        plot(rows, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert drawn.count("<path") > 5
