"""What batching gives a cloud on this machine, and what a probe costs an edge.

Run as `python -m tests.bench.together FOLDER`: builds what it needs there. Rounds of a few tokens are verified for many
sessions, all of them in one step, or one session after another; by the decoder that takes rows side by side (dialect
`scatter`) and by the one that is fastest alone (`fused`). Probes are timed against the edge's time to first token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.made_up import picture
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.api import load
from msao_compile.runtime.cloud.rows import Rows, rows_of
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.mas.probes import OVERHEAD, PROBE, PROBES, Look, Settings, cheaper, open_probe
from msao_compile.runtime.mas.reading import Fitted, Limits
from msao_compile.runtime.mas.temporal import TemporalLimits
from msao_compile.runtime.preprocess.decode import decode
from msao_compile.runtime.session import ModelSession, Request
from tests.bench import standard
from tests.bench.machine import commit, machine

ROUND, RUNS, SESSIONS = 5, 7, (1, 4, 16)
PROMPT = "What is in this picture?"
UNFITTED = Settings(Fitted((1 / 3, 1 / 3, 1 / 3), (0.0, 1.0, 1.0, 1.0)), Limits(0.9, 0.3, 0.05, TemporalLimits(0.9)))


def main() -> None:
    """Build, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    shapes, large = _built(asked.folder)
    found: dict[str, Any] = {"machine": {**machine(), "commit": commit()}, "batching": [], "probes": []}
    for folder, model in ((shapes, "cloud"), (large, "standard")):
        found["batching"] += batching(folder, model)
    for folder, model in ((shapes, "edge"), (large, "standard")):
        found["probes"] += probes(folder, model)
    text = markdown(found)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.markdown:
        asked.markdown.write_text(text, encoding="utf-8")
    print(text)


def _built(folder: Path) -> tuple[Path, Path]:
    standard.make(folder)
    text = (
        standard.Layout(folder)
        .recipe.read_text(encoding="utf-8")
        .replace('name = "standard"', 'name = "standard-rows"')
    )
    rows = '[targets.rows]\ndevice = "local-cpu"\ndialect = "scatter"\nprecision = "fp32"\n[shapes.decoder]'
    both = text.replace("[shapes.decoder]", rows)
    (folder / "rows.toml").write_text(both.replace("batch = [1, 1, 1]", "batch = [1, 1, 16]"), encoding="utf-8")
    for recipe in (Path("recipes/shapes-vqa.toml"), folder / "rows.toml"):
        command = [sys.executable, "-m", "msao_compile", "build", str(recipe), "--quiet"]
        subprocess.run([*command, "--out", str(folder / "deployments"), "--store", str(folder / "store")], check=True)
    return folder / "deployments" / "shapes-vqa", folder / "deployments" / "standard-rows"


def batching(folder: Path, model: str) -> list[dict[str, Any]]:
    """Verified tokens a second by sessions and by how steps are taken."""
    deployment = load(folder).deployment
    opened = {dialect: Engines(folder, deployment, True, dialect=dialect).session(deployment.model(model))
              for dialect in ("scatter", "fused")}  # fmt: skip
    found = []
    for sessions in SESSIONS:
        side, apart = rows_of(opened["scatter"], max(sessions, 2)), rows_of(opened["fused"], max(sessions, 2))
        if not side.side_by_side:
            raise SystemExit(f"{model}: its rows do not go side by side")
        times = {
            "in one step": _round_ms(opened["scatter"], side, sessions, together=True),
            "one after another": _round_ms(opened["scatter"], side, sessions, together=False),
            "one after another, fused": _round_ms(opened["fused"], apart, sessions, together=False),
        }
        found.append({"model": model, "sessions": sessions, "round_ms": times})
    return found


def _round_ms(session: ModelSession, rows: Rows, sessions: int, together: bool) -> float:
    """Milliseconds until every session's round is verified."""
    ids = session.prepare(PROMPT, ()).ids
    taken = [rows.open() for _ in range(sessions)]
    held = [row for row in taken if row is not None]
    for row in held:
        rows.prefill(row, Request(ids, {}), {}, Clock())
    length, tokens = held[0].length, np.repeat(ids[:1], ROUND)

    def once() -> None:
        for group in [held] if together else [[row] for row in held]:
            rows.step([(row, tokens) for row in group])
        for row in held:
            rows.rollback(row, length)

    found = _median_ms(once)
    for row in held:
        rows.close(row)
    return found


def probes(folder: Path, model: str) -> list[dict[str, Any]]:
    """What each probe adds to a request with one picture, and which the rule of 2 % leaves in place."""
    runtime = load(folder)
    session, shown = runtime.session(model), decode(picture())
    request = session.prepare(PROMPT, (shown,))

    def first_token() -> None:
        session.prefill(session.prepare(PROMPT, (shown,)), session.encode(request.tensors, Clock()), Clock())

    ttft_ms, found = _median_ms(first_token), []
    for name in PROBES:
        if name == "dual":
            continue
        probe = open_probe(name, UNFITTED, session)

        def spent(probe: Any = probe) -> float:
            clock = Clock()
            probe.read(Look(PROMPT, (shown,), request), session, clock)
            return clock.modules_ms.get(PROBE, 0.0)

        spent()
        probe_ms = statistics.median(spent() for _ in range(RUNS))
        kept = cheaper(name, probe_ms, ttft_ms)
        found.append({"model": model, "probe": name, "probe_ms": probe_ms, "ttft_ms": ttft_ms, "next": kept})
    return found


def _median_ms(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def markdown(found: dict[str, Any]) -> str:
    """Both tables."""
    facts = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    lines = [
        "# Steps of many sessions, and probes", "",
        "Made by `make together`. " + facts + ". Medians of " + str(RUNS) + ", warm.", "",
        f"## Rounds of {ROUND} tokens, every session's verified",
        "",
        "| model | sessions | in one step, ms | one after another, ms | the fused decoder, one after another, ms | "
        "batching is so many times faster | than the fused |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["batching"]:
        one, each, fused = row["round_ms"].values()
        times = f"{one:.2f} | {each:.2f} | {fused:.2f} | {each / one:.2f} | {fused / one:.2f}"
        lines.append(f"| {row['model']} | {row['sessions']} | {times} |")
    lines += ["", f"## Probes: at most {OVERHEAD:.0%} of the edge's time to first token", "",
              "| model | probe | adds, ms | of the time to first token, ms | share | the rule keeps |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for row in found["probes"]:
        share = row["probe_ms"] / row["ttft_ms"]
        times = f"{row['probe_ms']:.3f} | {row['ttft_ms']:.2f} | {share:.2%}"
        lines.append(f"| {row['model']} | {row['probe']} | {times} | {row['next']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
