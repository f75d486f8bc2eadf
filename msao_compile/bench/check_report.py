"""What checks came to, as Markdown: foretold and seen, policy by policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
WAITED = "measured speeds, no slow-down factor", "declared speeds, realised by waiting"


def markdown(checks: Sequence[Row]) -> str:
    """The whole report, a part for each point."""
    parts = [
        "# Is the emulation true?",
        "Each point was asked twice. **Seen**: a `serve --role cloud` process (gRPC), a user-space link in front of "
        "it, and an edge process for each edge that asks through `load(folder, cloud=...)`, on the clock. "
        "**Predicted**: the same questions in the counted time of `bench --offload`, with the times of work, messages "
        "and turns measured in the same run. `error` is how much more was seen than predicted.",
        "`measured`: both sides run as fast as this machine lets them. `declared`: both take the times of the setting, "
        "realised by waiting until a piece of work has taken so long. Counted time has a machine for each side; here "
        "edges, cloud, links and their engines' threads share the cores, which hurts least where work is waiting. "
        "`late` is how late timers were meanwhile: where it is not far below 1 ms, others used the machine, and the "
        "error is theirs.",
        *(_part(check) for check in checks),
    ]
    return "\n\n".join(parts) + "\n"


def _part(check: Row) -> str:
    edges, late = check["edges"], check["timer_late_ms"]
    link = f"{check['mbps']:g} Mbit/s, {check['rtt_ms']:g} ms"
    link += f", jitter {check['jitter_ms']:g} ms" if check["jitter_ms"] else ""
    link += f", loss {100 * check['loss']:g} %" if check["loss"] else ""
    link += f", {edges} edges at once" if edges > 1 else ""
    rounds = f", the quiet quarter of {check['rounds']} rounds" if check["rounds"] > 1 else ""
    facts = (
        f"`{check['command']}`: {check['questions']} questions, {WAITED[check['speeds'] == 'declared']}{rounds}. "
        f"A message takes {check['message_ms']:.2f} ms beside the link, a turn {check['edge_turn_ms']:.2f} ms at the "
        f"edge and {check['cloud_turn_ms']:.2f} ms in the cloud. Timers were late by {late['p50']:.2f} ms (median) and "
        f"{late['p95']:.2f} ms (95th percentile), on {check['machine']['cores']} cores"
    )
    nice = check["machine"]["niceness"]
    facts += f", all processes at niceness {nice}." if nice else "."
    lines = [
        "| policy | asked by | | mean ms | p50 | p95 | TTFT | kB up | kB down | kept | same tokens |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(line for row in check["rows"] for line in _lines(row)),
    ]
    return f"## {link}, {check['speeds']} speeds\n\n{facts}\n\n" + "\n".join(lines)


def _lines(row: Row) -> list[str]:
    """Three lines of one policy: predicted, seen, error."""
    found = []
    for side in ("predicted", "seen"):
        told = row[side]
        cells = [_number(told[key]) for key in ("mean_ms", "p50_ms", "p95_ms", "ttft_ms")]
        cells += [_number(told[key], 1e-3, 2) for key in ("up_bytes", "down_bytes")]
        found.append([side, *cells, _number(told["kept"], 100, 0, " %")])
    found.append(["error", *(_signed(row["error"][key]) for key in row["error"])])
    heads = [[row["policy"], row["asked_by"]], ["", ""], ["", ""]]
    ends = ["", "", f"{row['equal']}/{row['n']}"]
    return [f"| {' | '.join([*head, *cells, end])} |" for head, cells, end in zip(heads, found, ends, strict=True)]


def _number(value: float | None, scale: float = 1.0, digits: int = 1, unit: str = "") -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}{unit}"


def _signed(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:+.1f} %"
