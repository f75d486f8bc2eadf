"""`init`, `plan` and `build`: from a checkpoint to a recipe, and from a recipe to a deployment."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import (
    DEPLOYMENTS,
    STORE,
    Frozen,
    Jobs,
    Json,
    Modules,
    Out,
    Quiet,
    Receipts,
    RecipeFile,
    StoreFolder,
    Targets,
    TrustedKeys,
)
from msao_compile.cli.talk import talk_of
from msao_compile.errors import CheckpointError, InputError, StageError, UnsupportedFamily

if TYPE_CHECKING:
    from msao_compile.manifest.schema import Deployment
    from msao_compile.pipeline import Built, Step

MODULE_HEADERS = ("component", "parameters", "size", "found by")
logger = logging.getLogger(__name__)
PLAN_HEADERS = ("", "stage", "subject", "time", "peak memory", "disk", "why")


def init(
    context: typer.Context,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face checkpoint folder.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The recipe to write.")] = Path(
        "recipe.toml"
    ),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look into a checkpoint and propose a recipe: its family, its modules, their sizes, sensible targets."""
    from msao_compile.families.side_files import lacks

    talk = talk_of(context, as_json, quiet)
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: holds no config.json; give the folder that `save_pretrained` wrote")
    if output.exists():
        raise InputError(f"{output}: exists already and may hold your edits; choose another name with -o, or remove it")
    found = _proposed(checkpoint, output)
    if lack := lacks(checkpoint):
        logger.warning("%s", lack)
    facts = {name: found[name] for name in ("family", "architecture", "modules", "unsupported")}
    rows = [
        (one["component"], units.count(one["params"]), units.size(one["bytes"]), one["found_by"])
        for one in found["modules"]
    ]
    if "refused" in found:  # the recipe that would do is the user's to write
        lines = {"recipe_toml": found["recipe_toml"]}
        talk.reply(facts | lines, lambda: draw.table(MODULE_HEADERS, rows, frozenset({1, 2})))
        talk.say(f"a recipe that would make it work:\n\n{found['recipe_toml']}")
        raise UnsupportedFamily(found["refused"])
    _write(output, found["recipe_toml"])
    facts["recipe"] = str(output)
    for sentence in found["unsupported"]:
        logger.warning("%s", sentence)
    talk.reply(facts, lambda: draw.table(MODULE_HEADERS, rows, frozenset({1, 2})))
    talk.say(
        f"family {found['family']}; wrote {output}: read it, then run `msao-compile plan {shlex.quote(str(output))}`"
    )


def plan(
    context: typer.Context,
    recipe: RecipeFile,
    target: Targets = None,
    module: Modules = None,
    out: Out = DEPLOYMENTS,
    store: StoreFolder = STORE,
    frozen: Frozen = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a build would run, reuse or leave to the device, and why; of a checkpoint whose weights are still to
    come, which modules it has, what they need and which targets can hold them. Writes nothing but the lock of hub
    checkpoints."""
    from msao_compile import pipeline
    from msao_compile.cli import outlook, sketch

    talk = talk_of(context, as_json, quiet)
    options = pipeline.Options(out, store, targets=tuple(target or ()), modules=tuple(module or ()), frozen=frozen)
    found = pipeline.plan(recipe, options)
    if isinstance(found, pipeline.Sketch):
        drawn = found
        talk.reply(sketch.facts(recipe, drawn), lambda: sketch.show(drawn))
        talk.say(sketch.summary(drawn))
        return
    steps, expected = found.steps, outlook.facts(found)
    facts = {"recipe": str(recipe), "steps": [asdict(step) for step in steps], "totals": totals(steps), **expected}
    whole = found

    def show() -> None:
        draw.table(PLAN_HEADERS, [_plan_row(step) for step in steps], frozenset({3, 4, 5}))
        outlook.show(whole)

    talk.reply(facts, show)
    talk.say(forecast(steps))
    for sentence in outlook.objections(whole):
        talk.say(sentence)


def build(
    context: typer.Context,
    recipe: RecipeFile,
    target: Targets = None,
    module: Modules = None,
    jobs: Jobs = 1,
    out: Out = DEPLOYMENTS,
    store: StoreFolder = STORE,
    frozen: Frozen = False,
    accept_receipt: Receipts = None,
    trusted_keys: TrustedKeys = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run every stage that is not in the store already, and write the deployment folder; its path is the result."""
    from msao_compile import pipeline
    from msao_compile.cli.progress import progress

    talk = talk_of(context, as_json, quiet)
    options = pipeline.Options(
        out, store, jobs, tuple(target or ()), tuple(module or ()), frozen, tuple(accept_receipt or ()), trusted_keys
    )
    with progress(talk) as tell:
        built = pipeline.build(recipe, options, tell)
    page = _page(built)
    talk.reply({**built_facts(built), "report": str(page)}, lambda: draw.line(str(built.folder)))
    talk.say(built_summary(built))


def totals(steps: tuple[Step, ...]) -> dict[str, Any]:
    """Sums over the steps that would run; a sum is a lower bound where `unknown` steps never ran before."""
    running = [step for step in steps if step.state == "run"]
    states = Counter(step.state for step in steps)
    return {
        **{state: states[state] for state in ("run", "reuse", "deferred")},
        "seconds": sum(step.seconds or 0.0 for step in running),
        "disk_bytes": sum(step.disk_bytes or 0 for step in running),
        "peak_rss_bytes": max((step.peak_rss_bytes or 0 for step in running), default=0),
        "unknown": sum(1 for step in running if step.seconds is None),
    }


def forecast(steps: tuple[Step, ...]) -> str:
    """The totals as one sentence."""
    found = totals(steps)
    parts = [f"{found['run']} to run", f"{found['reuse']} reused"]
    if found["deferred"]:
        parts.append(f"{found['deferred']} left to the device")
    if not found["run"]:
        return f"{', '.join(parts)}: nothing to do here"
    known = []
    if found["seconds"]:
        known.append(f"about {units.seconds(found['seconds'])} of work")
    if found["disk_bytes"]:
        known.append(f"{units.size(found['disk_bytes'])} on disk")
    if found["peak_rss_bytes"]:
        known.append(f"{units.size(found['peak_rss_bytes'])} of memory at the peak")
    if found["unknown"]:
        known.append(f"{units.plural(found['unknown'], 'step')} of unknown time, never run here before")
    return f"{', '.join(parts)}: {', '.join(known)}" if known else ", ".join(parts)


def built_facts(built: Built) -> dict[str, Any]:
    """What a program wants to know of a build."""
    deployment = built.deployment
    return {
        "deployment": str(built.folder),
        "name": deployment.name,
        "ran": built.ran,
        "reused": built.reused,
        "seconds": built.seconds,
        "weights": _weights(built),
        "engines": [
            {
                "component": deployment.module(engine.module).component,
                **engine.model_dump(include={"module", "target", "backend", "precision", "status", "reason"}),
            }
            for engine in deployment.engines
        ],
    }


def built_summary(built: Built) -> str:
    """One line over a build."""
    waiting = sum(1 for engine in built.deployment.engines if engine.status == "deferred")
    parts = [f"{units.plural(built.ran, 'stage')} ran", f"{built.reused} reused"]
    if waiting:
        parts.append(f"{units.plural(waiting, 'engine')} left to the device")
    if unproven := sum(1 for engine in built.deployment.engines if engine.status == "ran"):
        parts.append(f"{units.plural(unproven, 'engine')} that nothing will use: see the parity rows that are not PASS")
    parts += _by_receipt(built.deployment)
    weights = _weights(built)
    parts.append(f"{units.size(weights['written_bytes'])} of weights in new files")
    if weights["in_place_bytes"]:
        parts[-1] += f" and {units.size(weights['in_place_bytes'])} in the checkpoint's own"
    if built.copied_bytes:
        parts[-1] += f" ({units.size(built.copied_bytes)} of them copied: --out or --store is on another file system)"
    return f"{', '.join(parts)}, {units.seconds(built.seconds)}"


def _by_receipt(deployment: Deployment) -> list[str]:
    """Of each target with a receipt: how many engines it proved, and how far."""
    from msao_compile.runtime.ladder import LADDER

    found = []
    for target in dict.fromkeys(engine.target for engine in deployment.engines):
        if f"receipt-{target}" in deployment.evidence:
            reached: Counter[str] = Counter(
                engine.status
                for engine in deployment.engines
                if engine.target == target and engine.backend != "ort" and engine.file is not None
            )
            far = " and ".join(
                f"{units.plural(reached[status], 'engine')} by receipt {status}" for status in LADDER if reached[status]
            )
            found.append(f"{target}: {far or 'no engine by receipt'}")
    return found


def _weights(built: Built) -> dict[str, int]:
    """Bytes of weights in files that were written for modules, in checkpoint files that graphs point into, and how many
    of these had to be copied.
    """
    from msao_compile.stages.compose import DATA

    held = {file for module in built.deployment.modules for graph in module.graphs for file in graph.data}
    sizes = {True: 0, False: 0}
    for file in held:
        sizes[file.path.endswith(DATA)] += file.size_bytes
    return {"written_bytes": sizes[True], "in_place_bytes": sizes[False], "copied_bytes": built.copied_bytes}


def _proposed(checkpoint: Path, output: Path) -> dict[str, Any]:
    from msao_compile.farm.job import Job
    from msao_compile.farm.local import run

    arguments = {"checkpoint": str(checkpoint), "recipe": str(output)}
    job = Job(function="msao_compile.stages.propose:run", arguments=arguments, phase=f"the look into {checkpoint}")
    found = run(job).value
    if not isinstance(found, dict):
        raise StageError(f"proposing a recipe for {checkpoint} gave no answer; run again with --debug")
    return found


def _page(built: Built) -> Path:
    from msao_compile.manifest.schema import MANIFEST_NAME

    page, manifest = built.folder / "report.html", built.folder / MANIFEST_NAME
    if not page.is_file() or page.stat().st_mtime_ns < manifest.stat().st_mtime_ns:
        from msao_compile.cli.report import write_report

        write_report(built.folder, page)
    return page


def _plan_row(step: Step) -> tuple[str, ...]:
    return (
        step.state,
        step.stage,
        step.subject,
        "" if step.seconds is None else units.seconds(step.seconds),
        "" if step.peak_rss_bytes is None else units.size(step.peak_rss_bytes),
        "" if step.disk_bytes is None else units.size(step.disk_bytes),
        "; ".join(step.reasons),
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_bytes(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path}: not written, because the checkpoint's path is not UTF-8; rename that folder"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another name with -o") from error
