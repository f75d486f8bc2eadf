"""The page about sharing: which 14 models, what they share and by whose word, and the memory with and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msao_compile.recipe.schema import Recipe
from tests.bench.report import table
from tests.bench.shares import Facts, Model

TITLES = {
    "modules": "whole modules, as cut today",
    "frozen": "in truth: frozen towers",
    "premise": "S2M3's premise",
    "split": "one model split over two hosts",
}
FIGURES = ("unshared, GB", "shared, GB", "saved")
INTRODUCTION = """\
Weights only, from each model's `config.json`: nothing was downloaded, built or run. Dimensions are those of public
checkpoints, and what they share is what their publishers say of their training (`recipes/s2m3/shares.toml`); no bytes
were compared, which a build does before it shares anything. Bytes are 10^9.

A **use** is one model that answers one task; a model that answers two tasks has two uses. **Unshared**, every use has
its own copy of all its weights, as where each task is deployed by itself. **Shared**, equal weights are there once:

- *whole modules, as cut today*: what a build can share now, a module whose every tensor is another's. A tower with
  LLaVA's projector behind it is another module than the same tower with CLIP's projection, and a linear classifier
  comes out as one module, tower and head. No two of the 14 have a module in common: what is saved here is saved by
  models that answer two tasks. [sharing-scaled.md](sharing-scaled.md) has the same as built;
- *in truth: frozen towers*: also towers inside modules that were published frozen and are equal tensor by tensor. To
  get this, modules have to be cut between tower and projector;
- *S2M3's premise*: also encoders that were trained further from a common start, as if they had been kept frozen. The
  published checkpoints do **not** have equal bytes there: this column says what sharing would give if they had."""
BEST = """\
Of all deployments (every set of at least two uses) the one that saves the largest part of its memory, by the number of
its tasks, and the median of all of them. "One each": one model for every one of the tasks."""
SPLIT = """\
S2M3 reports up to 50 % for a single task. With one model for one task there is nothing to share, so that figure may be
of splitting: the fuller of two hosts (one encoder here, everything else there) against the whole model on one. Of
CLIP's published sizes RN50x4 halves best, to 91.2 M of 178.3 M parameters (49 % less). Which was meant is not known to
us; both readings are told. The 14 models:"""
HEADS = """\
Two of the 14 in one task cannot save 50 %: for that a third has to use the tower. What more classifiers would save,
which are **not** among the 14 and enter no bar: one frozen CLIP ViT-L/14 at 336 px with a linear classifier for each
of several sets of 1,000 classes (arXiv 2103.00020 trains 27 such classifiers), against a tower for each; by themselves,
and beside the zero-shot classification of the same CLIP."""


def markdown(
    about: Mapping[str, str], recipe: Recipe, models: Mapping[str, Model], facts: Facts, told: Mapping[str, Any]
) -> str:
    """All tables; `told` has the figures by target, the first of them in full."""
    first = next(iter(told))
    parts = [
        "# Sharing: 14 public models over 5 tasks\n",
        f"Made by `{about['command']}` at commit {about['commit']}. Inspired by S2M3 (arXiv 2508.04271), whose list of "
        "models is not published: these are ours.\n",
        INTRODUCTION + "\n",
        "## The bars\n",
        table(("", "column", *(f"{name}: saved" for name in told), "asked", ""), list(_bars(told))),
        "## The models\n",
        table(("model", "dimensions of", "answers", "modules, M parameters", "M", "in the publisher's files"),
              list(_models(recipe, models, facts))),
        "## What is shared, and why\n",
        table(("part", "is", "M", "kind", "why", "source"), list(_shares(models, facts))),
        "What is not, though it may look so:\n",
        table(("models", "why", "source"), [(", ".join(one.models), one.why, one.source) for one in facts.apart]),
    ]  # fmt: skip
    for name, found in told.items():
        parts += [f"## Memory on {name}: {_precisions(recipe, name)}\n", table(*_memory(found))]
        parts += [f"{BEST}\n", table(("tasks", "column", "saved", "unshared, GB", "shared, GB", "of deployments",
                                      "median saved", "uses"), list(_best(found)))]  # fmt: skip
    parts += [f"## One model split over two hosts\n\n{SPLIT}\n"]
    parts += [table(("model", "whole, GB", "fuller host, GB", "less"),
                    [(name, *_memory_cells(one)) for name, one in told[first]["split"].items()])]  # fmt: skip
    parts += [f"## More classifiers on one tower\n\n{HEADS}\n"]
    rows = [
        (str(count), *_memory_cells(heads), *_memory_cells(beside))
        for count, (heads, beside) in told[first]["heads"].items()
    ]
    parts += [table(("classifiers", *FIGURES, *(f"{figure}, with zero-shot" for figure in FIGURES)), rows)]
    return "\n".join(parts)


def _bars(told: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for rows in zip(*(found["bars"] for found in told.values()), strict=True):
        bar, column, asked, _ = rows[0]
        met = [found >= asked for *_, found in rows]
        verdict = "met" if all(met) else "met on one" if any(met) else "**short**"
        yield bar, TITLES[column], *(_percent(found) for *_, found in rows), f">= {_percent(asked)}", verdict


def _models(recipe: Recipe, models: Mapping[str, Model], facts: Facts) -> Iterator[tuple[str, ...]]:
    known = {one.model: one for one in facts.checkpoint}
    for name, parameters in models.items():
        answers = ", ".join(task.partition(".")[0] for task, choice in recipe.tasks.items() if name in choice.models)
        sizes: dict[str, int] = {}
        for tensor in parameters.values():
            sizes[tensor.component] = sizes.get(tensor.component, 0) + tensor.params
        total, published = sum(sizes.values()), known[name].params
        cut = ", ".join(f"{component} {_millions(size)}" for component, size in sizes.items())
        compared = "–" if published is None else "the same" if published == total else f"{published:,}"
        yield name, known[name].of, answers, cut, _millions(total), compared


def _shares(models: Mapping[str, Model], facts: Facts) -> Iterator[tuple[str, ...]]:
    for one in facts.share:
        inside = [tensor.params for name, tensor in models[one.model].items() if name.startswith(f"{one.part}.")]
        place = f"{one.model} `{one.part}`", f"{one.origin} `{one.origin_part}`"
        yield *place, _millions(sum(inside)), one.kind, one.why, one.source


def _memory(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    columns = [name for name in TITLES if "tasks" in found[name]]
    tasks = found[columns[0]]["tasks"]
    rows = [(task, *_across([found[name]["tasks"][task] for name in columns])) for task in tasks]
    rows.append(("all five, all 20 uses", *_across([found[name]["all"] for name in columns])))
    rows.append(("each of the 14 models once", *_across([found[name]["models_once"] for name in columns])))
    headers = [f"{TITLES[name]}, GB (saved)" for name in columns]
    return ("", "unshared, GB", *headers), rows


def _across(cells: list[Any]) -> tuple[str, ...]:
    return _gb(cells[0].unshared), *(f"{_gb(one.shared)} ({_percent(one.saved)})" for one in cells)


def _best(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name in (one for one in TITLES if "best" in found[one]):
        rows = [(str(count), best) for count, best in found[name]["best"].items()]
        for count, best in [*rows, ("one each", found[name]["one_model_each"])]:
            held = best.memory
            figures = _percent(held.saved), _gb(held.unshared), _gb(held.shared), f"{best.of:,}"
            yield count, TITLES[name], *figures, _percent(best.median_saved), _named(best) if held.saved else "–"


def _named(best: Any) -> str:
    by_task: dict[str, list[str]] = {}
    for use in best.uses:
        by_task.setdefault(use.task, []).append(use.model)
    return "; ".join(f"{task}: {', '.join(models)}" for task, models in by_task.items())


def _precisions(recipe: Recipe, target: str) -> str:
    choice = recipe.targets[target]
    if isinstance(choice.precision, str):
        return choice.precision
    kinds: dict[str, list[str]] = {}
    for component, precision in choice.precision.items():
        kinds.setdefault(precision, []).append(component)
    least = min(kinds, key=lambda one: len(kinds[one]))
    others = next(one for one in kinds if one != least)
    return f"{', '.join(kinds[least])} {least}, the rest {others}"


def _memory_cells(one: Any) -> tuple[str, str, str]:
    return _gb(one.unshared), _gb(one.shared), _percent(one.saved)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f}"


def _millions(params: int) -> str:
    return f"{params / 1e6:,.1f}"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
