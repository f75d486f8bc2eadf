"""`python -m tests.bench.gpu`: which backends run on this machine's NVIDIA GPU, how fast, how near the floor and torch.

Needs no network. Every step is a process of its own with a limit; what fails is written down and the next goes on.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.gpu import child, memory, table
from tests.bench.gpu.steps import BACKENDS, Step, steps
from tests.bench.gpu.work import parser, work_of
from tests.bench.machine import commit

LIMIT_S = 480.0
LEAST_S = 5.0
SCRIPTS = ("standard", "msao_compile")  # children that write no result of their own


def main() -> int:
    """Run everything; 0 when at least one backend ran on the GPU, else 1."""
    chosen = _arguments()
    work, began = work_of(chosen), time.perf_counter()
    work.folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "tests.bench.gpu", *sys.argv[1:]]),
        "made_at": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": work.device,
        "work": {"batches": work.batches, "runs": work.runs, "new_tokens": work.new_tokens},
        "steps": [],
    }
    with memory.Watch() as watch, tempfile.TemporaryDirectory() as scratch:
        for number, step in enumerate(_wanted(steps(work), chosen.only)):
            left = chosen.limit_s - (time.perf_counter() - began)
            _say(f"[{time.perf_counter() - began:5.0f} s] {step.name}")
            found = _one(step, left, report, Path(scratch) / f"{number}.json")
            report["steps"].append(found)
            table.complete(report, work.layout, watch.samples)
            _say(f"    {found['status']} in {found['seconds']:.1f} s {found['signal'] or ''}")
            _write(report, chosen)
    sys.stdout.write(table.markdown(report))
    return 0 if any(table.ran(report, backend) for backend in BACKENDS) else 1


def _arguments() -> Any:
    made = parser(__doc__)
    made.usage = "python -m tests.bench.gpu [FOLDER] [options]"
    folder = next(action for action in made._actions if action.dest == "folder")
    folder.nargs, folder.default = "?", Path("artifacts/bench-gpu")
    made.add_argument("--json", type=Path, metavar="FILE", help="written after every step; {gpu} is the card's name")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="as --json")
    made.add_argument("--limit-s", type=float, default=LIMIT_S, help="no step starts or goes on after this")
    made.add_argument("--only", metavar="REGEX", help="of the steps only those whose names match")
    return made.parse_args()


def _wanted(all_steps: list[Step], only: str | None) -> list[Step]:
    return [step for step in all_steps if only is None or re.search(only, step.name)]


def _one(step: Step, left_s: float, report: dict[str, Any], out: Path) -> dict[str, Any]:
    """What became of a step; not started where what it needs failed or no time is left."""
    failed = [other["name"] for other in report["steps"] if other["status"] != "ran"]
    lacking = next((name for name in step.needs if name in failed), None)
    reason = f"needs {lacking}, which did not run" if lacking else "no time is left" if left_s < LEAST_S else None
    if reason is not None:
        return {"name": step.name, "backend": step.backend, "status": "not run", "reason": reason, "seconds": 0.0,
                "exit_code": None, "signal": None, "result": None, "last_lines": []}  # fmt: skip
    writes = not any(name in part.split(".") for part in step.command[:3] for name in SCRIPTS)
    return {"backend": step.backend, **child.run(step, min(step.limit_s, left_s), out if writes else None)}


def _write(report: dict[str, Any], chosen: Any) -> None:
    for file, text in ((chosen.json, json.dumps(report, indent=1) + "\n"), (chosen.markdown, table.markdown(report))):
        if file is not None:
            path = Path(str(file).replace("{gpu}", table.file_name(report)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _say(text: str) -> None:
    sys.stderr.write(f"gpu-check: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
