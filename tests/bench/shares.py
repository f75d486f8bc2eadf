"""What the 14 models of `recipes/s2m3-14.toml` are made of, tensor by tensor, and which tensors are the same weights.

Sizes are those of models made of a config.json alone. Without weights nothing can be compared, so what is the same is
declared in `recipes/s2m3/shares.toml`, each with its source; a declaration is refused where shapes contradict it. A
build reads none of this: there a module is shared when its graph and every byte of its weights are equal.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from msao_compile.errors import InputError, RecipeError
from msao_compile.families.outline import OTHER, QUANTISABLE_DIMENSIONS, bytes_of, outline
from msao_compile.families.registry import open_checked
from msao_compile.recipe.schema import Component, TargetChoice

Kind = Literal["frozen", "premise"]
Name = tuple[str, str]
"""A tensor: its model and its name there."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Checkpoint(_Table):
    """Where the dimensions of a model come from."""

    model: str
    of: str
    source: str
    params: int | None = None
    """What the publisher's files hold; None where there are none or their number was not at hand."""


class Share(_Table):
    """Parameters under `part` of `model` are, by their names below it, those under `origin_part` of `origin`."""

    model: str
    part: str
    origin: str
    origin_part: str
    kind: Kind
    why: str
    source: str


class Apart(_Table):
    """What may look shared, and why it does not count."""

    models: tuple[str, ...]
    why: str
    source: str


class Facts(_Table):
    """All of shares.toml."""

    checkpoint: tuple[Checkpoint, ...]
    share: tuple[Share, ...] = ()
    apart: tuple[Apart, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """One parameter; a tied one counts once, where the outline of the model has it."""

    component: str
    shape: tuple[int, ...]

    @property
    def params(self) -> int:
        """Elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def size_bytes(self, target: TargetChoice) -> int:
        """In the precision that a target has for the component."""
        matrix = self.params if len(self.shape) >= QUANTISABLE_DIMENSIONS else 0
        return bytes_of(self.params, matrix)[target.precision_of(cast("Component", self.component))]


Model = Mapping[str, Tensor]


def read_facts(path: Path) -> Facts:
    """The declarations of a file.

    Raises:
        RecipeError: it is no TOML, or says something else than it may.
    """
    try:
        return Facts.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())}; correct it") from error


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every parameter that is deployed of the model whose config.json lies in a folder.

    Raises:
        CheckpointError: no model can be made of the config.
    """
    model = open_checked(folder)
    return {
        name: Tensor(part.component, tuple(model.get_parameter(name).shape))
        for part in outline(model)
        if part.component != OTHER
        for name in part.parameters
    }


def identities(models: Mapping[str, Model], shares: Sequence[Share]) -> dict[Name, Name]:
    """For every tensor the one whose weights it has: itself, or where it was taken from.

    Raises:
        InputError: a share names a model or part that is not there, goes in a circle, or shapes contradict it.
    """
    declared = dict(_declared(models, shares))
    return {
        (model, name): _first((model, name), declared) for model, parameters in models.items() for name in parameters
    }


def _declared(models: Mapping[str, Model], shares: Sequence[Share]) -> Iterator[tuple[Name, Name]]:
    for share in shares:
        for model in (share.model, share.origin):
            if model not in models:
                raise InputError(f"a share of {share.model} names {model}, which is none of the models: correct it")
        here, there = models[share.model], models[share.origin]
        inside = [name for name in here if name.startswith(f"{share.part}.")]
        if not inside:
            raise InputError(f"{share.model} has no parameters under {share.part}: correct the share's part")
        for name in inside:
            origin = share.origin_part + name.removeprefix(share.part)
            if origin not in there or there[origin].shape != here[name].shape:
                found = there[origin].shape if origin in there else "not there"
                raise InputError(
                    f"{share.model} cannot have {name} from {share.origin}: it is {here[name].shape}, and {origin} is "
                    f"{found}; remove the share or correct the config"
                )
            yield (share.model, name), (share.origin, origin)


def _first(tensor: Name, declared: Mapping[Name, Name]) -> Name:
    seen = {tensor}
    while tensor in declared:
        tensor = declared[tensor]
        if tensor in seen:
            raise InputError(f"the shares of {tensor[0]} go in a circle at {tensor[1]}: remove one")
        seen.add(tensor)
    return tensor
