"""`python -m tests.bench.placement`: every published placement instance, by every solver, held against the bars."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msao_compile.manifest.placement import Objective
from msao_compile.place.certify import TOLERANCE, Placed, Terms, place
from msao_compile.place.greedy import fastest
from msao_compile.place.instance import checked, read_json
from msao_compile.place.latency import Judge
from msao_compile.place.problem import problem_of
from tests.bench.instances import FOLDER, INDEX, LARGE
from tests.bench.machine import commit, machine
from tests.bench.report import QUIET_LOAD, table
from tests.place.brute import Brute

BRUTE = 200_000
"""Placements that are all tried, at most."""
OBJECTIVES: tuple[Objective, ...] = ("mean", "p95")
INTRODUCTION = """\
The instances are those of `recipes/instances/`. Times are of the whole call: greedy, local search and the exact
program, its certificate included. Optimal means within {tolerance:g}, relative, of what the exact program proved to be
the least. Greedy places a module after another where the true objective grows least; the baseline places each on the
fastest device with room. "Tried" are instances of at most {brute:,} placements, each of which was computed by other
code."""


@dataclass(frozen=True)
class Row:
    """An instance under an objective; objectives are None where a solver found nothing."""

    instance: str
    objective: Objective
    modules: int
    devices: int
    feasible: bool
    optimum_s: float | None
    gap: float | None
    seconds: float
    fastest_s: float | None
    greedy_s: float | None
    local_s: float | None
    tried: int | None
    tried_s: float | None
    reason: str | None
    changed: bool | None
    """Of an infeasible one, whether each of the changes that were told makes it feasible."""


def row(path: Path, objective: Objective) -> Row:
    """One instance by every solver."""
    content = read_json(path)
    instance = checked(content, path.name)
    found = place(instance, Terms(objective=objective))
    judge = Judge(problem_of(instance), objective)
    quick = {solver: place(instance, Terms(objective=objective, solver=solver)) for solver in ("greedy", "local")}
    near = fastest(judge.problem)
    brute = Brute(content)
    tried_s = brute.best(objective) if brute.size <= BRUTE else None
    certificate = found.certificate
    return Row(
        path.stem, objective, len(instance.modules), len(instance.devices), certificate is not None,
        None if certificate is None else certificate.objective_s, None if certificate is None else certificate.gap,
        found.seconds, _finite(None if near is None else judge.objective_s(near)), _of(quick["greedy"]),
        _of(quick["local"]), None if tried_s is None else brute.size, _finite(tried_s), found.reason,
        None if certificate else all(changed(content, change) for change in found.changes) and bool(found.changes),
    )  # fmt: skip


def changed(content: dict[str, Any], change: Any) -> bool:
    """Whether an instance with exactly this change has a placement."""
    return place(checked(applied(content, change), "changed"), Terms()).certificate is not None


def applied(content: dict[str, Any], change: Any) -> dict[str, Any]:
    """The instance file with a change."""
    whole = json.loads(json.dumps(content))
    for device in whole["devices"]:
        device["memory_bytes"] += change.memory_bytes.get(device["name"], 0)
    whole["links"] += [{"from": start, "to": end, "rtt_ms": 1.0, "mbps": 100.0} for start, end in change.links]
    for module in whole["modules"]:
        if module["name"] in change.dtypes:
            module["allowed"] = [*module["allowed"], change.dtypes[module["name"]]]
    return whole


def _of(found: Placed) -> float | None:
    return None if found.certificate is None else found.certificate.objective_s


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def same(value: float | None, optimum: float | None) -> bool:
    """Whether a solver's objective is the optimum."""
    return value is not None and optimum is not None and abs(value - optimum) <= TOLERANCE * max(optimum, TOLERANCE)


@dataclass(frozen=True)
class Bar:
    """What was asked for, what was found, and whether that is enough."""

    name: str
    asked: str
    found: str
    met: bool


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Over the rows of one objective."""
    feasible = [one for one in rows if one.feasible]
    proven = sum(1 for one in feasible if one.gap is not None and one.gap <= TOLERANCE)
    tried = [one for one in rows if one.tried is not None]
    agree = sum(1 for one in tried if same(one.tried_s, one.optimum_s) or (one.tried_s is None and not one.feasible))
    times = [one.seconds for one in rows]
    refused = [one for one in rows if not one.feasible]
    mended = sum(1 for one in refused if one.changed)

    def share(solver: Callable[[Row], float | None]) -> tuple[str, float]:
        right = sum(same(solver(one), one.optimum_s) for one in feasible)
        return f"{right} of {len(feasible)} ({right / len(feasible):.1%})", right / len(feasible)

    local, local_share = share(lambda one: one.local_s)
    return [
        Bar("exact optimum with certificate", "all feasible", f"{proven} of {len(feasible)}", proven == len(feasible)),
        Bar("agrees with trying all", "where that is possible", f"{agree} of {len(tried)}", agree == len(tried)),
        Bar("fastest device, optimal", "baseline", share(lambda one: one.fastest_s)[0], True),
        Bar("greedy alone, optimal", "baseline", share(lambda one: one.greedy_s)[0], True),
        Bar("greedy + local search, optimal", ">= 98 %", local, local_share >= 0.98),
        Bar("seconds, median", "<= 0.25", f"{statistics.median(times):.3f}", statistics.median(times) <= 0.25),
        Bar("seconds, most", "", f"{max(times):.3f}", True),
        Bar("infeasible: the change told makes it feasible", "all", f"{mended} of {len(refused)}",
            mended == len(refused)),
    ]  # fmt: skip


def large(objective: Objective, limit_s: float) -> dict[str, Any]:
    """The large instance within so many seconds."""
    found = place(checked(read_json(FOLDER / LARGE), LARGE), Terms(objective=objective, limit_s=limit_s))
    assert found.certificate is not None
    return {
        **found.certificate.model_dump(mode="json"),
        "greedy_objective_s": found.greedy_objective_s,
        "limit_s": limit_s,
    }


def main() -> int:
    """Solve, print, write; 0 where every bar is met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.placement", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    chosen = parser.parse_args()
    where, made_at = machine(), commit()
    files = [FOLDER / entry["file"] for entry in read_json(FOLDER / INDEX)]
    rows = {objective: [row(path, objective) for path in files] for objective in OBJECTIVES}
    many = {objective: large(objective, 10.0) for objective in OBJECTIVES}
    command = shlex.join(["python", "-m", "tests.bench.placement", *sys.argv[1:]])
    about = {"command": command, "commit": made_at, "machine": where, "highspy": version("highspy")}
    met = {objective: bars(found) for objective, found in rows.items()}
    text = markdown(about, rows, many)
    told = {
        **about, "bars": {name: [asdict(bar) for bar in found] for name, found in met.items()}, "large": many,
        "instances": [asdict(one) for found in rows.values() for one in found],
    }  # fmt: skip
    sys.stdout.write(text)
    for file, content in ((chosen.json, _lines(told)), (chosen.markdown, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    in_time = all(entry["seconds"] <= entry["limit_s"] for entry in many.values())
    return 0 if in_time and all(bar.met for found in met.values() for bar in found) else 1


def _lines(told: dict[str, Any]) -> str:
    """JSON with an instance a line."""
    rows = ",\n".join(f"  {json.dumps(one)}" for one in told["instances"])
    head = json.dumps({name: value for name, value in told.items() if name != "instances"}, indent=1)
    return f'{head[:-2]},\n "instances": [\n{rows}\n ]\n}}\n'


def markdown(
    about: dict[str, Any], rows: dict[Objective, list[Row]], many: dict[Objective, dict[str, Any]]
) -> str:  # fmt: skip
    """The report."""
    facts = [*about["machine"].items(), ("highspy", about["highspy"])]
    parts = [
        "# Placement\n",
        f"Made by `{about['command']}` at commit {about['commit']}.\n",
        *(["**The machine was busy before this run.**\n"] * (float(about["machine"]["load_average"]) > QUIET_LOAD)),
        INTRODUCTION.format(tolerance=TOLERANCE, brute=BRUTE) + "\n",
    ]
    for objective, found in rows.items():
        cells = [(bar.name, bar.asked, bar.found, "met" if bar.met else "MISSED") for bar in bars(found)]
        parts += [f"## Objective {objective}: {len(found)} instances\n", table(("", "asked", "found", ""), cells)]
    sizes = [
        (objective, f"{entry['seconds']:.1f}", f"{entry['objective_s']:.4f}", f"{entry['bound_s']:.4f}",
         f"{entry['gap']:.1%}", f"{entry['greedy_objective_s']:.4f}")
        for objective, entry in many.items()
    ]  # fmt: skip
    parts += [
        "## 60 modules on 20 devices\n",
        table(("objective", "seconds", "found, s", "bound, s", "gap", "greedy, s"), sizes),
        "## Machine\n",
        table(("", ""), [(name.replace("_", " "), value) for name, value in facts]),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
