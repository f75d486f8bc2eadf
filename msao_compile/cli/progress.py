"""Progress on stderr: bars on a terminal, drawn by Rich's own thread at 4 Hz or less, and plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msao_compile.cli import units
from msao_compile.cli.talk import Talk, is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from msao_compile.pipeline import Event

REFRESH_HZ = 4
WORTH_ANNOUNCING_S = 10.0


@contextmanager
def progress(talk: Talk) -> Iterator[Callable[[Event], None]]:
    """What a build is given to tell its events to; whatever is drawn is gone or complete at the end of the block."""
    if talk.quiet:
        yield lambda event: None
    elif talk.as_json or not is_terminal(sys.stderr):
        yield lambda event: _say(talk, plain_line(event))
    else:
        bars = _bars()
        with bars:
            yield Bars(bars).tell


def plain_line(event: Event) -> str:
    """The line for an event, or nothing for one that is not worth a line."""
    subject = f"{event.stage} {event.subject}"
    if event.state == "finished":
        peak = "" if event.peak_rss_bytes is None else f", {units.size(event.peak_rss_bytes)}"
        return f"{subject} … {units.seconds(event.seconds)}{peak}"
    if event.state == "deferred":
        return f"{subject} … deferred to the device"
    if event.state in ("reused", "working"):
        return ""
    if event.expected_seconds is None:
        return f"{subject} started ({event.begun} of {event.total})"
    if event.expected_seconds < WORTH_ANNOUNCING_S:
        return ""
    return f"{subject} started ({event.begun} of {event.total}), took {units.seconds(event.expected_seconds)} before"


def _say(talk: Talk, text: str) -> None:
    if text:
        talk.say(text)


class Bars:
    """One bar for the build and one for each running stage; finished stages become lines above them.

    Events only set numbers here; drawing happens on Rich's thread.
    """

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.whole = bars.add_task("build", total=None, subject="", counted=True)
        self.running: dict[tuple[str, str], TaskID] = {}

    def tell(self, event: Event) -> None:
        """Take in one event; may be called from any thread."""
        name = (event.stage, event.subject)
        if event.state == "started":
            self.running[name] = self.bars.add_task(
                event.stage, total=event.expected_seconds, subject=event.subject, counted=False
            )
        elif event.state == "working":
            self.bars.update(self.running[name], subject=f"{event.subject}: {event.detail}")
        else:
            task = self.running.pop(name, None)
            if task is not None:
                self.bars.remove_task(task)
            if line := plain_line(event):
                self.bars.console.print(line, markup=False, highlight=False)
        self.bars.update(self.whole, completed=event.done, total=event.total)


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task, TextColumn
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    class Bar(ProgressColumn):
        """Counts what is done for the build, and time against the expected time for a stage."""

        def render(self, task: Task) -> ProgressBar:
            elapsed = task.elapsed or 0.0
            if task.fields["counted"] or task.total is None:
                return ProgressBar(total=task.total, completed=task.completed, width=30, pulse=task.total is None)
            # A stage that takes longer than before stays just short of full: the bar never claims that it has ended.
            return ProgressBar(total=task.total, completed=min(elapsed, 0.98 * task.total), width=30)

    class Clock(ProgressColumn):
        """Elapsed time, and what to expect."""

        def render(self, task: Task) -> Text:
            elapsed = units.seconds(task.elapsed or 0.0)
            if task.total is not None and task.fields["counted"]:
                return Text(f"{task.completed:.0f} of {task.total:.0f}, {elapsed}")
            return Text(elapsed if task.total is None else f"{elapsed}, {units.seconds(task.total)} expected")

    text = [TextColumn("{task.description}", markup=False), TextColumn("{task.fields[subject]}", markup=False)]
    console = Console(stderr=True, highlight=False)
    return Progress(*text, Bar(), Clock(), console=console, refresh_per_second=REFRESH_HZ, transient=True)
