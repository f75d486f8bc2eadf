"""What a build costs: a fresh one, one with nothing to do, and the import of the runtime, each as whole processes."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.children import finish, module
from tests.bench.work import WARM_UPS, Layout

EXPORT_STAGES = ("load", "split", "export")
IMPORT = "from msao_compile.runtime import load"
FIRST_LOAD = "import msao_compile.runtime.api, onnxruntime"  # what the first `load` brings in


@dataclass(frozen=True)
class BuildCost:
    """Seconds and bytes; one entry a run where there are several."""

    weight_bytes: int
    written_bytes: int
    build_s: tuple[float, ...]
    export_s: tuple[float, ...]
    export_peak_rss_bytes: tuple[int, ...]
    build_peak_rss_bytes: tuple[int, ...]
    stages: tuple[dict[str, Any], ...]
    noop_s: tuple[float, ...]
    import_s: tuple[float, ...]
    first_load_s: tuple[float, ...]


def measure(layout: Layout, builds: int, runs: int) -> BuildCost:
    """Build `builds` times from nothing, then time `runs` builds with nothing to do and imports.

    A warm-up comes before each of the three, but not before a single build from nothing.

    Raises:
        ChildFailed: a build failed.
    """
    if builds > 1:
        _fresh(layout)
    fresh = [_fresh(layout) for _ in range(builds)]
    noop = [finish(build_command(layout.recipe, layout)).seconds for _ in range(WARM_UPS + runs)]
    return BuildCost(
        weight_bytes=sum(path.stat().st_size for path in layout.checkpoint.glob("*.safetensors")),
        written_bytes=bytes_below(layout.checkpoint, layout.store, layout.deployment) - bytes_below(layout.checkpoint),
        build_s=tuple(seconds for seconds, _, _ in fresh),
        export_s=tuple(sum(stage["seconds"] for stage in exporting(stages)) for _, _, stages in fresh),
        export_peak_rss_bytes=tuple(
            max(stage["peak_rss_bytes"] for stage in exporting(stages)) for _, _, stages in fresh
        ),
        build_peak_rss_bytes=tuple(
            max(rss, *(stage["peak_rss_bytes"] for stage in stages)) for _, rss, stages in fresh
        ),
        stages=tuple(fresh[-1][2]),
        noop_s=tuple(noop[WARM_UPS:]),
        import_s=_imports(runs, IMPORT),
        first_load_s=_imports(runs, FIRST_LOAD),
    )


def build_command(recipe: Path, layout: Layout) -> list[str]:
    """The command a user would type."""
    folders = ["--out", str(layout.deployment.parent), "--store", str(layout.store)]
    return module("msao_compile", "build", str(recipe), "--quiet", *folders)


def exporting(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of the stages that lead to ONNX files."""
    return [stage for stage in stages if stage["stage"] in EXPORT_STAGES]


def bytes_below(*folders: Path) -> int:
    """Bytes of every file below the folders, hard links counted once."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                facts = path.stat()
                found[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(found.values())


def _fresh(layout: Layout) -> tuple[float, int, list[dict[str, Any]]]:
    for folder in (layout.store, layout.deployment):
        shutil.rmtree(folder, ignore_errors=True)
    done = finish(build_command(layout.recipe, layout))
    evidence = json.loads((layout.deployment / "evidence" / "build.json").read_text())
    return done.seconds, done.peak_rss_bytes, evidence["stages"]


def _imports(runs: int, line: str) -> tuple[float, ...]:
    """Seconds of the import alone: a process that imports, less a bare interpreter right after it."""
    found = []
    for _ in range(WARM_UPS + runs):
        importing = finish([sys.executable, "-c", line]).seconds
        found.append(importing - finish([sys.executable, "-c", "pass"]).seconds)
    return tuple(found[WARM_UPS:])
