"""The table: one text for the terminal and for `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench import work
from tests.bench.bars import Bar, Missing
from tests.bench.build_cost import BuildCost
from tests.bench.timing import Spread, Times

QUIET_LOAD = 1.0
INTRODUCTION = f"""\
The standard model: SmolVLM-256M's dimensions with random weights, fp32. The work: one picture of {work.PICTURE_PX} px,
{work.PROMPT_TOKENS} prompt tokens ({work.IMAGE_TOKENS} of them the picture's), {work.NEW_TOKENS} new tokens, greedy.
Same weights, same input, same tokens, {work.THREADS} threads; each peer alone in its own process, one after another in
{work.ROUNDS} rounds, so that what else the machine does falls on all of them. The floor is what the arithmetic and the
reading of weights cost at the fastest rates seen here (`tests/bench/floor.py`): no fp32 library can be faster.
Figures are medians after a warm-up, (smallest-largest); "ours" is this project's median divided by the peer's.
TPOT is (end to end - time to the first token) / (tokens - 1).
Absolute times belong to this machine alone; the ratios are the result."""


@dataclass(frozen=True)
class Report:
    """Everything one run found."""

    command: str
    commit: str
    machine: dict[str, str]
    quick: bool
    runs: int
    peers: tuple[Times | Missing, ...]  # this project first
    build: BuildCost | Missing
    bars: tuple[Bar, ...]


def markdown(report: Report) -> str:
    """The whole report as Markdown whose columns also line up in a terminal."""
    facts = [*report.machine.items(), *sorted(_versions(report).items())]
    note = "**Quick run: too few runs to be quoted.**\n\n" if report.quick else ""
    if float(report.machine["load_average"]) > QUIET_LOAD:
        note += "**The machine was busy before this run: not to be quoted.**\n\n"
    parts = [
        "# Benchmarks\n",
        f"{note}Made by `{report.command}` at commit {report.commit}, {report.runs} runs each.\n{INTRODUCTION}\n",
        "## Bars\n",
        table(("", "asked", "found", ""), [_bar_row(bar) for bar in report.bars]),
        "## Speed, ms\n",
        table(("", "vision", "prefill", "vision + prefill", "TPOT", "TTFT"), _peer_rows(report.peers)),
        "## Build\n",
        table(("", "median (smallest-largest)"), _build_rows(report.build)),
        "## Checks\n",
        table(("peer", "check", "value"), _check_rows(report.peers)),
        "## Machine and versions\n",
        table(("", ""), [(name.replace("_", " "), value) for name, value in facts]),
    ]
    return "\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded columns."""
    rows = [[cell.replace("|", "/") for cell in row] for row in rows]
    widths = [max(3, *(len(row[index]) for row in [header, *rows])) for index in range(len(header))]
    lines = [_line(header, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join([*lines, *(_line(row, widths) for row in rows)]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _bar_row(bar: Bar) -> tuple[str, ...]:
    return bar.name, bar.asked, bar.found if bar.found is not None else bar.why, bar.verdict


def _peer_rows(peers: Sequence[Times | Missing]) -> list[tuple[str, ...]]:
    ours = peers[0]
    rows: list[tuple[str, ...]] = []
    for peer in peers:
        if isinstance(peer, Missing):
            rows.append((peer.name, "not run", "", "", "", ""))
            continue
        base = ours if isinstance(ours, Times) and peer is not ours else None
        columns = (peer.vision_ms, peer.prefill_ms, _sums(peer), peer.tpot_ms, peer.ttft_ms)
        bases = (base.vision_ms, base.prefill_ms, _sums(base), base.tpot_ms, base.ttft_ms) if base else ((),) * 5
        rows.append((peer.name, *map(_cell, columns, bases)))
    return rows


def _sums(times: Times) -> tuple[float, ...]:
    pairs = zip(times.vision_ms, times.prefill_ms, strict=False)
    return tuple(vision + prefill for vision, prefill in pairs)


def _cell(values: tuple[float, ...], ours: tuple[float, ...]) -> str:
    if not values:
        return "-"
    found = Spread.of(values)
    return f"{found}, ours {Spread.of(ours).median / found.median:.2f}x" if ours else str(found)


def _build_rows(cost: BuildCost | Missing) -> list[tuple[str, ...]]:
    if isinstance(cost, Missing):
        return [("build", f"not run: {cost.reason}")]
    weights, count = cost.weight_bytes, len(cost.build_s)
    return [
        (f"export of all modules (stages load, split, export), s, {count} builds", str(Spread.of(cost.export_s))),
        (f"whole build from nothing, every stage, s, {count} builds", str(Spread.of(cost.build_s))),
        ("build with nothing to do, s", str(Spread.of(cost.noop_s))),
        ("import of the runtime, ms", str(Spread.of(tuple(seconds * 1e3 for seconds in cost.import_s)))),
        ("imports of the first load, ms", str(Spread.of(tuple(seconds * 1e3 for seconds in cost.first_load_s)))),
        ("weights, MB", f"{weights / 1e6:.0f}"),
        ("bytes written, of the weights", f"{cost.written_bytes / weights:.2f}x"),
        ("peak RSS of the export, of the weights", _of(cost.export_peak_rss_bytes, weights)),
        ("peak RSS of the whole build, of the weights", _of(cost.build_peak_rss_bytes, weights)),
        *(
            (f"stage {stage['stage']} {stage['subject']}, s (last run)", f"{stage['seconds']:.2f}")
            for stage in cost.stages
        ),
    ]


def _of(values: tuple[int, ...], weights: int) -> str:
    return str(Spread.of(tuple(value / weights for value in values)))


def _check_rows(peers: Sequence[Times | Missing]) -> list[tuple[str, ...]]:
    return [
        (peer.name, name, f"{value:.3g}" if isinstance(value, float) else str(value))
        for peer in peers
        if isinstance(peer, Times)
        for name, value in peer.checks.items()
    ]


def _versions(report: Report) -> dict[str, str]:
    found: dict[str, str] = {}
    for peer in report.peers:
        if isinstance(peer, Times):
            found |= peer.versions
    return found
