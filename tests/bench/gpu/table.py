"""What a GPU check found, as figures with their floors and as one page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.gpu import floors, memory
from tests.bench.gpu.steps import BACKENDS
from tests.bench.timing import Spread
from tests.bench.work import PROMPT_TOKENS, Layout

Report = dict[str, Any]
HEAD = ("peer", "precision", "batch", "TTFT ms", "TPOT ms", "tokens/s", "peak MiB", "of the floor")
PARITY = ("peer", "precision", "steps", "least cosine", "same likeliest token", "largest difference")

POINTERS = ("For further information", "Set TORCHDYNAMO", "Set TORCH_LOGS")  # after the message itself
ABOUT = (
    "The standard model (SmolVLM-256M's dimensions, random weights), {prompt} prompt tokens with one picture of "
    "512 px, {new_tokens} new tokens, greedy; medians of {runs} after a warm-up, extremes in brackets. TTFT is "
    "from arrays on the host to the first token; a batch is that many equal requests. The floor of TPOT is the "
    "weights, keys and values that a step reads over the measured bandwidth: 100 % is the floor itself. Torch "
    "keeps its tokens on the device until the last; the engines give logits to the host at every step, as the "
    "runtime does. Peak memory is what the driver says is in use, less what was in use before."
)


def complete(report: Report, layout: Layout, samples: Sequence[tuple[float, int]]) -> None:
    """Add floors, where bandwidth and model are known, and peaks of memory to the rows there are."""
    config = layout.checkpoint / "config.json"
    rate = facts(report).get("bytes_per_s")
    text = json.loads(config.read_text())["text_config"] if config.is_file() else None
    new_tokens = report["work"]["new_tokens"]
    for step in report["steps"]:
        result = step.get("result") or {}
        for row in result.get("rows", ()):
            if "window" in row and row.get("peak_bytes") is None:
                row["peak_bytes"] = memory.peak_bytes(samples, row["window"])
        if rate and text and "rows" in result:
            precision = result["precision"]
            result["rows"] = [floors.with_floor(row, text, precision, new_tokens, rate) for row in result["rows"]]


def facts(report: Report) -> dict[str, Any]:
    """What the first step found out."""
    return next((step["result"] or {} for step in report["steps"] if step["name"] == "facts"), {})


def gpu_name(report: Report) -> str:
    """The card, as the driver calls it."""
    gpu = facts(report).get("gpu")
    return str(gpu["name"]) if isinstance(gpu, dict) else "no GPU"


def file_name(report: Report) -> str:
    """The card's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", gpu_name(report).lower()).strip("-")


def ran(report: Report, backend: str) -> bool:
    """Whether a backend answered on the GPU, with timings to show for it."""
    steps = [step for step in report["steps"] if step.get("backend") == backend]
    return report["device"] == "cuda" and any(_timed(step) for step in steps)


def _timed(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in (step.get("result") or {}).get("rows", ()) if row.get("tpot_ms")]


def verdicts(report: Report) -> list[str]:
    """A line for each backend: whether it really ran here, and what stood in the way."""
    found = []
    for backend in BACKENDS:
        steps = [step for step in report["steps"] if step.get("backend") == backend]
        good = [step["name"] for step in steps if _timed(step)] if report["device"] == "cuda" else []
        bad = [f"{step['name']}: {reason(step)}" for step in steps if step["name"] not in good]
        verb = f"ran ({', '.join(good)})" if good else "did not run"
        why = f"; not: {'; '.join(bad)}" if bad else ""
        found.append(f"**{backend}** {verb}{why if steps else '; it was not tried'}.")
    return found


def reason(step: Mapping[str, Any]) -> str:
    """Why a step has nothing to show."""
    if step["status"] == "not run":
        return str(step["reason"])
    if step["status"] == "timed out":
        return f"timed out after {step['seconds']:.0f} s"
    faults = [row["fault"] for row in (step.get("result") or {}).get("rows", ()) if "fault" in row]
    if step["status"] == "ran":
        return faults[0] if faults else "nothing was measured"
    told = [line for line in step["last_lines"] if line.strip() and not line.lstrip().startswith(POINTERS)]
    last = told[-1] if told else "it said nothing"
    return f"{step['signal'] or 'exit code ' + str(step['exit_code'])}: {last.strip()}"


def markdown(report: Report) -> str:
    """The page."""
    work = report["work"]
    parts = [
        f"# GPU check: {gpu_name(report)}",
        f"Made by `{report['command']}` on {report['date']} at commit {report['made_at']}.",
        _machine(report),
        "## Which backends ran",
        "\n".join(f"- {line}" for line in verdicts(report)),
        "## Speed",
        ABOUT.format(prompt=PROMPT_TOKENS, **work),
        _grid(HEAD, [row for step in report["steps"] for row in _rows(step)]),
        "## Parity",
        "Logits against torch eager in fp32 on the same GPU, every step fed torch's tokens.",
        _grid(PARITY, [row for step in report["steps"] for row in _parity(step)]),
        "## Engines built ahead of time and on the card",
        "\n".join(f"- {line}" for step in report["steps"] for line in _engines(step)) or "None.",
        "## Every step",
        _grid(("step", "status", "seconds", "reason"), [_step(step) for step in report["steps"]]),
    ]
    return "\n\n".join(parts) + "\n"


def _machine(report: Report) -> str:
    found = facts(report)
    gpu, smi = found.get("gpu"), found.get("nvidia_smi")
    lines = []
    if isinstance(gpu, dict):
        lines.append(f"Card: {gpu['name']}, SM {gpu['sm']}, {gpu['memory_bytes'] / 2**30:.0f} GiB; driver "
                     f"{gpu['driver'] or 'unknown'} for CUDA {gpu['cuda']}")  # fmt: skip
    elif gpu:
        lines.append(f"No GPU: {gpu}")
    if isinstance(smi, dict):
        lines.append("nvidia-smi: " + ", ".join(f"{name} {value}" for name, value in smi.items()))
    if "bytes_per_s" in found:
        lines.append(f"Measured: device copy {found['bytes_per_s'] / 1e9:.0f} GB/s read and written, "
                     f"fp16 product {found.get('fp16_flops_per_s', 0) / 1e12:.0f} TFLOP/s")  # fmt: skip
    if "machine" in found:
        lines.append(f"Host: {found['machine']['cpu']}, {found['machine']['cores']} cores, "
                     f"Python {found['machine']['python']}")  # fmt: skip
    if "versions" in found:
        lines.append("Versions: " + ", ".join(f"{name} {value}" for name, value in found["versions"].items()))
    return "\n".join(f"- {line}" for line in lines) or "The facts step did not run."


def _rows(step: Mapping[str, Any]) -> list[tuple[str, ...]]:
    result, found = step.get("result") or {}, []
    for row in result.get("rows", ()):
        head = (result["peer"], result["precision"], str(row["batch"]))
        if "fault" in row:
            found.append((*head, f"failed: {row['fault']}", "", "", "", ""))
            continue
        spreads = [str(Spread.of(tuple(row[name]))) for name in ("ttft_ms", "tpot_ms", "tokens_per_s")]
        peak = "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 2**20:.0f}"
        near = f"{row['fraction_of_floor']:.0%}" if "fraction_of_floor" in row else ""
        found.append((*head, *spreads, peak, near))
    return found


def _parity(step: Mapping[str, Any]) -> list[tuple[str, ...]]:
    result = step.get("result") or {}
    found = result.get("parity")
    if not found:
        return []
    head = (result["peer"], result["precision"])
    if "fault" in found:
        return [(*head, f"failed: {found['fault']}", "", "", "")]
    return [(*head, str(found["steps"]), f"{found['min_cosine']:.6f}", f"{found['argmax_agreement']:.1%}",
             f"{found['max_abs']:.3g}")]  # fmt: skip


def _engines(step: Mapping[str, Any]) -> list[str]:
    """What building and loading engines came to."""
    result, name = step.get("result") or {}, step["name"]
    found = [f"{name}: {one['component']} built in {one['seconds']:.1f} s, {one['plan_bytes'] / 1e6:.0f} MB"
             for one in result.get("builds", ())]  # fmt: skip
    found += [f"{name}: {one['component']} loaded in {one['seconds']:.1f} s, "
              f"{one['resident_bytes'] / 1e6:.0f} MB resident" for one in result.get("loads", ())]  # fmt: skip
    if "ahead of time" not in name:
        return found
    if step["status"] != "ran":
        return [*found, f"{name}: {reason(step)}"]
    known = {key: value for key, value in result.items() if key not in ("plan", "capability", "warnings", "faults")}
    return [*found, f"{name}: " + ", ".join(f"{key} {value}" for key, value in known.items())]


def _step(step: Mapping[str, Any]) -> tuple[str, ...]:
    why = "" if step["status"] == "ran" and not step.get("backend") else reason(step) if not _timed(step) else ""
    return (step["name"], step["status"], f"{step['seconds']:.1f}", why)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
