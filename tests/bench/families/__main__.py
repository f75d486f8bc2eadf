"""`python -m tests.bench.families FOLDER`: every checkpoint of a folder through the command line, and one table."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.children import REPOSITORY
from tests.bench.families import resume
from tests.bench.families.judge import Family
from tests.bench.families.limits import Limits, size_of
from tests.bench.families.resume import Sheet, write_whole
from tests.bench.families.run import Settings, run_family
from tests.bench.families.table import markdown, summary
from tests.bench.machine import commit, machine

PACKAGE = REPOSITORY / "msao_compile"


@dataclass
class Work:
    """One run over a folder: what to do, what is known, and where it is written."""

    names: list[str]
    folder: Path
    settings: Settings
    sheet: Sheet
    files: tuple[Path | None, Path | None]
    tools: dict[str, str]
    started: float = field(default_factory=time.perf_counter)
    wall_before_s: float = 0.0

    def key(self, name: str) -> str:
        """Of a family as it stands now: the code may change while a long list runs."""
        return resume.key_of(self.folder / name, resume.code_digest(PACKAGE), self.tools)

    def write(self) -> None:
        """All that is known, as JSON and as Markdown."""
        self.sheet.wall_s = self.wall_before_s + time.perf_counter() - self.started
        write_whole(self.files[0], self.sheet.text())
        write_whole(self.files[1], markdown(self.sheet))


def main() -> int:
    """Run what is not known yet; 0 when every family of the table passes, else 1."""
    parser, chosen = _arguments()
    there = sorted(path.parent.name for path in chosen.folder.glob("*/config.json"))
    if not there:
        parser.error(f"{chosen.folder}: no folder in it holds a config.json; give a folder of checkpoints")
    names = chosen.only.split(",") if chosen.only else there
    if unknown := sorted(set(names) - set(there)):
        parser.error(f"--only: {', '.join(unknown)} is not in {chosen.folder}; it has {', '.join(there)}")
    _forget_the_dead(chosen.scratch)
    work = _prepared(chosen, names, there)
    wanted = [name for name in names if name not in work.sheet.families]
    _say(f"{len(wanted)} to run, {len(work.sheet.families)} known already")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run_all(work, wanted, chosen.jobs)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        return 130
    work.write()
    rows = list(work.sheet.families.values())
    _say(summary(rows))
    return 0 if all(row.passes for row in rows) else 1


def _arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.families", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="each folder in it is a checkpoint")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="families at a time")
    parser.add_argument("--limit-seconds", type=float, default=300.0, metavar="S", help="wall time of one family")
    parser.add_argument("--limit-bytes", type=_size, default=size_of("6G"), metavar="SIZE", help="memory of one family")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what is known; the next run goes on from it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    parser.add_argument("--only", metavar="A,B", help="only these families")
    parser.add_argument("--again", action="store_true", help="run what is known too")
    parser.add_argument("--keep", action="store_true", help="keep stores and deployments")
    parser.add_argument("--scratch", type=Path, default=Path("artifacts/families"), help="where families are built")
    parser.add_argument(
        "--tool",
        type=Path,
        default=Path(sys.executable).with_name("msao-compile"),
        help="the command line to judge",
    )
    return parser, parser.parse_args()


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _prepared(chosen: argparse.Namespace, names: list[str], there: list[str]) -> Work:
    """What is known already and still holds, and how this run is made."""
    limits = Limits(chosen.limit_seconds, chosen.limit_bytes)
    threads = max(1, (os.cpu_count() or 1) // chosen.jobs)
    tool = (str(chosen.tool.absolute()),)
    settings = Settings(tool, limits, chosen.scratch, threads, chosen.keep)
    tools = resume.tool_versions()
    before = Sheet.read(chosen.json)
    work = Work(names, chosen.folder, settings, Sheet(), (chosen.json, chosen.markdown), tools)
    for name in there:
        row = before.families.get(name)
        if row is not None and resume.holds(row, work.key(name), limits) and not (chosen.again and name in names):
            work.sheet.families[name] = row
            work.wall_before_s = before.wall_s
    work.sheet.about = _about(chosen, len(there), limits, tools)
    return work


def _about(chosen: argparse.Namespace, in_folder: int, limits: Limits, tools: dict[str, str]) -> dict[str, Any]:
    # Where folders lie belongs to this machine; their names and the options are what to type elsewhere.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", "-m", "tests.bench.families", *words]),
        "commit": commit(),
        "in_folder": in_folder,
        "jobs": chosen.jobs,
        "limits": resume.limits_as_json(limits),
        "machine": machine(),
        "versions": tools,
    }


def _run_all(work: Work, wanted: list[str], jobs: int) -> None:
    """Run families side by side, and write all that is known after each."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting: dict[Future[Family], str] = {pool.submit(_keyed(work, name, stop)): name for name in wanted}
        for done in as_completed(waiting):
            row = done.result()
            work.sheet.families[row.name] = row
            work.write()
            known = sum(name in work.sheet.families for name in work.names)
            _say(f"{row.name}: {_verdict(row)} ({row.seconds:.0f} s; {known} of {len(work.names)})")
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _keyed(work: Work, name: str, stop: threading.Event) -> Callable[[], Family]:
    def run() -> Family:
        key = work.key(name)
        row = run_family(work.folder / name, work.settings, stop)
        row.key = key
        return row

    return run


def _verdict(row: Family) -> str:
    said = "" if row.error is None else f", {row.error.where}: {row.error.sentence}"
    return f"{'passes' if row.passes else 'FAILS'}{said}"


def _forget_the_dead(scratch: Path) -> None:
    """Remove what runs that were killed have left."""
    for folder in scratch.glob("*.*"):
        owner = folder.name.rpartition(".")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _say(text: str) -> None:
    sys.stderr.write(f"families: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
