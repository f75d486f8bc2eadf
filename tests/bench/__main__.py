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


def main() -> int:
    """Run everything; 0 when every bar is met, else 1."""
    chosen = _arguments()
    layout, runs = Layout(chosen.folder.resolve()), 1 if chosen.quick else work.RUNS
    where, made_at = machine(), commit()
    _attempt("standard model", lambda: finish(module("tests.bench.standard", str(layout.root))))
    build = _attempt("build", lambda: build_cost.measure(layout, 1 if chosen.quick else chosen.builds, runs))
    eager = _peer("Hugging Face eager fp32", "hf_peer", layout, runs)
    ours = _peer("msao-compile fp32", "ours_peer", layout, runs)
    llama = _peer("llama.cpp f32", "llama_peer", layout, runs, python=str(chosen.llama_python))
    flash = _peer(
        "llama.cpp f32, flash attention", "llama_peer", layout, runs, "--flash", python=str(chosen.llama_python)
    )
    plain = _plain(layout, runs)
    floor = _peer("floor of this machine", "floor", layout, runs)
    peers = (ours, eager, llama, flash, plain, floor)
    bars = [*speed_bars(ours, eager, [llama, flash]), *build_bars(build), *token_bars(eager, [ours, llama, plain])]
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    report = Report(command, made_at, where, chosen.quick, runs, peers, build, tuple(bars))
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
    name: str, file: str, layout: Layout, runs: int, *options: str, python: str = sys.executable
) -> Times | Missing:
    command = module(f"tests.bench.{file}", str(layout.root), str(runs), *options, python=python)
    return _attempt(name, lambda: Times.read(result(command)))


def _plain(layout: Layout, runs: int) -> Times | Missing:
    """The portable build is not timed: it only makes this peer's graphs."""
    name = "ONNX Runtime fp32, plain run"
    made = _attempt(name, lambda: finish(build_cost.build_command(layout.portable_recipe, layout)))
    return made if isinstance(made, Missing) else _peer(name, "ort_peer", layout, runs)


def _attempt(name: str, work_to_do: Callable[[], Found]) -> Found | Missing:
    _say(name)
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
