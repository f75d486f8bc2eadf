"""What running a model on its examples tells before anything is traced: whether it runs, and what of it that reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.checkpoint import Source
from msao_compile.families.conversion import CONVERTED
from msao_compile.families.examples.kinds import FAULTS
from msao_compile.families.left_out import parts
from msao_compile.families.light import light
from msao_compile.families.runnable import read_whole_numbers, runnable
from msao_compile.families.subject import describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Trial:
    """`fault`: why no examples of what the model takes run, None where they do.

    `unread`: parameters of each part that no example reached; `tokens`: positions of the longer example.
    """

    fault: str | None = None
    unread: dict[str, int] = field(default_factory=dict)
    tokens: int = 0


def tried(model: PreTrainedModel, folder: Path, sources: dict[str, Source]) -> Trial:
    """Run a skeleton on examples of all that it takes; its layers are computed where it is small only."""
    known = parts(model)  # before parameters that are one become two
    runnable(model)
    own = {name: source for name, source in sources.items() if source.file != CONVERTED}
    read_whole_numbers((folder, folder), model, own)
    with light(model), _watched(model) as touched:
        try:
            found = describe(model)
        except (UnsupportedFamily, *FAULTS) as error:
            return Trial(fault=" ".join(str(error).split()))
    unread = {
        path: sum(model.get_parameter(name).numel() for name in names)
        for path, (_, names) in known.items()
        if not any(place == path or place.startswith(f"{path}.") for place in touched)
    }
    tokens = max((example[found.tokens].shape[1] for example in found.examples), default=0) if found.tokens else 0
    return Trial(unread=unread, tokens=tokens)


@contextlib.contextmanager
def _watched(model: PreTrainedModel) -> Iterator[set[str]]:
    """Paths of the modules that were called and of the parameters that a function of torch was given."""
    touched: set[str] = set()
    paths = {id(part): path for path, part in model.named_modules()}
    parameters = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            touched.update(
                parameters[id(leaf)] for leaf in pytree.tree_leaves((args, kwargs)) if id(leaf) in parameters
            )
            return function(*args, **(kwargs or {}))

    def called(part: torch.nn.Module, _: Any) -> None:
        if id(part) in paths:
            touched.add(paths[id(part)])

    handle = torch.nn.modules.module.register_module_forward_pre_hook(called)
    try:
        with Mode():
            yield touched
    finally:
        handle.remove()
