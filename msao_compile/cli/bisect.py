"""`parity --bisect`: which blocks of a module lose what, the island that helps, and the build that tries it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msao_compile.cli import draw, make, units
from msao_compile.cli.progress import progress
from msao_compile.cli.talk import Talk
from msao_compile.errors import InputError
from msao_compile.manifest.bisection import BEFORE

if TYPE_CHECKING:
    from msao_compile.manifest.bisection import Bisected, BlockError, Findings
    from msao_compile.pipeline import Built, Event, Options

NOT_IN_ONE = "what comes before the first block"
HEADERS = ("block", "min cosine", "max abs", "own", "effect")


@dataclass(frozen=True)
class Wanted:
    """What to look at, in a deployment or in what a recipe asks for; None means all."""

    place: Path
    target: str | None = None
    model: str | None = None
    component: str | None = None
    apply: Path | None = None
    """The recipe to write the island into."""


def bisected(talk: Talk, wanted: Wanted, options: Options) -> None:
    """Show what was found; with `apply`, write the islands into the recipe and build it again.

    Raises:
        InputError: there is no such target, model or component, or the recipe to change is another one.
        GateError: the build with the islands fails too.
    """
    found = findings(talk, wanted, options)
    facts: dict[str, Any] = {
        "subject": str(wanted.place), **found.model_dump(mode="json"), "islands": found.islands,
    }  # fmt: skip
    talk.reply(facts, lambda: show(found))
    for entry in found.modules:
        talk.say(sentence(entry))
    for name, reason in found.left_out.items():
        talk.say(f"not looked into: {name}: {reason}")
    if not found.modules and not found.left_out:
        talk.say("no module is in less than fp32: there is nothing to look into")
    if not found.islands:
        if wanted.apply is not None:
            talk.say(f"no island is proposed: {wanted.apply} stays as it is and nothing is built")
        return
    if wanted.apply is None:
        places = ["--store", str(options.store), "--out", str(options.out)]
        recipe = str(wanted.place) if wanted.place.is_file() else "RECIPE"
        again = shlex.join(["msao-compile", "parity", str(wanted.place), "--bisect", *places, "--apply", recipe])
        talk.say(f"to write that into the recipe and build it again: `{again}`")
        return
    _apply(talk, wanted.apply, found, facts, options)


def findings(talk: Talk, wanted: Wanted, options: Options) -> Findings:
    """What the stage found in a process of its own."""
    from msao_compile.farm.job import Job
    from msao_compile.farm.local import run
    from msao_compile.manifest.bisection import Findings

    with _graphs(talk, wanted.place, options) as (folder, requests):
        arguments: dict[str, Any] = {
            "folder": str(folder), "target": wanted.target, "model": wanted.model, "component": wanted.component,
            "requests": {name: str(file) for name, file in requests.items()},
        }  # fmt: skip
        job = Job(function="msao_compile.stages.bisect:run", arguments=arguments, phase=f"bisection of {folder}")
        told = run(job, lambda at: talk.say(f"bisecting {at['model']} ({at['dialect']})")).value
        return Findings.model_validate(told)


@contextmanager
def _graphs(talk: Talk, place: Path, options: Options) -> Iterator[tuple[Path, dict[str, Path]]]:
    """A deployment folder as it is, or the graphs that a recipe asks for with the requests of its parity."""
    from msao_compile import pipeline

    if not place.is_file():
        yield place, {}
        return
    with progress(talk) as tell, pipeline.draft(place, options, tell) as found:
        yield found


def _apply(talk: Talk, recipe: Path, found: Findings, facts: dict[str, Any], options: Options) -> None:
    from msao_compile import pipeline
    from msao_compile.recipe.islands import add_islands
    from msao_compile.recipe.read import read_recipe

    name = read_recipe(recipe).name
    if name != found.name:
        raise InputError(
            f"--apply {recipe}: is the recipe of {name}, not of {found.name}; give the one it was built of"
        )
    is_new = add_islands(recipe, found.islands)
    facts["applied"] = {"recipe": str(recipe), "changed": is_new}
    talk.reply(facts, lambda: None)
    talk.say(f"wrote the islands into {recipe}" if is_new else f"{recipe} has these islands already")
    ran: list[str] = []
    with progress(talk) as tell:

        def note(event: Event) -> None:
            if event.state == "finished":
                ran.append(f"{event.stage} {event.subject}")
            tell(event)

        built = pipeline.build(recipe, options, note)
    talk.reply(facts | {"ran": ran, "build": make.built_facts(built)}, lambda: draw.line(str(built.folder)))
    talk.say(_rebuilt(built, ran))


def _rebuilt(built: Built, ran: list[str]) -> str:
    return f"ran {', '.join(ran) or 'nothing'}; {built.reused} reused, {units.seconds(built.seconds)}"


def show(found: Findings) -> None:
    """A table of each module, then the lines for a recipe."""
    from msao_compile.recipe.islands import line

    for entry in found.modules:
        draw.line(heading(entry))
        rows = [_row(one) for one in (*entry.blocks, *entry.outputs)]
        draw.table(HEADERS, rows, frozenset({1, 2, 3, 4}))
    if found.islands:
        draw.line("[islands]")
        for component, blocks in found.islands.items():
            draw.line(line(component, blocks))


def heading(entry: Bisected) -> str:
    """What a table is about."""
    bound = "no bound" if entry.bound is None else f"bound {entry.bound:g}"
    return (
        f"{entry.model}/{entry.component} ({entry.dialect} {entry.precision}) for {', '.join(entry.targets)}, {bound}"
    )


def sentence(entry: Bisected) -> str:
    """The verdict on one module."""
    first, worst = (NOT_IN_ONE if name == BEFORE else name for name in (entry.first, entry.worst))
    parts = [f"{entry.model}/{entry.component} ({entry.dialect} {entry.precision})"]
    if first is not None:
        parts.append(f"first block below {entry.bound:g}: {first}")
    elif entry.island:
        parts.append(f"no block is below {entry.bound:g} by itself, but what it gives is ({entry.cosine:.4f})")
    if worst is not None:
        parts.append(f"largest error of its own: {worst}")
    if entry.island:
        parts.append(f"keep {', '.join(entry.island)} in fp32")
    return f"{parts[0]}: {'; '.join([*parts[1:], entry.remark])}"


def _row(one: BlockError) -> tuple[str, ...]:
    effect = "" if one.effect is None else f"{one.effect:+.4f}"
    return one.name, f"{one.min_cosine:.6f}", units.deviation(one.max_abs), units.deviation(one.own), effect
