"""What a sweep came to, as Markdown and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msao_compile.bench.setting import Setting
from msao_compile.errors import MissingTool

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
RIVALS = ("cloud-only", "edge-only", "stop-and-wait", "cs-ucb")
"""What the bar is measured against, each where its accuracy qualifies."""
QUALIFIES = 0.004
"""Within this of the cloud's accuracy: the gap that MSAO reports."""


def markdown(setting: Setting, rows: Sequence[Row], command: str, facts: Mapping[str, str]) -> str:
    """The whole report."""
    parts = [
        f"# Offloading, emulated: {setting.name}",
        f"Made by `{command}`. {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "**Emulated**: answers, drafts and bytes are real; time is counted by declared speeds and links, not waited "
        f"for. Edge: {setting.edge.name}. Cloud: {setting.cloud.name}. {setting.why}",
        "Latency is until the last token; `equal` counts answers that are the cloud's own token for token; `alone` "
        "those that the edge gave without the cloud; cloud ms are its busy time for each token of an answer.",
    ]
    places = dict.fromkeys(_place(row) for row in rows)
    parts += [_table(place, [row for row in rows if _place(row) == place]) for place in places]
    parts.append(_bars(rows))
    return "\n\n".join(parts) + "\n"


def _place(row: Row) -> tuple[float, float, int]:
    return row["mbps"], row["rtt_ms"], row["sessions"]


def _table(place: tuple[float, float, int], rows: Sequence[Row]) -> str:
    mbps, rtt, sessions = place
    head = f"## {mbps:g} Mbit/s, {rtt:g} ms" + (f", {sessions} edges at once" if sessions > 1 else "")
    lines = [
        "| policy | mean ms | p50 | p95 | TTFT | TPOT | tokens/s | right | equal | alone | kB up | cloud ms | kept |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['policy']} | {row['mean_ms']:.0f} | {row['p50_ms']:.0f} | {row['p95_ms']:.0f} | "
        f"{_number(row['ttft_ms'])} | {_number(row['tpot_ms'], 1)} | {row['tokens_per_s']:.1f} | "
        f"{100 * row['accuracy']:.1f} % | {row['equal']}/{row['n']} | {row['alone']} | {row['up_bytes'] / 1e3:.1f} | "
        f"{row['cloud_ms_per_token']:.1f} | {_share(row['kept'])} |"
        for row in rows
    ]
    return head + "\n\n" + "\n".join(lines)


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _bars(rows: Sequence[Row]) -> str:
    """Each point's latency against the strongest rivals, those whose accuracy qualifies and any."""
    lines = [
        "## Against the strongest",
        "Mean latency less than that of the strongest of cloud-only, edge-only, stop-and-wait and CS-UCB: of those "
        f"within {100 * QUALIFIES:g} points of the cloud's accuracy, and of all whatever they answer.",
        "| Mbit/s | ms | edges | strict `auto` against the best lossless | `calibrated`, points lost | against those "
        "that qualify | against any |",
        "|---|---|---|---|---|---|---|",
    ]
    for place in dict.fromkeys(_place(row) for row in rows):
        here = {row["policy"]: row for row in rows if _place(row) == place}
        cloud, auto, ours = (here.get(name) for name in ("cloud-only", "auto", "calibrated"))
        if cloud is None:
            continue
        lossless = [row["mean_ms"] for name, row in here.items() if row["lossless"] and name != "auto"]
        rivals = [here[name] for name in RIVALS if name in here]
        fair = [row["mean_ms"] for row in rivals if row["accuracy"] >= cloud["accuracy"] - QUALIFIES]
        strict = "–" if auto is None else f"{auto['mean_ms'] / min(lossless):.3f} x"
        cells = [strict, "–", "–", "–"]
        if ours is not None:
            lost = 100 * (cloud["accuracy"] - ours["accuracy"])
            any_ms = min(row["mean_ms"] for row in rivals)
            cells[1:] = [f"{lost:.2f}", _less(ours["mean_ms"], min(fair)), _less(ours["mean_ms"], any_ms)]
        lines.append(f"| {place[0]:g} | {place[1]:g} | {place[2]} | " + " | ".join(cells) + " |")
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


def _less(ours_ms: float, theirs_ms: float) -> str:
    return (
        f"{100 * (1 - ours_ms / theirs_ms):+.0f} %".replace("+", "−", 1)
        if ours_ms < theirs_ms
        else (f"+{100 * (ours_ms / theirs_ms - 1):.0f} %")
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Latency over rate for each round trip, and latency against accuracy, as an SVG.

    Raises:
        MissingTool: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise MissingTool("matplotlib is not installed: pip install 'msao-compile[bench]'") from error
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "msao"
    from matplotlib import pyplot

    single = [row for row in rows if row["sessions"] == 1]
    delays = list(dict.fromkeys(row["rtt_ms"] for row in single))
    figure, axes = pyplot.subplots(1, len(delays) + 1, figsize=(4.2 * (len(delays) + 1), 3.8), squeeze=False)
    for axis, delay in zip(axes[0], delays, strict=False):
        _rates(axis, [row for row in single if row["rtt_ms"] == delay], delay)
    if single:
        _trade(axes[0][-1], single)
        axes[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _rates(axis: Axes, rows: Sequence[Row], delay: float) -> None:
    for name in dict.fromkeys(row["policy"] for row in rows):
        line = sorted((row["mbps"], row["mean_ms"]) for row in rows if row["policy"] == name)
        axis.plot([rate for rate, _ in line], [ms for _, ms in line], marker="o", markersize=3, label=name)
    axis.set_xscale("log")
    axis.set_title(f"round trip {delay:g} ms", fontsize=9)
    axis.set_xlabel("Mbit/s")
    axis.set_ylabel("mean latency, ms (emulated)")
    axis.set_ylim(bottom=0)


def _trade(axis: Axes, rows: Sequence[Row]) -> None:
    place = _place(rows[len(rows) // 2])
    for row in (row for row in rows if _place(row) == place):
        axis.scatter(row["mean_ms"], 100 * row["accuracy"], s=14)
        axis.annotate(row["policy"], (row["mean_ms"], 100 * row["accuracy"]), fontsize=6)
    axis.set_title(f"{place[0]:g} Mbit/s, {place[1]:g} ms", fontsize=9)
    axis.set_xlabel("mean latency, ms (emulated)")
    axis.set_ylabel("right answers, %")
