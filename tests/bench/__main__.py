"""`python -m tests.bench`: make the standard model, time the build and every peer, print the table, write it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from tests.bench import build_cost, work
from tests.bench.bars import Bar, Missing, build_bars, speed_bars, token_bars
from tests.bench.children import ChildFailed, finish, module, result
from tests.bench.machine import commit, machine
from tests.bench.report import Report, markdown
from tests.bench.timing import Times
from tests.bench.work import Layout

Found = TypeVar("Found")
PLAIN = "ONNX Runtime fp32, plain run"
PEERS = (  # name, module, options, whether it runs in llama.cpp's environment
    ("msao-compile fp32", "ours_peer", (), False),
    ("Hugging Face eager fp32", "hf_peer", (), False),
    ("llama.cpp f32", "llama_peer", (), True),
    ("llama.cpp f32, flash attention", "llama_peer", ("--flash",), True),
    (PLAIN, "ort_peer", (), False),
    ("floor of this machine", "floor", (), False),
)


def main() -> int:
    """Run everything; 0 when every bar is met, else 1."""
    chosen = _arguments()
    layout, rounds = Layout(chosen.folder.resolve()), 1 if chosen.quick else work.ROUNDS
    where, made_at = machine(), commit()
    _say("standard model and build")
    _attempt("standard model", lambda: finish(module("tests.bench.standard", str(layout.root))))
    repeats = 1 if chosen.quick else work.ROUNDS * work.RUNS
    build = _attempt("build", lambda: build_cost.measure(layout, 1 if chosen.quick else chosen.builds, repeats))
    # The portable build is not timed: it only makes the graphs of the plain ONNX Runtime peer.
    portable = _attempt(PLAIN, lambda: finish(build_cost.build_command(layout.portable_recipe, layout)))
    found: dict[str, Times | Missing] = {PLAIN: portable} if isinstance(portable, Missing) else {}
    llama_python = str(chosen.llama_python)
    for turn in range(rounds):
        for name, file, options, python in PEERS:
            before = found.get(name)
            if not isinstance(before, Missing):
                _say(f"{name}, round {turn + 1} of {rounds}")
                found[name] = _peer(name, file, layout, options, llama_python if python else sys.executable, before)
    ours, eager, llama, flash, plain, _ = peers = tuple(found[name] for name, *_ in PEERS)
    bars = [*speed_bars(ours, eager, [llama, flash]), *build_bars(build), *token_bars(eager, [ours, llama, plain])]
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    report = Report(command, made_at, where, chosen.quick, repeats, peers, build, tuple(bars))
    _write(report, chosen.json, chosen.markdown)
    return 0 if all(bar.met for bar in bars) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--quick", action="store_true", help="one run each: to see that everything works")
    parser.add_argument("--builds", type=int, default=work.RUNS, metavar="N", help="builds from nothing to time")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench"), help="where models and builds are kept")
    parser.add_argument(
        "--llama-python",
        type=Path,
        default=Path(".venv-bench/bin/python"),
        help="a Python that has llama-cpp-python and gguf",
    )
    return parser.parse_args()


def _peer(
    name: str, file: str, layout: Layout, options: tuple[str, ...], python: str, before: Times | None
) -> Times | Missing:
    command = module(f"tests.bench.{file}", str(layout.root), str(work.RUNS), *options, python=python)
    times = _attempt(name, lambda: Times.read(result(command)))
    return times if before is None or isinstance(times, Missing) else before.joined(times)


def _attempt(name: str, work_to_do: Callable[[], Found]) -> Found | Missing:
    try:
        return work_to_do()
    except ChildFailed as error:
        _say(f"{name}: not run: {error}")
        return Missing(name, str(error))


def _write(report: Report, json_file: Path | None, markdown_file: Path | None) -> None:
    text = markdown(report)
    sys.stdout.write(text)
    for file, content in ((json_file, _as_json(report)), (markdown_file, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")


def _as_json(report: Report) -> str:
    bars = [asdict(bar) | {"verdict": bar.verdict} for bar in report.bars if isinstance(bar, Bar)]
    return json.dumps(asdict(report) | {"bars": bars}, indent=1) + "\n"


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
