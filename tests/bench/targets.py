"""`python -m tests.bench.targets`: engines of every module for every target of a recipe, built for real, as one table.

Nothing here runs an engine: builds are ahead of time, and parity is that of the graph that an engine was built of.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msao_compile.manifest.evidence import BuildEvidence, ParityEvidence, ParityRow, StageRun
from msao_compile.manifest.schema import Deployment, Engine, Model
from msao_compile.manifest.variants import kinds_of
from msao_compile.recipe.targets import catalogue, find
from msao_compile.runtime.loader import read_manifest
from tests.bench.children import REPOSITORY, finish, module
from tests.bench.machine import commit, machine
from tests.bench.monitor import Cost, costs
from tests.bench.report import QUIET_LOAD, table

SHAPES = REPOSITORY / "recipes" / "shapes-gpus.toml"
TOOLS = ("tensorrt_rtx", "onnxruntime", "torch", "transformers", "onnx-ir", "numpy")
NOTHING = "–"
HEADERS = (
    "module", "target", "SM", "precision", "dialect", "status", "weights, MB", "engine, MB", "build, s", "peak, MB",
    "compared", "min cosine", "argmax agrees", "verdict",
)  # fmt: skip
WHOLE = ("model", "dialect", "precision", "min cosine", "argmax agrees", "compared", "verdict")
STANDARD = """\
recipe = 1
name = "standard-gpus"
[models.standard]
checkpoint = "{checkpoint}"
role = "draft"
[tasks.vqa]
models = ["standard"]
[targets.t4]
device = "nvidia-t4"
dialect = "portable"
precision = "fp16"
[targets.l4]
device = "nvidia-l4"
dialect = "scatter"
precision = "fp16"
[shapes.decoder]
batch = [1, 1, 8]
sequence = [1, 64, 256]
kv_capacity = 512
[shapes.vision_encoder]
images = [1, 1, 8]
[parity]
fp16 = {{ min_cosine = 0.999 }}
[runtime]
threads = 2
"""
INTRODUCTION = """\
**No engine in this table was run on a GPU.** They were built by TensorRT-RTX ahead of time on a machine that has none.
Cosine, agreement of the argmax and verdict are those of the ONNX graph that the engine was built of, run by ONNX
Runtime on a CPU and compared with the torch original: they say nothing of the kernels that a GPU will choose. They are
of the module alone, or of the whole model where it was compared within it only. Where they are missing, ONNX Runtime's
CPU kernels do not compute in that type, and nothing vouches for the graph either.

Status is how far the engine itself was proven: `deferred` (left to the device) → `built` → `ran` → `parity` →
`qualified`. Engines of `ort` are the graph, opened and compared on this CPU. Build seconds and peak memory are of the
process that built the engine, its start included; weights are the graph's, in its precision."""


@dataclass(frozen=True)
class Row:
    """One module for one target; figures are None where there is none."""

    module: str
    target: str
    sms: tuple[int, ...]
    precision: str
    dialect: str
    backend: str
    status: str
    weight_bytes: int
    engine_bytes: int | None
    build_s: float | None
    peak_rss_bytes: int | None
    compared: str | None
    """`module`, or `whole` where only the models that have it were, in the precisions of the target."""
    min_cosine: float | None
    argmax_agreement: float | None
    verdict: str | None
    reason: str | None


def main() -> int:
    """Build, print, write; 0 where every engine that is built ahead of time was."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.targets", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--standard", type=Path, metavar="FOLDER", help="also the standard model, there")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench/targets"), help="emptied before")
    parser.add_argument("--keep", action="store_true", help="do not empty it: what its store has is not built again")
    chosen = parser.parse_args()
    where, made_at = machine(), commit()
    if not chosen.keep:
        shutil.rmtree(chosen.folder, ignore_errors=True)
    folders = [built(SHAPES, chosen.folder, "shapes-gpus")]
    if chosen.standard is not None:
        folders.append(built(standard(chosen.standard, chosen.folder), chosen.folder, "standard-gpus"))
    sheets = [sheet(folder) for folder in folders]
    counted = costs(folders[0], "l4", "decoder")
    command = shlex.join(["python", "-m", "tests.bench.targets", *sys.argv[1:]])
    about = {"command": command, "commit": made_at, "machine": where, "versions": versions()}
    text = markdown(
        about, [row for rows, _ in sheets for row in rows], [one for _, whole in sheets for one in whole], counted
    )
    told = {**about, "engines": [asdict(row) for rows, _ in sheets for row in rows],
            "whole": [one.model_dump(mode="json") for _, whole in sheets for one in whole],
            "monitor": [asdict(one) for one in counted]}  # fmt: skip
    sys.stdout.write(text)
    for file, content in ((chosen.json, json.dumps(told, indent=1) + "\n"), (chosen.markdown, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    ahead = [row for rows, _ in sheets for row in rows if row.backend == "trt_rtx"]
    return 0 if ahead and all(row.status != "deferred" for row in ahead) else 1


def built(recipe: Path, folder: Path, name: str) -> Path:
    """Build a recipe, one stage at a time, and give the deployment's folder."""
    sys.stderr.write(f"targets: {name}\n")
    places = ["--out", str(folder / "out"), "--store", str(folder / "store"), "--quiet"]
    finish(module("msao_compile", "build", str(recipe), *places))
    return folder / "out" / name


def standard(model: Path, folder: Path) -> Path:
    """A recipe for the standard model, which is made where it is not there."""
    if not (model / "checkpoint" / "config.json").is_file():
        finish(module("tests.bench.standard", str(model)))
    recipe = folder / "standard-gpus.toml"
    recipe.write_text(STANDARD.format(checkpoint=(model / "checkpoint").resolve()))
    return recipe


def versions() -> dict[str, str]:
    """Of the libraries that decide the table."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def sheet(folder: Path) -> tuple[list[Row], list[ParityRow]]:
    """The rows of a deployment, and what its whole models gave."""
    deployment = read_manifest(folder)
    build = BuildEvidence.model_validate_json((folder / "evidence/build.json").read_text())
    parity = ParityEvidence.model_validate_json((folder / "evidence/parity.json").read_text())
    return list(rows(deployment, build.stages, parity.rows)), [row for row in parity.rows if row.subject == "whole"]


def rows(deployment: Deployment, stages: Sequence[StageRun], parity: Sequence[ParityRow]) -> Iterator[Row]:
    """A row for every engine; one file that serves two targets was built once, and both say so."""
    runs = {run.subject: run for run in stages if run.stage in ("engine", "build")}
    homes = {identity: model.name for model in reversed(deployment.models) for identity in model.components.values()}
    shared: dict[str, StageRun] = {}
    for engine in deployment.engines:
        subject = _subject(engine, homes[engine.module], deployment.module(engine.module).component)
        if engine.file is not None and subject in runs:
            shared[engine.file.sha256] = runs[subject]
    for engine in deployment.engines:
        one, home = deployment.module(engine.module), homes[engine.module]
        graph = next(g for g in one.graphs if (g.dialect, g.precision) == (engine.dialect, engine.precision))
        run = runs.get(_subject(engine, home, one.component))
        run = run or (None if engine.file is None else shared.get(engine.file.sha256))
        proof, worst = _proof(deployment, engine, parity)
        device = find(engine.compatibility.target_id)
        own = () if device.sm is None else (device.sm,)
        sms = own if engine.order is None else engine.order.compute_capabilities or own
        yield Row(
            module=f"{home}/{one.component}", target=engine.target, sms=sms, precision=engine.precision,
            dialect=engine.dialect, backend=engine.backend, status=engine.status,
            weight_bytes=min(sum(file.size_bytes for file in graph.data), one.weight_bytes),
            engine_bytes=None if engine.file is None else engine.file.size_bytes,
            build_s=None if run is None else run.seconds, peak_rss_bytes=None if run is None else run.peak_rss_bytes,
            compared=proof, min_cosine=None if worst is None else worst.min_cosine,
            argmax_agreement=None if worst is None else worst.argmax_agreement,
            verdict=None if worst is None else worst.verdict, reason=engine.reason,
        )  # fmt: skip


def _proof(deployment: Deployment, engine: Engine, parity: Sequence[ParityRow]) -> tuple[str | None, ParityRow | None]:
    """The comparison with the lowest cosine of a module, else of whole models that have it; and which of the two."""
    component = deployment.module(engine.module).component
    having = {model.name: model for model in deployment.models if engine.module in model.components.values()}
    of_target = [other for other in deployment.engines if other.target == engine.target]
    whole = {name: kinds_of(_of_model(of_target, model), model).of("") for name, model in having.items()}
    about = [row for row in parity if row.model in having and row.dialect == engine.dialect]
    alone = [row for row in about if (row.subject, row.precision) == (component, engine.precision)]
    together = [row for row in about if row.subject == "whole" and row.precision == whole[row.model]]
    worst = min(alone or together, key=lambda row: row.min_cosine, default=None)
    return None if worst is None else "module" if alone else "whole", worst


def _of_model(engines: Sequence[Engine], model: Model) -> list[Engine]:
    return [engine for engine in engines if engine.module in model.components.values()]


def _subject(engine: Engine, home: str, component: str) -> str:
    """What the stage that made an engine is called."""
    if engine.backend != "ort":
        return f"{home}/{component} for {engine.target}"
    kind = engine.dialect if engine.precision == "fp32" else f"{engine.dialect} {engine.precision}"
    return f"{home}/{component} ({kind})"


def markdown(
    about: Mapping[str, Any], found: Sequence[Row], whole: Sequence[ParityRow], counted: Sequence[Cost] = ()
) -> str:
    """All tables, with what they rest on."""
    where = about["machine"]
    busy = float(where["load_average"]) > QUIET_LOAD
    note = "**The machine was busy before this run: its seconds are not to be quoted.**\n\n" if busy else ""
    told = [
        (row.model, row.dialect, row.precision, f"{row.min_cosine:.6f}", f"{row.argmax_agreement:.4f}",
         str(row.compared), row.verdict)
        for row in whole
    ]  # fmt: skip
    facts = [*where.items(), *about["versions"].items()]
    parts = [
        "# Targets\n",
        f"{note}Made by `{about['command']}` at commit {about['commit']}.\n\n{INTRODUCTION}\n",
        "## Every module for every target\n",
        table(HEADERS, [_cells(row) for row in found]),
        "## Whole models, teacher-forced, through ONNX Runtime\n",
        "Graphs of every module together, in the precisions of a target, against the torch original.\n",
        table(WHOLE, told),
        "## What counting progress costs\n",
        "The decoder of the larger shapes model for l4, built in turn in one process, told at most 4 times a second.\n"
        "Plans of one graph have the same size and not the same bytes, with a monitor or without.\n",
        table(("", "median, s", "min", "max", "plan, bytes"), [_counted(one) for one in counted]),
        "## What this machine only defers\n",
        deferred(),
        "## Machine and versions\n",
        table(("", ""), [(name.replace("_", " "), value) for name, value in facts]),
    ]
    return "\n".join(parts)


def _counted(cost: Cost) -> tuple[str, ...]:
    seconds = (f"{value:.2f}" for value in (cost.median_s, cost.min_s, cost.max_s))
    return cost.way, *seconds, ", ".join(map(str, cost.plan_bytes))


def deferred() -> str:
    """The targets whose engines only they themselves can build."""
    names = ", ".join(one.target_id for one in catalogue() if one.engine_build == "on-device tensorrt")
    return (
        f"Engines for {names} are built by TensorRT on the device itself, from what `msao-compile kit` packs. None of "
        "these was at hand: nothing was built, run or measured for them.\n"
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.module, row.target, ", ".join(map(str, row.sms)) or NOTHING, row.precision, row.dialect,
        row.status, _mb(row.weight_bytes), _mb(row.engine_bytes), _or(row.build_s, ".1f"), _mb(row.peak_rss_bytes),
        row.compared or NOTHING, _or(row.min_cosine, ".6f"), _or(row.argmax_agreement, ".4f"), row.verdict or "none",
    )  # fmt: skip


def _mb(size_bytes: int | None) -> str:
    return NOTHING if size_bytes is None else f"{size_bytes / 1e6:.2f}"


def _or(value: float | None, digits: str) -> str:
    return NOTHING if value is None else format(value, digits)


if __name__ == "__main__":
    sys.exit(main())
