"""`python -m tests.bench.scale`: how splitting and export grow with a model's size and its layers.

The large model is built for a device, so that nothing but the split and the export happens here; its build reads
the weights, hashes them and, where they are bfloat16, writes them as float32. The curve holds everything but the
number of layers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.build_cost import EXPORT_STAGES, bytes_below
from tests.bench.children import finish, module
from tests.bench.large import llava, make
from tests.bench.machine import commit, machine
from tests.bench.report import table

LAYERS = (2, 8, 30, 80)
RSS_SHARE = 0.25
RECIPE = """\
recipe = 1
name = "scale"
[models.model]
checkpoint = "checkpoint"
role = "target"
[tasks.vqa]
models = ["model"]
[targets.device]
device = "jetson-agx-orin-64gb"
precision = "fp16"
[parity]
steps = 1
"""


@dataclass(frozen=True)
class Scaled:
    """One build: sizes in bytes, seconds by stage, and the largest resident set of split, load and export."""

    layers: int
    dtype: str
    params: int
    checkpoint_bytes: int
    written_bytes: int
    seconds: dict[str, float]
    peak_rss_bytes: dict[str, int]


def main() -> int:
    """Measure, print, write; 0 where the large model stays within its share of memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--width", type=int, default=3072, help="of the large model; 3072 gives 3.3 billion parameters")
    parser.add_argument("--dtypes", default="BF16,F32", help="of the large model, one build each")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench/scale"), help="emptied before and after")
    chosen = parser.parse_args()
    where, made_at = machine(), commit()
    large = [built(chosen.folder, 28, chosen.width, dtype) for dtype in chosen.dtypes.split(",")]
    curve = [built(chosen.folder, layers, 256, "F32") for layers in LAYERS]
    shutil.rmtree(chosen.folder, ignore_errors=True)
    command = shlex.join(["python", "-m", "tests.bench.scale", *sys.argv[1:]])
    text = markdown(command, made_at, where, large, curve)
    sys.stdout.write(text)
    told = {"command": command, "commit": made_at, "machine": where, "large": [asdict(one) for one in large],
            "curve": [asdict(one) for one in curve]}  # fmt: skip
    for file, content in ((chosen.json, json.dumps(told, indent=1) + "\n"), (chosen.markdown, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    return 0 if all(share(one) <= RSS_SHARE for one in large) else 1


def built(folder: Path, layers: int, width: int, dtype: str) -> Scaled:
    """Make a checkpoint, build it, and take the figures from the build's own evidence."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = folder / "checkpoint"
    sys.stderr.write(f"scale: {layers} layers, {width} wide, {dtype}\n")
    params = make(checkpoint, llava(layers, width), dtype)
    (folder / "scale.toml").write_text(RECIPE)
    places = ["--out", str(folder / "out"), "--store", str(folder / "store"), "--quiet"]
    finish(module("msao_compile", "build", str(folder / "scale.toml"), *places))
    evidence: list[dict[str, Any]] = json.loads((folder / "out/scale/evidence/build.json").read_text())["stages"]
    stages = [run for run in evidence if run["stage"] in EXPORT_STAGES]
    both = bytes_below(checkpoint, folder / "store", folder / "out")
    given = bytes_below(checkpoint)
    return Scaled(
        layers, dtype, params, given, both - given,
        {name: sum(run["seconds"] for run in stages if run["stage"] == name) for name in EXPORT_STAGES},
        {name: max((run["peak_rss_bytes"] for run in stages if run["stage"] == name), default=0)
         for name in EXPORT_STAGES},
    )  # fmt: skip


def share(one: Scaled) -> float:
    """The largest resident set of the export, of the checkpoint's bytes."""
    return max(one.peak_rss_bytes.values()) / one.checkpoint_bytes


def markdown(command: str, made_at: str, where: dict[str, str], large: list[Scaled], curve: list[Scaled]) -> str:
    """Both tables."""
    headers = ("", *(f"{one.params / 1e9:.1f} B, {one.dtype}" for one in large))
    lines = [
        ("checkpoint, GB", *(f"{one.checkpoint_bytes / 1e9:.2f}" for one in large)),
        ("written, GB", *(f"{one.written_bytes / 1e9:.2f}" for one in large)),
        *((f"{name}, s", *(f"{one.seconds[name]:.1f}" for one in large)) for name in EXPORT_STAGES),
        *((f"peak RSS of {name}, GB", *(f"{one.peak_rss_bytes[name] / 1e9:.2f}" for one in large))
          for name in EXPORT_STAGES),
        (f"peak RSS, of the checkpoint (asked: <= {RSS_SHARE:.0%})", *(f"{share(one):.1%}" for one in large)),
    ]  # fmt: skip
    first = curve[0]
    rows = [
        (str(one.layers), f"{one.seconds['split']:.1f}", f"{one.seconds['export']:.1f}",
         f"{one.seconds['split'] / first.seconds['split']:.2f}x", f"{one.peak_rss_bytes['split'] / 1e6:.0f}")
        for one in curve
    ]  # fmt: skip
    parts = [
        "# Scale\n",
        f"Made by `{command}` at commit {made_at} on {where['cpu']}, {where['cores']} cores,\n"
        f"{where['memory_gib']} GiB, load before the run {where['load_average']}.\n",
        "## A large checkpoint, sharded, random weights\n",
        table(headers, lines),
        "## Layers: everything else is the same\n",
        table(("layers", "split, s", "export, s", "split, of the first", "peak RSS of split, MB"), rows),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
