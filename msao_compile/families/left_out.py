"""What of a checkpoint no graph has, by the names under which a recipe may leave it out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Set
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from msao_compile.errors import CheckpointError, StageError
from msao_compile.families.checkpoint import Located, Source
from msao_compile.families.outline import OTHER, outline

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MINUS_INFINITY = "masked_bias"
"""What attention of GPT-2's kind once saved in the place of it; transformers does not know of it any more."""


def parts(model: PreTrainedModel) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The largest modules that are of one component each: their paths, components and parameters.

    Tied parameters count once, as in `outline`.
    """
    component = {name: part.component for part in outline(model) for name in part.parameters}
    within: dict[str, set[str]] = {}
    for name, one in component.items():
        for path in _paths(name):
            within.setdefault(path, set()).add(one)
    found: dict[str, list[str]] = {}
    for name in component:
        found.setdefault(next(path for path in _paths(name) if len(within[path]) == 1), []).append(name)
    return {path: (component[names[0]], tuple(names)) for path, names in found.items()}


def unread(
    model: PreTrainedModel, sources: Mapping[str, Source], used: Set[Source], exclude: Collection[str]
) -> dict[str, int]:
    """Parameters of each part that is in no graph at all, but for those of components that are left out.

    A part that is read in places is whole: of towers nobody asks for the last layers, nor for a pooler.
    """
    return {
        path: sum(math.prod(sources[name].shape) for name in names)
        for path, (component, names) in parts(model).items()
        if component not in exclude and not any(sources[name] in used for name in names)
    }


def unanswered(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of each part that is seen from outside to answer no request, such as what paints pictures."""
    return {
        path: sum(model.get_parameter(name).numel() for name in names)
        for path, (component, names) in parts(model).items()
        if component == OTHER
    }


def surplus(model: PreTrainedModel, located: Located) -> dict[str, int]:
    """Elements of each part of the files that the model has no place for.

    A part is named by the shortest path that no tensor of the model shares, with `*` for the numbers of layers inside
    it. What the model computes by itself is no part.
    """
    shared = {path for key in located.keys for path in _paths(key)}
    computed = _computed(model, located.unexpected)
    found: dict[str, int] = {}
    for key, source in located.unexpected.items():
        if key not in computed:
            path = next((path for path in _paths(key) if path not in shared), key)
            path = re.sub(r"\.\d+(?=\.)", ".*", path)
            found[path] = found.get(path, 0) + math.prod(source.shape)
    return found


def ignored(model: PreTrainedModel, names: Collection[str]) -> set[str]:
    """Those of which transformers itself knows that checkpoints hold them and that the model does without."""
    strange = set(names)
    told: Any = SimpleNamespace(missing_keys=set(), unexpected_keys=strange)
    model._adjust_missing_and_unexpected_keys(told)
    return strange.difference(told.unexpected_keys)


def is_named(part: str, exclude: Collection[str]) -> bool:
    """Whether a recipe leaves a part out: by its path, or by that of something around it."""
    return any(path in exclude for path in _paths(part))


def refuse_surplus(folder: Path, found: Mapping[str, int], exclude: Collection[str]) -> None:
    """
    Raises:
        CheckpointError: the files hold a part that the model has no place for and nobody leaves out.
    """
    if rest := {path: count for path, count in found.items() if not is_named(path, exclude)}:
        raise CheckpointError(
            f"{folder}: {listed(rest)} are not part of the model; use the config.json that belongs to these weights, "
            f"or leave them out by name: export.exclude needs {json.dumps([*rest])}"
        )


def refuse_unread(kind: str, found: Mapping[str, int], exclude: Collection[str]) -> None:
    """
    Raises:
        StageError: a part is in no graph and nobody leaves it out.
    """
    if rest := {path: count for path, count in found.items() if not is_named(path, exclude)}:
        raise StageError(
            f"{kind}: no graph reads {listed(rest)}: no picture, clip, sound or text reaches them; to leave "
            f"them out by name export.exclude needs {json.dumps([*rest])}"
        )


def listed(found: Mapping[str, int]) -> str:
    """Parts and how many parameters they have, in words."""
    return f"{sum(found.values())} parameters in {', '.join(found)}"


def _paths(name: str) -> list[str]:
    """A dotted name and the paths around it, the shortest first."""
    names = name.split(".")
    return [".".join(names[: count + 1]) for count in range(len(names))]


def _computed(model: PreTrainedModel, unexpected: Collection[str]) -> set[str]:
    """Tensors that older versions saved: of modules that the model has, or under the name of one of its buffers."""
    silent = ignored(model, unexpected)
    modules = {path for path, _ in model.named_modules()}
    modules |= {path.removeprefix(f"{model.base_model_prefix}.") for path in modules}
    buffers = {name.rpartition(".")[2] for name, _ in model.named_buffers()}
    found = set()
    for key in unexpected:
        around, _, name = key.rpartition(".")
        if (key in silent or name == MINUS_INFINITY) and (around in modules or name in buffers):
            found.add(key)
    return found
