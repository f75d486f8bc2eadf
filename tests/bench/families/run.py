"""One family through the command line: init, build in both dialects, parity, every reference; then its row."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.families import talk
from tests.bench.families.judge import DIALECTS, Case, Evidence, Family, Problem, judge
from tests.bench.families.limits import Ended, Limits, run
from tests.bench.families.resume import limits_as_json

RECIPE = "recipe.toml"
GATE = "GateError"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Settings:
    """What is the same for every family: the command line under test, the limits of one family, where it works."""

    tool: tuple[str, ...]
    limits: Limits
    scratch: Path
    threads: int = 1
    keep: bool = False


def run_family(checkpoint: Path, settings: Settings, stop: threading.Event) -> Family:
    """Judge one checkpoint in a folder of its own, which is removed afterwards."""
    folder = settings.scratch.resolve() / f"{checkpoint.name}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        visit = Visit(checkpoint.resolve(), folder, settings, stop)
        visit.judge_all()
        return visit.row()
    finally:
        if not settings.keep:
            shutil.rmtree(folder, ignore_errors=True)


class Visit:
    """One family on its way through the commands, under one limit of time for all of them."""

    def __init__(self, checkpoint: Path, folder: Path, settings: Settings, stop: threading.Event) -> None:
        self.checkpoint, self.folder, self.settings, self.stop = checkpoint, folder, settings, stop
        self.found = Evidence()
        self.started = time.perf_counter()
        self.peak_bytes = 0
        self.stopped = False
        self.build: Ended | None = None
        self.loaded: dict[str, None] = {}
        self.build_peak_bytes: int | None = None

    def judge_all(self) -> None:
        """Both dialects in one build; where that fails, each alone, to know which of them is at fault."""
        proposed = self.command("init", str(self.checkpoint), "-o", RECIPE)
        if not (self.folder / RECIPE).is_file():
            return
        self.found.components = [module["component"] for module in proposed.get("modules", ())]
        self.found.cases = [Case(path.stem, False) for path in self.references()]
        if self.attempt(DIALECTS) or self.stopped:
            return
        first = self.found.problems[-1].sentence
        for dialect in DIALECTS:
            if self.attempt((dialect,)) or self.stopped:
                return  # the other one is at fault, and its sentence is there already
            if dialect == DIALECTS[0] and self.found.problems[-1].sentence == first and dialect not in first:
                return  # not a matter of dialects

    def attempt(self, dialects: tuple[str, ...]) -> bool:
        """A build for some dialects and every comparison with what it gave; False where it gave nothing."""
        label = "-".join(dialects)
        recipe = for_dialects((self.folder / RECIPE).read_text(encoding="utf-8"), dialects, self.settings.threads)
        (self.folder / f"{label}.toml").write_text(recipe, encoding="utf-8")
        answer = self.command("build", f"{label}.toml", "--store", "store", "--out", f"out-{label}", dialects=dialects)
        if "deployment" not in answer:
            return False
        deployment = str(answer["deployment"])
        self.read_deployment(self.folder / deployment)
        self.found.rows += self.command("parity", deployment).get("rows", [])
        decodes = "decoder" in self.found.components
        for case, path in zip(self.found.cases, self.references(), strict=True):
            case.has_tokens = decodes and holds_tokens(path)
            rows = self.command("parity", deployment, "--reference", str(path), where=f"parity {path.stem}").get("rows")
            case.rows += rows or []
        return True

    def command(
        self, name: str, *words: str, where: str = "", dialects: tuple[str, ...] = DIALECTS
    ) -> Mapping[str, Any]:
        """The JSON object that a command printed, empty where it printed none; what went wrong is kept."""
        line = [*self.settings.tool, name, *words, "--json"]
        spent = time.perf_counter() - self.started
        ended = run(line, self.settings.limits, self.folder, self.environment(), self.stop, spent)
        self.peak_bytes = max(self.peak_bytes, ended.peak_rss_bytes)
        answer = talk.answer(ended.stdout)
        if name == "build":
            self.build = self.build or ended
            self.take_progress(ended, dialects)
        if ended.stopped or ended.code:
            self.take_failure(where or name, ended, answer, dialects)
        return answer

    def take_progress(self, ended: Ended, dialects: tuple[str, ...]) -> None:
        """What came through before the build ended, from its own progress."""
        for stage, part, dialect in talk.finished(ended.stderr):
            if stage == "split":
                self.found.split = True
            if stage == "load":  # what the split found, where `init` only proposed
                self.loaded[part] = None
                self.found.components = list(self.loaded)
            if stage == "export":
                self.found.exported |= {(one, part) for one in dialects if dialect in ("", one)}

    def take_failure(self, where: str, ended: Ended, answer: Mapping[str, Any], dialects: tuple[str, ...]) -> None:
        """Keep the sentence, and by which dialect the build's parity gate refused what."""
        error = answer.get("error", {})
        if ended.stopped:
            at = talk.unfinished(ended.stderr)
            sentence = f"{ended.stopped}, stopped{f' in {at}' if at else ''}"
            self.stopped = True
        else:
            sentence = str(error.get("message") or talk.last_line(ended.stderr, ended.code))
        cleaned = talk.without_paths(sentence, self.checkpoint, self.folder)
        self.found.problems.append(Problem(where, cleaned))
        if where == "build" and error.get("class") == GATE and len(dialects) == 1:
            self.found.refused[dialects[0]] = cleaned

    def read_deployment(self, folder: Path) -> None:
        """Modules, graphs and proven cuts of a deployment, and what its build took."""
        manifest = json.loads((folder / "deployment.json").read_text(encoding="utf-8"))
        modules = {module["id"]: module for module in manifest["modules"]}
        components = manifest["models"][0]["components"]
        self.found.split = True
        self.found.components = list(components)
        for component, module in components.items():
            self.found.exported |= {(graph["dialect"], component) for graph in modules[module]["graphs"]}
        proven = [point["after"] for point in manifest["partition_points"] if point["proof"]["verdict"] == "PASS"]
        self.found.points += [name for name in proven if name not in self.found.points]
        stages = json.loads((folder / "evidence" / "build.json").read_text(encoding="utf-8"))["stages"]
        self.build_peak_bytes = max((stage["peak_rss_bytes"] for stage in stages), default=0)

    def references(self) -> list[Path]:
        """The recorded outputs beside the checkpoint: reference.npz first."""
        return sorted(self.checkpoint.glob("reference*.npz"))

    def environment(self) -> dict[str, str]:
        """Without a network, and with as many threads as this family's share of the machine."""
        threads = dict.fromkeys(THREAD_VARIABLES, str(self.settings.threads))
        return {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def row(self) -> Family:
        """The row, with what it took."""
        row = judge(self.checkpoint.name, self.found)
        row.build_peak_rss_bytes = self.build_peak_bytes
        if self.build is not None:
            row.build_s, row.build_cpu_s = self.build.seconds, self.build.cpu_seconds
        row.seconds, row.watched_peak_rss_bytes = time.perf_counter() - self.started, self.peak_bytes
        row.stopped, row.limits = self.stopped, limits_as_json(self.settings.limits)
        return row


def for_dialects(recipe: str, dialects: tuple[str, ...], threads: int) -> str:
    """A proposed recipe with one CPU target a dialect in place of its targets, and so many threads."""
    kept, inside = [], False
    for line in recipe.splitlines():
        if line.startswith("["):
            inside = line.startswith("[targets.")
        if not inside:
            kept.append(f"threads = {threads}" if line.startswith("threads = ") else line)
    targets = [
        f'[targets.{dialect}]\ndevice = "local-cpu"\nprecision = "fp32"\ndialect = "{dialect}"\n'
        for dialect in dialects
    ]
    text = "\n".join([*kept, "", *targets])
    tomllib.loads(text)  # an edit that broke it must not be taken for a fault of the product
    return text


def holds_tokens(reference: Path) -> bool:
    """Whether a reference recorded a generated answer."""
    try:
        with zipfile.ZipFile(reference) as archive:
            return "generate.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
