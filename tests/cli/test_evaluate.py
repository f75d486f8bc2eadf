"""`eval` as the user sees it; the stage's child process is a stand-in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from msao_compile.farm import local
from msao_compile.farm.job import Job, Result

from .conftest import Cli

ROW = {
    "targets": ["l4", "a10"], "model": "edge", "dialect": "scatter", "precision": "int4",
    "through": "graph, not engine", "right": 3, "asked": 4, "share": 0.75, "low": 0.301, "high": 0.954, "marks": "1110",
}  # fmt: skip


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[object], dict[str, str]], list[Job]]:
    def with_rows(rows: list[object], left_out: dict[str, str]) -> list[Job]:
        jobs: list[Job] = []

        def run(job: Job, tell: Callable[[object], None]) -> Result:
            jobs.append(job)
            tell({"target": "l4", "model": "edge", "done": 0, "of": 4})
            value = {"samples": "q.jsonl", "rows": rows, "left_out": left_out}
            return Result(value=value, seconds=1.0, peak_rss_bytes=1, cpu_seconds=1.0)

        monkeypatch.setattr(local, "run", run)
        return jobs

    return with_rows


def test_a_row_says_who_answered_and_how_sure_the_share_is(
    cli: Cli, answering: Callable[[list[object], dict[str, str]], list[Job]]
) -> None:
    jobs = answering([ROW], {"half edge": "no"})
    ran = cli("eval", "d", "--samples", "q.jsonl", "--target", "l4", "--limit", 4)
    assert ran.code == 0
    words = " ".join(ran.out.splitlines()[1].split())
    assert words == "l4, a10 edge scatter int4 3 4 75.0% 30.1% - 95.4% graph, not engine"
    assert ran.err.splitlines() == ["edge for l4: 0 of 4", "not asked: half edge: no"]
    assert jobs[0].arguments == {"folder": "d", "samples": "q.jsonl", "target": "l4", "model": None, "limit": 4}
    assert cli("eval", "d", "--samples", "q.jsonl", "--json").json["rows"][0]["marks"] == "1110"


def test_nothing_asked_is_no_result(cli: Cli, answering: Callable[[list[object], dict[str, str]], list[Job]]) -> None:
    answering([], {"l4 edge": "it decodes nothing"})
    assert cli("eval", "d", "--samples", "q.jsonl").code == 5
