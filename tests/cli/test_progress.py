"""Progress: lines where nobody looks, bars where somebody does."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console
from rich.progress import ProgressColumn
from rich.progress_bar import ProgressBar

from msao_compile.cli import progress
from msao_compile.cli.talk import Talk
from msao_compile.pipeline import Event


def event(state: str, seconds: float = 0.0, expected: float | None = None) -> Event:
    return Event("export", "edge/decoder", state, 4, 2, 12, seconds, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (event("finished", 4.2), "export edge/decoder … 4.2 s"),
        (event("deferred"), "export edge/decoder … deferred to the device"),
        (event("reused"), ""),
        (event("working"), ""),
        (event("started", expected=2.0), ""),
        (event("started"), "export edge/decoder started (4 of 12)"),
        (event("started", expected=185.0), "export edge/decoder started (4 of 12), took 3 min 05 s before"),
    ],
)
def test_a_log_gets_a_line_for_what_is_slow_or_done(told: Event, line: str) -> None:
    assert progress.plain_line(told) == line


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(Talk(quiet=True)) as tell:
        tell(event("finished", 4.2))
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(Talk()) as tell:
        tell(event("finished", 4.2))
    assert capsys.readouterr() == ("", "export edge/decoder … 4.2 s\n")


def test_a_running_stage_has_a_bar_that_goes_when_it_ends() -> None:
    rich = progress._bars()
    rich.live.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bars = progress.Bars(rich)
    bars.tell(event("started", expected=60.0))
    assert [task.description for task in rich.tasks] == ["build", "export"]
    bars.tell(dataclasses.replace(event("working"), detail="doing trace"))
    assert rich.tasks[1].fields["subject"] == "edge/decoder: doing trace"
    bars.tell(event("finished", 4.2))
    assert [(task.description, task.completed, task.total) for task in rich.tasks] == [("build", 2, 12)]
    assert "export edge/decoder … 4.2 s" in rich.live.console.file.getvalue()  # type: ignore[attr-defined]


def test_bars_are_drawn_at_most_four_times_a_second() -> None:
    assert progress._bars().live.refresh_per_second <= 4


def test_a_stage_that_runs_late_never_looks_finished() -> None:
    rich = progress._bars()
    rich.live.console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress.Bars(rich).tell(event("started", expected=1e-9))
    column = rich.columns[2]
    assert isinstance(column, ProgressColumn)
    bar = column.render(rich.tasks[1])
    assert isinstance(bar, ProgressBar)
    assert bar.completed < (bar.total or 0)
