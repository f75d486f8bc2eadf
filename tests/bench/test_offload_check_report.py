"""A report of checks says what was asked, foretold and seen."""

from __future__ import annotations

from typing import Any

import pytest

from msao_compile.bench.check_report import markdown

FORETOLD = {"mean_ms": 100.0, "p50_ms": 90.0, "p95_ms": 200.0, "ttft_ms": 50.0, "up_bytes": 120786.0,
            "down_bytes": 1500.0, "kept": None}  # fmt: skip
ERROR = {"mean_ms": 0.1, "p50_ms": -0.05, "p95_ms": 0.0, "ttft_ms": 0.02, "up_bytes": 0.0, "down_bytes": 0.01,
         "kept": None}  # fmt: skip


def told(**changed: Any) -> dict[str, Any]:
    row = {"policy": "cloud-only", "asked_by": "route cloud", "predicted": FORETOLD,
           "seen": {**FORETOLD, "mean_ms": 110.0}, "error": ERROR, "equal": 23, "n": 24}  # fmt: skip
    return {
        "command": "msao-compile bench x", "mbps": 20.0, "rtt_ms": 80.0, "jitter_ms": 0.0, "loss": 0.0, "edges": 1,
        "speeds": "measured", "questions": 24, "rounds": 1, "message_ms": 0.5, "edge_turn_ms": 0.1,
        "cloud_turn_ms": 0.4, "timer_late_ms": {"p50": 0.1, "p95": 3.0}, "machine": {"cores": 2, "niceness": 0},
        "rows": [row], **changed,
    }  # fmt: skip


def test_each_policy_has_what_was_foretold_what_was_seen_and_the_error() -> None:
    lines = markdown([told()]).splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("| cloud-only"))
    assert lines[at : at + 3] == [
        "| cloud-only | route cloud | predicted | 100.0 | 90.0 | 200.0 | 50.0 | 120.79 | 1.50 | – |  |",
        "|  |  | seen | 110.0 | 90.0 | 200.0 | 50.0 | 120.79 | 1.50 | – |  |",
        "|  |  | error | +10.0 % | -5.0 % | +0.0 % | +2.0 % | +0.0 % | +1.0 % | – | 23/24 |",
    ]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("changed", "head"),
    [({}, "## 20 Mbit/s, 80 ms, measured speeds"),
     ({"speeds": "declared", "edges": 4, "jitter_ms": 3.0, "loss": 0.01},
      "## 20 Mbit/s, 80 ms, jitter 3 ms, loss 1 %, 4 edges at once, declared speeds")],
)  # fmt: skip
def test_a_point_is_named_by_its_link_edges_and_speeds(changed: dict[str, Any], head: str) -> None:
    assert head in markdown([told(**changed)]).splitlines()


def test_the_report_says_how_disturbed_a_run_was_and_how_it_was_made() -> None:
    found = markdown([told()])
    assert "`msao-compile bench x`: 24 questions, measured speeds, no slow-down factor" in found
    assert "late by 0.10 ms (median) and 3.00 ms (95th percentile), on 2 cores." in found
    nice = markdown([told(machine={"cores": 2, "niceness": -10})])
    assert "on 2 cores, all processes at niceness -10." in nice
    again = markdown([told(speeds="declared", rounds=5)])
    assert "declared speeds, realised by waiting, the quiet quarter of 5 rounds." in again
