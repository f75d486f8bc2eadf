"""Run a large model on examples without computing its layers: shapes are all that is asked of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils import _pytree as pytree

from msao_compile.symbolic import DATA, zeros

COMPUTED = object()
"""Known of a layer that has to be computed to tell what it gives."""
LARGE = 20_000_000
"""Parameters above which computing examples would take longer than all the rest."""


@contextlib.contextmanager
def light(model: nn.Module) -> Iterator[None]:
    """Inside this block every layer of a repeated stack of a large model answers with zeros of the right shapes.

    A layer runs on the meta device, where nothing is computed. One that reads its data runs as it is, but for its
    products with weights: they are zeros too, as are those outside of layers, such as the logits of a large vocabulary.
    """
    large = sum(value.numel() for value in model.parameters()) >= LARGE
    parts = list(model.modules()) if large else []
    layers = [layer for part in parts if isinstance(part, nn.ModuleList) and len(part) > 1 for layer in part]
    configs = {id(part.config): part.config for part in parts if hasattr(getattr(part, "config", None), "use_cache")}
    known: dict[Any, Any] = {}
    with contextlib.ExitStack() as stack:
        for config in configs.values():  # a state that nobody asked for would make every layer unlike the last
            stack.enter_context(patch.object(config, "use_cache", False))
        for part in parts:
            if type(part) is nn.Linear:
                stack.enter_context(patch.dict(vars(part), {"forward": _Product(part)}))
        for layer in layers:
            stack.enter_context(patch.dict(vars(layer), {"forward": _Light(layer, known)}))
        yield


class _Product:
    """Answers for one linear module."""

    def __init__(self, part: nn.Linear) -> None:
        self.forward, self.width = part.forward, part.out_features

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting() or value.is_meta:
            return self.forward(value)
        return zeros((*value.shape[:-1], self.width), value.dtype)


class _Light:
    """Answers for one layer; what layers of the same make gave for inputs of the same shapes need not be run again."""

    def __init__(self, layer: nn.Module, known: dict[Any, Any]) -> None:
        self.layer, self.forward, self.known = layer, layer.forward, known
        self.make = (type(layer), *(tuple(value.shape) for value in layer.parameters()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if torch.compiler.is_exporting() or any(leaf.is_meta for leaf in tensors):
            return self.forward(*args, **kwargs)
        key = self._key(args, kwargs)
        output = self.known[key] if key in self.known else self._looked(args, kwargs)
        if key is not None:
            self.known[key] = output
        if output is COMPUTED:
            return self.forward(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, _zeros, output)

    def _looked(self, args: Any, kwargs: Any) -> Any:
        """What the layer gives where nothing is computed; `COMPUTED` where it looks at data or reaches elsewhere."""
        try:
            with _on_meta(self.layer):
                given, named = pytree.tree_map_only(torch.Tensor, _bare, (args, kwargs))
                return self.forward(*given, **named)
        except RuntimeError:
            return COMPUTED

    def _key(self, args: Any, kwargs: Any) -> Any:
        """None where an argument is more than a tensor or a plain value: a state that the layer may write to."""
        leaves, tree = pytree.tree_flatten((args, kwargs))
        told = [(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        plain = all(leaf is None or isinstance(leaf, torch.Tensor | int | float | str) for leaf in leaves)
        return (self.make, str(tree), *told) if plain else None


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    bare = tensor.to("meta")
    vars(bare).update({**vars(tensor), DATA: tensor})  # what is written on one, such as a mask's kind, goes with it
    return bare


def _zeros(like: torch.Tensor) -> torch.Tensor:
    """Zeros in the place of a tensor without data."""
    return zeros(like.shape, like.dtype) if like.is_meta else like


@contextlib.contextmanager
def _on_meta(layer: nn.Module) -> Iterator[None]:
    """The layer's parameters and buffers without their data."""
    held: list[tuple[dict[str, Any], str, Any]] = []
    for part in layer.modules():
        for table in (part._parameters, part._buffers):
            held += [(table, name, value) for name, value in table.items() if value is not None]
    for table, name, value in held:
        meta = value.to("meta")
        table[name] = nn.Parameter(meta, requires_grad=False) if isinstance(value, nn.Parameter) else meta
    try:
        yield
    finally:
        for table, name, value in held:
            table[name] = value
