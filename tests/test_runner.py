"""Asking for stage runs: an interrupt ends the build wherever it arrives, and what was finished is kept."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from building import SHAPES

from msao_compile.errors import GateError, Interrupted, StageError
from msao_compile.farm.job import Job, OnProgress, Result
from msao_compile.recipe.read import read_recipe
from msao_compile.runner import Ask, Event, Options, Runner
from msao_compile.store.record import Record

DONE = Result(value={}, seconds=1.0, peak_rss_bytes=1, cpu_seconds=1.0)
ASK = Ask("load", "edge/decoder", 1, {}, lambda workspace: {})


def test_what_a_stage_tells_of_itself_reaches_whoever_draws_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_job(job: Job, on_progress: OnProgress, stop: object) -> Result:
        on_progress({"done": 1, "total": 2})
        return DONE

    monkeypatch.setattr("msao_compile.runner.run_job", run_job)
    events: list[Event] = []
    Runner(read_recipe(SHAPES), Options(tmp_path / "out", tmp_path / "store"), events.append).ask([ASK])
    assert [(event.state, event.detail) for event in events] == [
        ("started", ""),
        ("working", "done 1, total 2"),
        ("finished", ""),
    ]


def test_stages_that_run_at_the_same_time_are_counted_as_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)

    def run_job(job: Job, on_progress: OnProgress, stop: object) -> Result:
        both.wait(10)  # neither finishes before the other has started
        return DONE

    monkeypatch.setattr("msao_compile.runner.run_job", run_job)
    events: list[Event] = []
    options = Options(tmp_path / "out", tmp_path / "store", jobs=2)
    Runner(read_recipe(SHAPES), options, events.append).ask([ASK, dataclasses.replace(ASK, fields={"other": True})])
    assert sorted(event.begun for event in events if event.state == "started") == [1, 2]


def test_a_stage_that_starts_tells_how_long_its_like_took_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msao_compile.runner.run_job", lambda job, on_progress, stop: DONE)
    events: list[Event] = []
    runner = Runner(read_recipe(SHAPES), Options(tmp_path / "out", tmp_path / "store"), events.append)
    for ask in (ASK, dataclasses.replace(ASK, fields={"changed": True})):
        runner.ask([ask])
    first, took, again, _ = events
    assert (first.expected_seconds, again.state, again.expected_seconds) == (None, "started", took.seconds)


@pytest.mark.parametrize(("field", "kind"), [("peak_bytes", GateError), ("disk_bytes", StageError)])
def test_a_run_that_this_machine_cannot_finish_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, kind: type[Exception]
) -> None:
    monkeypatch.setattr("msao_compile.runner.run_job", lambda job, on_progress, stop: DONE)
    events: list[Event] = []
    runner = Runner(read_recipe(SHAPES), Options(tmp_path / "out", tmp_path / "store"), events.append)
    size: dict[str, Any] = {field: 1 << 60}
    with pytest.raises(kind, match=r"edge/decoder.*(1073741824\.0 GiB.* has|1152921504606\.8 MB and) \d+\.\d"):
        runner.ask([dataclasses.replace(ASK, **size)])
    assert events == []
    runner.ask([ASK])
    [record] = runner.ask([dataclasses.replace(ASK, **size)])  # what was made elsewhere is used here
    assert isinstance(record, Record)


def test_runs_that_do_not_fit_the_memory_together_go_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, others = [0], [0], [threading.Barrier(1)]

    def run_job(job: Job, on_progress: OnProgress, stop: object) -> Result:
        running[0] += 1
        most[0] = max(most[0], running[0])
        others[0].wait(60)  # for those that run at once, however late they begin
        time.sleep(0.05)
        running[0] -= 1
        return DONE

    monkeypatch.setattr("msao_compile.runner.run_job", run_job)
    monkeypatch.setattr("msao_compile.runner.memory_here", lambda: 10 << 30)
    for peak, together in ((4 << 30, 2), (6 << 30, 1)):
        options = Options(tmp_path / "out", tmp_path / f"store{peak}", jobs=2)
        asks = [dataclasses.replace(ASK, fields={"which": which}, peak_bytes=peak) for which in range(4)]
        most[0], others[0] = 0, threading.Barrier(together)
        Runner(read_recipe(SHAPES), options, lambda event: None).ask(asks)
        assert most[0] == together


def test_a_plan_tells_what_is_expected_where_nothing_ran_before(tmp_path: Path) -> None:
    runner = Runner(read_recipe(SHAPES), Options(tmp_path / "out", tmp_path / "store"), tell=None)
    runner.ask([dataclasses.replace(ASK, peak_bytes=5, seconds=7.0, disk_bytes=3)])
    [step] = runner.steps
    assert (step.peak_rss_bytes, step.seconds, step.disk_bytes) == (5, 7.0, 3)


@pytest.mark.parametrize("moment", ["started", "finished", "reused"])
def test_an_interrupt_that_meets_no_running_child_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(event: Event) -> None:
        if event.state == moment:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("msao_compile.runner.run_job", lambda job, on_progress, stop: DONE)
    options = Options(out=tmp_path / "out", store=tmp_path / "store")
    recipe = read_recipe(SHAPES)
    if moment == "reused":
        Runner(recipe, options, lambda event: None).ask([ASK])
    runner = Runner(recipe, options, interrupt)
    with pytest.raises(Interrupted, match="interrupted; what was finished is kept"):
        runner.ask([ASK])
    assert isinstance(runner.store.peek(ASK.key), Record)
