"""Builds as tests call them: a recipe for any checkpoints, `build` without talk, and the command line as a process."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msao_compile import runner
from msao_compile.farm.job import Job, Result
from msao_compile.pipeline import Built, Event, Options, Plan, Step, build, plan

ROOT = Path(__file__).resolve().parents[1]
SHAPES_EDGE = ROOT / "calibration" / "models" / "shapes-edge"
SHAPES = ROOT / "recipes" / "shapes-vqa.toml"
KV_CAPACITY = 256
BOTH_DIALECTS = {"edge": "fused", "device": "portable"}


def write_recipe(
    file: Path,
    models: Mapping[str, tuple[Path, str]],
    max_abs: float = 1e-3,
    targets: Mapping[str, str] = BOTH_DIALECTS,
    weights: str = "module",
) -> Path:
    """A recipe for this machine. `models`: checkpoint folder and role by name; `targets`: dialect by name."""
    lines = ["recipe = 1", f'name = "{file.stem}"']
    for name, (folder, role) in models.items():
        lines += [f"[models.{name}]", f'checkpoint = "{folder}"', f'role = "{role}"']
    lines += ["[tasks.vqa]", f"models = {list(models)}"]
    for name, dialect in targets.items():
        lines += [f"[targets.{name}]", 'device = "local-cpu"', 'precision = "fp32"', f'dialect = "{dialect}"']
    lines += ["[shapes.decoder]", "batch = [1, 1, 1]", "sequence = [1, 16, 64]", f"kv_capacity = {KV_CAPACITY}"]
    lines += ["[parity]", f"fp32 = {{ min_cosine = 0.9999, max_abs = {max_abs} }}", "steps = 3"]
    lines += ["[runtime]", "threads = 1", "arena = true", "warm_up = 1"]
    lines += ["[export]", f'weights = "{weights}"']
    file.write_text("\n".join(lines) + "\n")
    return file


@dataclass
class Workshop:
    """A store and a folder of deployments, and what the builds in them told."""

    folder: Path
    jobs: int = 2
    events: list[Event] = field(default_factory=list)

    @property
    def options(self) -> Options:
        """Where builds go."""
        return Options(out=self.folder / "deployments", store=self.folder / "store", jobs=self.jobs)

    def build(self, recipe: Path) -> Built:
        """Build, and remember the events of this build alone."""
        self.events.clear()
        return build(recipe, self.options, self.events.append)

    def ran(self) -> list[str]:
        """The stages that the last build ran, by name, in no order."""
        return sorted(event.stage for event in self.events if event.state == "finished")


def planned(recipe: Path, options: Options) -> tuple[Step, ...]:
    """The steps of a plan for checkpoints that have weights."""
    found = plan(recipe, options)
    assert isinstance(found, Plan)
    return found.steps


def command(*arguments: object, workshop: Workshop | None = None) -> list[str]:
    """The command line `python -m msao_compile ...`; with a workshop, its folders and one job."""
    where: list[object] = []
    if workshop is not None:
        where = ["--out", workshop.options.out, "--store", workshop.options.store]
    return [sys.executable, "-m", "msao_compile", *map(str, [*arguments, *where])]


def run(*arguments: object, workshop: Workshop | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(command(*arguments, workshop=workshop), capture_output=True, text=True, cwd=ROOT, check=False)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start code in an interpreter of its own; `sys.argv[1:]` are the arguments."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a process and give what it said."""
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own to its end."""
    return finish(start(code, *arguments))


def run_here(job: Job, on_progress: object = None, stop: object = None) -> Result:
    """Stands for `farm.local.run`: the stage runs in this process, which has imported torch already."""
    module, _, name = job.function.partition(":")
    started = time.perf_counter()
    value = getattr(importlib.import_module(module), name)(
        json.loads(json.dumps(dict(job.arguments))), lambda record: None
    )
    seconds = time.perf_counter() - started
    return Result(value=json.loads(json.dumps(value)), seconds=seconds, peak_rss_bytes=1, cpu_seconds=seconds)


def build_here(recipe: str, folder: str) -> None:
    """Build with every stage in this very process: a child for each would spend its time on importing torch."""
    runner.run_job = run_here
    Workshop(Path(folder), jobs=1).build(Path(recipe))
