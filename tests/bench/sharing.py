"""`python -m tests.bench.sharing`: memory of 14 public models over 5 tasks with and without sharing, by config.

A use is one model answering one task; a deployment is any set of uses. Unshared, each use has its own copy of all its
weights; shared, each distinct tensor is there once. Weights only: no KV cache, no activations.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.recipe.read import read_recipe
from msao_compile.recipe.schema import Recipe, TargetChoice
from tests.bench.children import REPOSITORY
from tests.bench.machine import commit
from tests.bench.shares import Facts, Model, Share, identities, read_facts, tensors
from tests.bench.sharing_page import markdown

RECIPE = REPOSITORY / "recipes" / "s2m3-14.toml"
FACTS = REPOSITORY / "recipes" / "s2m3" / "shares.toml"
COLUMNS = ("modules", "frozen", "premise")
"""Whole modules as they are cut today, with equal graphs; frozen towers too; every encoder of a family too."""
BARS = {"single-task": 0.50, "multi-task": 0.62}
HEADS = (1, 2, 3, 5, 10)
ENCODERS = ("vision_encoder", "audio_encoder", "video_encoder", "text_encoder", "encoder")


@dataclass(frozen=True)
class Use:
    """One model that answers one task."""

    task: str
    model: str


@dataclass(frozen=True)
class Atom:
    """Weights that go together: in exactly these uses, by their places in the list."""

    uses: frozenset[int]
    size_bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one deployment."""

    unshared: int
    shared: int

    @property
    def saved(self) -> float:
        """Of the unshared bytes."""
        return 1 - self.shared / self.unshared


@dataclass(frozen=True)
class Best:
    """The deployment of a kind that sharing helps most, and how many there are."""

    uses: tuple[Use, ...]
    memory: Memory
    of: int
    median_saved: float


def uses_of(recipe: Recipe) -> list[Use]:
    """A task of the recipe is called TASK.MODEL, because it has one target model."""
    return [Use(name.partition(".")[0], model) for name, task in recipe.tasks.items() for model in task.models]


def atoms(
    uses: Sequence[Use], models: Mapping[str, Model], same: Mapping[Any, Any], target: TargetChoice
) -> list[Atom]:
    """Distinct weights grouped by the uses that need them; in two precisions they are two."""
    users: dict[Any, set[int]] = {}
    sizes: dict[Any, int] = {}
    for number, use in enumerate(uses):
        for name, tensor in models[use.model].items():
            size = tensor.size_bytes(target)
            key = (same[use.model, name], size)
            users.setdefault(key, set()).add(number)
            sizes[key] = size
    grouped: dict[frozenset[int], int] = {}
    for key, numbers in users.items():
        group = frozenset(numbers)
        grouped[group] = grouped.get(group, 0) + sizes[key]
    return [Atom(group, size) for group, size in grouped.items()]


def whole_modules(models: Mapping[str, Model], same: Mapping[Any, Any]) -> dict[Any, Any]:
    """Only what whole modules share: equal component, and every tensor of one the other's.

    That is necessary for equal graphs, not sufficient, so no build shares more than this.
    """
    modules: dict[tuple[str, str], frozenset[Any]] = {}
    for model, parameters in models.items():
        for component in {tensor.component for tensor in parameters.values()}:
            held = [name for name, tensor in parameters.items() if tensor.component == component]
            modules[model, component] = frozenset(same[model, name] for name in held)
    first: dict[Any, tuple[str, str]] = {}
    homes = {key: first.setdefault((key[1], held), key) for key, held in modules.items()}
    return {
        (model, name): (homes[model, tensor.component], same[model, name])
        for model, parameters in models.items()
        for name, tensor in parameters.items()
    }


def memory(found: Sequence[Atom], chosen: Sequence[int]) -> Memory:
    """Of a deployment of the uses with these numbers."""
    wanted = set(chosen)
    counts = [(len(atom.uses & wanted), atom.size_bytes) for atom in found]
    return Memory(sum(count * size for count, size in counts), sum(size for count, size in counts if count))


def best_subsets(uses: Sequence[Use], found: Sequence[Atom]) -> dict[int, Best]:
    """By the number of tasks: of all deployments the one that saves most, and the median of all."""
    masks = np.arange(1, 1 << len(uses), dtype=np.uint32)
    unshared, shared = np.zeros(len(masks)), np.zeros(len(masks))
    for atom in found:
        counts = np.bitwise_count(masks & np.uint32(sum(1 << number for number in atom.uses)))
        unshared += counts * float(atom.size_bytes)
        shared += (counts > 0) * float(atom.size_bytes)
    saved = 1 - shared / unshared
    names = list(dict.fromkeys(use.task for use in uses))
    tasks = np.zeros(len(masks), dtype=np.uint8)
    for name in names:
        tasks += (masks & np.uint32(sum(1 << number for number, use in enumerate(uses) if use.task == name))) > 0
    several = np.bitwise_count(masks) > 1
    answer = {}
    for count in range(1, len(names) + 1):
        rows = np.flatnonzero((tasks == count) & several)
        top = int(masks[rows[np.argmax(saved[rows])]])
        chosen = [number for number in range(len(uses)) if top >> number & 1]
        named = tuple(uses[number] for number in chosen)
        answer[count] = Best(named, memory(found, chosen), len(rows), float(np.median(saved[rows])))
    return answer


def one_model_each(uses: Sequence[Use], found: Sequence[Atom]) -> Best:
    """Of the deployments in which every task has one model the one that saves most, and the median of all."""
    names = list(dict.fromkeys(use.task for use in uses))
    choices = [[number for number, use in enumerate(uses) if use.task == name] for name in names]
    told = [(memory(found, chosen), chosen) for chosen in itertools.product(*choices)]
    most, chosen = max(told, key=lambda one: one[0].saved)
    median = statistics.median(one.saved for one, _ in told)
    return Best(tuple(uses[number] for number in chosen), most, len(told), median)


def models_once(found: Sequence[Atom], uses: Sequence[Use]) -> Memory:
    """As `memory` of all uses, against one copy of each model whatever tasks it has: what sharing adds to that."""
    first = {use.model: number for number, use in reversed(list(enumerate(uses)))}
    return memory(found, list(first.values()))


def split(models: Mapping[str, Model], target: TargetChoice) -> dict[str, Memory]:
    """By model: whole on one host, against the fuller of two hosts (one encoder on one, the rest on the other)."""
    answer = {}
    for name, parameters in models.items():
        sizes: dict[str, int] = {}
        for tensor in parameters.values():
            sizes[tensor.component] = sizes.get(tensor.component, 0) + tensor.size_bytes(target)
        whole = sum(sizes.values())
        fuller = min(max(sizes[one], whole - sizes[one]) for one in sizes if one in ENCODERS)
        answer[name] = Memory(whole, fuller)
    return answer


def more_heads(
    models: Mapping[str, Model], shares: Sequence[Share], target: TargetChoice
) -> dict[int, tuple[Memory, Memory]]:
    """So many linear classifiers of the size of the one here, each with a tower of its own or all on one.

    The second figures are of a deployment that also has the model whose tower it is, for zero-shot classification.
    """
    [share] = [one for one in shares if one.model.endswith("-linear")]
    sizes = {name: tensor.size_bytes(target) for name, tensor in models[share.model].items()}
    tower = sum(size for name, size in sizes.items() if name.startswith(f"{share.part}."))
    head = sum(sizes.values()) - tower
    whole = sum(tensor.size_bytes(target) for tensor in models[share.origin].values())
    return {
        count: (
            Memory(count * (tower + head), tower + count * head),
            Memory(whole + count * (tower + head), whole + count * head),
        )
        for count in HEADS
    }


def column(name: str, models: Mapping[str, Model], shares: Sequence[Share]) -> dict[Any, Any]:
    """Which tensors are the same, as one column of the tables has it."""
    same = identities(models, [one for one in shares if one.kind == "frozen" or name == "premise"])
    return whole_modules(models, same) if name == "modules" else dict(same)


def found_for(recipe: Recipe, target: TargetChoice, models: Mapping[str, Model], facts: Facts) -> dict[str, Any]:
    """All figures for one target of the recipe."""
    uses = uses_of(recipe)
    names = list(dict.fromkeys(use.task for use in uses))
    answer: dict[str, Any] = {"split": split(models, target), "heads": more_heads(models, facts.share, target)}
    for name in COLUMNS:
        held = atoms(uses, models, column(name, models, facts.share), target)
        inside = {task: [number for number, use in enumerate(uses) if use.task == task] for task in names}
        answer[name] = {
            "tasks": {task: memory(held, numbers) for task, numbers in inside.items()},
            "all": memory(held, range(len(uses))),
            "models_once": models_once(held, uses),
            "best": best_subsets(uses, held),
            "one_model_each": one_model_each(uses, held),
        }
    return answer


def bars(found: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    """What is held against a bar, column, what the bar asks, and what was found."""
    rows = []
    for name in COLUMNS:
        best: Mapping[int, Best] = found[name]["best"]
        several = max(one.memory.saved for count, one in best.items() if count > 1)
        for kind, saved in (
            ("single-task, best deployment", best[1].memory.saved),
            ("multi-task, best deployment", several),
            ("multi-task, best deployment of all five tasks", best[max(best)].memory.saved),
            ("multi-task, all 14 models in all 20 uses", found[name]["all"].saved),
        ):
            rows.append((kind, name, BARS[kind.partition(",")[0]], saved))
    halved = max(one.saved for one in found["split"].values())
    rows.append(("single-task, best model, the fuller host", "split", BARS["single-task"], halved))
    return rows


def main() -> int:
    """Open the models, count, print, write; 0 whether or not a bar is met: the page says so."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sharing", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    chosen = parser.parse_args()
    made_at = commit()
    recipe, facts = read_recipe(RECIPE), read_facts(FACTS)
    models = {name: tensors(Path(choice.checkpoint)) for name, choice in recipe.models.items()}
    by_target = {name: found_for(recipe, target, models, facts) for name, target in recipe.targets.items()}
    about = {"command": shlex.join(["python", "-m", "tests.bench.sharing", *sys.argv[1:]]), "commit": made_at}
    told = {name: {"bars": bars(found), **found} for name, found in by_target.items()}
    text = markdown(about, recipe, models, facts, told)
    print(text)
    written = {**about, "facts": facts.model_dump(mode="json"), "models": _sizes(models), "targets": _plain(told)}
    for file, content in ((chosen.json, json.dumps(written, indent=1) + "\n"), (chosen.markdown, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    return 0


def _sizes(models: Mapping[str, Model]) -> dict[str, dict[str, int]]:
    answer: dict[str, dict[str, int]] = {}
    for model, parameters in models.items():
        sizes = answer.setdefault(model, {})
        for tensor in parameters.values():
            sizes[tensor.component] = sizes.get(tensor.component, 0) + tensor.params
    return answer


def _plain(value: Any) -> Any:
    if isinstance(value, Memory):
        return {**asdict(value), "saved": round(value.saved, 4)}
    if isinstance(value, Best):
        median = round(value.median_saved, 4)
        uses = [f"{use.task}.{use.model}" for use in value.uses]
        return {"uses": uses, **_plain(value.memory), "of": value.of, "median_saved": median}
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
