"""What of transformers' code is replaced while a model is traced, so that nothing in the graph depends on data."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from msao_compile.graph.experts import at_once
from msao_compile.graph.recurrence import FUNCTIONS as RECURRENCES
from msao_compile.graph.resize import interpolated
from msao_compile.graph.selections import Picked, Places, Sites, mark, scatter_rows, site
from msao_compile.symbolic import NO_CHECKS, Numbers, Unknown, Whole, plain


def _deepstack(self: Any, hidden_states: torch.Tensor, visual_pos_masks: Any, visual_embeds: torch.Tensor) -> Any:
    """Features of an inner layer of the tower added where the pictures stand, as one dense sum."""
    zeros = torch.zeros(
        (*visual_pos_masks.shape[:2], hidden_states.shape[-1]), dtype=hidden_states.dtype, device=hidden_states.device
    )
    return hidden_states + scatter_rows(zeros, visual_pos_masks, visual_embeds)


def _streaming(self: Any, seq_len: Any, batch_size: int, chunk_size: int, left_chunk: int) -> torch.Tensor:
    """[batch, length, length]: a position sees its chunk and `left_chunk` before it; all where nothing is cut."""
    chunk = torch.arange(seq_len) // chunk_size if chunk_size > 0 else torch.zeros(seq_len, dtype=torch.int64)
    back = chunk[:, None] - chunk
    return ((back >= 0) & (back <= left_chunk))[None].expand(batch_size, -1, -1)


METHODS: dict[str, Any] = {"_deepstack_process": _deepstack, "_streaming_mask": _streaming}
"""Methods of transformers' models that index by masks or count by data, by name, and what says the same without."""
FUNCTIONS: dict[str, Any] = {**RECURRENCES}
"""Functions of modeling files, by name, and what gives the same without loops over data or length."""


class _OneItem(TorchFunctionMode):
    """What models do picture by picture, said once for all of them.

    A split into one part is the tensor itself: towers split one picture's features by its own size. A list of the items
    of an axis of unknown length is only ever joined again: all rows as one item. Writing under a mask is a scatter.
    Selecting what is no padding keeps everything at every line where it did so for the examples.
    """

    def __init__(self, sites: Sites) -> None:
        super().__init__()
        self.sites = sites
        self.any: list[torch.Tensor] = []  # results of `any`, kept alive so that they are known again

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        special = getattr(self, f"_on_{name.strip('_')}", None)
        found = NotImplemented if special is None else special(*args, **kwargs)
        if found is not NotImplemented:
            return found
        if name in ("as_tensor", "tensor") and isinstance(args[0], Numbers):
            return args[0]
        args, kwargs = plain((tuple(args), kwargs))
        found = function(*args, **kwargs)
        if name == "any" and isinstance(found, torch.Tensor) and found.ndim == 0:
            self.any.append(found)
        return found

    def _on_tensor(self, data: Any, dtype: Any = None, **named: Any) -> Any:
        """A small tensor of lengths is read again by its numbers, and so is a list of one number."""
        leaves = pytree.tree_leaves(data) if torch.compiler.is_exporting() and isinstance(data, list) else []
        if dtype not in (None, torch.int64) or not all(type(leaf) in (int, torch.SymInt) for leaf in leaves):
            return NotImplemented
        if any(isinstance(leaf, torch.SymInt) for leaf in leaves):
            return Numbers(data, None)
        return Numbers(data, torch.tensor(data, **named)) if len(leaves) == 1 else NotImplemented

    def _on_split(self, tensor: Any, *args: Any, **named: Any) -> Any:
        return (tensor,) if _is_one_part(tensor, *args, **named) else NotImplemented

    _on_split_with_sizes = _on_split

    def _on_unbind(self, tensor: Any, dim: int = 0) -> Any:
        if dim == 0 and tensor.ndim > 2 and isinstance(tensor.shape[0], torch.SymInt):
            return (tensor.flatten(0, 1),)
        return NotImplemented

    def _on_squeeze(self, tensor: Any, dim: Any = None) -> Any:
        """An axis whose length is a symbol is never taken for one of length 1: torch leaves it, so does the graph."""
        own = isinstance(dim, int) and tensor.ndim > 0 and isinstance(tensor.shape[dim], torch.SymInt)
        return tensor if own else NotImplemented

    def _on_len(self, tensor: Any) -> Any:
        if isinstance(tensor.shape[0], torch.SymInt):
            raise TypeError("the length of this axis is not known while tracing")  # `list` then goes without
        return NotImplemented

    def _on_bool(self, tensor: Any) -> Any:
        """`if mask.any(): write under the mask`: writing under an empty mask does nothing."""
        if torch.compiler.is_exporting() and any(tensor is held for held in self.any):
            return True
        return NotImplemented

    def _on_getitem(self, tensor: Any, index: Any) -> Any:
        if _is_row_mask(index) and isinstance(tensor, torch.Tensor):
            mask = index[0] if isinstance(index, tuple) else index
            line = site()
            if self.sites.recording:
                self.sites.note(line, bool(mask.all()))
            elif self.sites.everything.get(line, False):
                return tensor.flatten(0, mask.ndim - 1) if mask.ndim > 1 else tensor
            elif torch.compiler.is_exporting() and (mask.ndim == tensor.ndim - 1 or mask.ndim == tensor.ndim == 3):
                return Picked(tensor, mask)
            return NotImplemented
        if isinstance(tensor, torch.Tensor) and tensor.is_complex() and torch.compiler.is_exporting():
            parts = index if isinstance(index, tuple) else ()
            if sum(part is not None for part in parts) == tensor.ndim:  # ONNX has pairs of real numbers
                return torch.view_as_complex(torch.view_as_real(tensor)[(*parts, slice(None))])
        return self._cut_off(tensor, index)

    def _cut_off(self, tensor: Any, index: Any) -> Any:
        """`x[:length]` where a tensor says how much of x is no padding."""
        parts = index if isinstance(index, tuple) else (index,)
        counted = [isinstance(part, slice) and isinstance(part.stop, torch.Tensor) for part in parts]
        if not any(counted):
            return NotImplemented
        line = site()
        if self.sites.recording:
            kept = zip(parts, tensor.shape, counted, strict=False)
            whole = [int(part.stop) >= size and not part.start for part, size, own in kept if own]
            self.sites.note(line, all(whole))
            return NotImplemented
        if not self.sites.everything.get(line, False):
            return NotImplemented
        parts = tuple(slice(None) if own else part for part, own in zip(parts, counted, strict=True))
        return tensor[parts]

    def _on_slice(self, tensor: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
        """A length read from data is no more than that of what is cut by it: said, it is the length of the result."""
        if free_unbacked_symbols(stop):
            torch._check(stop >= 0)
            torch._check(stop <= tensor.shape[dim])
        return NotImplemented

    def _on_setitem(self, tensor: Any, index: Any, value: Any) -> Any:
        if not _is_row_mask(index) or not isinstance(value, torch.Tensor | Picked):
            return NotImplemented
        mask = index[0] if isinstance(index, tuple) else index
        by_row = mask.ndim == tensor.ndim > 1 and self._whole_rows(mask)
        if isinstance(value, Picked) or value.ndim > 1 or by_row:
            tensor.copy_(scatter_rows(tensor, mask, value))
        elif mask.ndim == tensor.ndim - 1 and value.ndim == 1:
            tensor.copy_(torch.where(mask[..., None], value, tensor))
        else:
            return NotImplemented
        return True

    def _whole_rows(self, mask: torch.Tensor) -> bool:
        """Whether the mask of this line was the same along its last axis for the examples: it was made for rows."""
        line = f"{site()} by row"
        if self.sites.recording:
            self.sites.note(line, bool((mask == mask[..., :1]).all()))
        return self.sites.everything.get(line, False) and not self.sites.recording

    def _on_nonzero(self, tensor: Any, *_: Any, as_tuple: bool = False) -> Any:
        if not as_tuple or not torch.compiler.is_exporting():
            return NotImplemented
        found = Places(torch.nonzero(tensor.reshape(-1), as_tuple=False).unbind(1))
        found.mask = tensor
        return found

    def _on_index_put(self, tensor: Any, indices: Any = (), values: Any = None, accumulate: bool = False) -> Any:
        if not isinstance(indices, Places) or accumulate:
            return NotImplemented
        return scatter_rows(tensor, indices.mask, values)

    def _on_one_hot(self, tensor: Any, num_classes: Any = -1) -> Any:
        """As many classes as a symbolic length says: torch's own takes a plain number for it."""
        symbolic = isinstance(num_classes, torch.SymInt)
        if not symbolic:
            return NotImplemented
        return (tensor[..., None] == torch.arange(num_classes, device=tensor.device)).to(torch.int64)

    def _on_embedding_bag(
        self, indices: Any, weight: Any, *rest: Any, mode: str = "mean", per_sample_weights: Any = None, **named: Any
    ) -> Any:
        """Weighted rows of a table and their sums, where torch's own becomes a loop over the bags."""
        bags = indices.ndim == 2 and all(named.get(name) is None for name in ("max_norm", "padding_idx"))
        if rest or not bags or mode != "sum" or per_sample_weights is None:
            return NotImplemented
        return (weight[indices] * per_sample_weights[..., None]).sum(1)

    def _on_interpolate(self, tensor: Any, *args: Any, **named: Any) -> Any:
        return interpolated(tensor, *args, **named)


def _is_one_part(tensor: Any, sizes: Any = None, dim: int = 0, **named: Any) -> bool:
    """Whether a split is into one part: a list of one size, or a size that the axis is not longer than.

    The graph of a tensor that is split into parts of one size to save memory takes all of it at once.
    """
    sizes = next((value for key, value in named.items() if "split_size" in key), sizes)
    if isinstance(sizes, Numbers):
        sizes = sizes.tolist()
    if isinstance(sizes, list | tuple):
        return len(sizes) == 1
    return isinstance(sizes, int) and bool(tensor.shape[dim] <= sizes)


def _unsplit(original: Any) -> Any:
    """`split` that gives the tensor itself where it is one part."""

    def split(self: Any, *args: Any, **named: Any) -> Any:
        return (self,) if _is_one_part(self, *args, **named) else original(self, *args, **named)

    return split


def _listed(original: Any) -> Any:
    """`tolist` that gives sizes of the one item there is as Unknown: they split it into one part, or are compared with
    what was counted.
    """

    def tolist(self: torch.Tensor) -> Any:
        whole = torch.compiler.is_exporting() and self.ndim == 1 and not self.is_floating_point()
        one = whole and (isinstance(self.shape[0], torch.SymInt) or self.shape[0] == 1)
        return [Unknown()] if one else original(self)

    return tolist


def _rolled(original: Any) -> Any:
    """`roll` by one that does not ask whether the axis is longer than that: the answer would rule out one token."""

    def roll(tensor: torch.Tensor, shifts: Any, dims: Any = None) -> Any:
        if shifts != 1 or not isinstance(dims, int):
            return original(tensor, shifts, dims)
        size = tensor.shape[dims]
        before = torch.arange(size, device=tensor.device) - 1
        return tensor.index_select(dims, torch.where(before < 0, size - 1, before))

    return roll


def _is_row_mask(index: Any) -> bool:
    """`x[mask]` or `x[mask, :]`."""
    parts = index if isinstance(index, tuple) else (index,)
    first = parts[0] if parts else None
    whole = all(isinstance(part, slice) and part == slice(None) for part in parts[1:])
    return isinstance(first, torch.Tensor) and first.dtype == torch.bool and first.ndim > 0 and whole


def growing(model: nn.Module) -> list[Any]:
    """Rotary embeddings whose frequencies follow the length once it is over the `original_max_seq_len` of training.

    Up to there they are constant, and so they are traced: one graph cannot have both.
    """
    return [part for part in model.modules() if "dynamic" in str(getattr(part, "rope_type", ""))]


@contextlib.contextmanager
def rewritten(model: nn.Module, sites: Sites) -> Iterator[None]:
    """Trace `model` inside this block: transformers' own ONNX patches, ours, and one expert product for all experts."""
    from transformers.exporters.exporter_onnx import use_experts_implementation
    from transformers.exporters.utils import apply_patches

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, NO_CHECKS))
        stack.enter_context(apply_patches("onnx"))
        stack.enter_context(use_experts_implementation(model, "batched_mm"))
        stack.enter_context(at_once(model))
        stack.enter_context(patch.object(torch.Tensor, "masked_scatter", scatter_rows))
        tensors: tuple[Any, ...] = (torch.Tensor, FakeTensor, FunctionalTensor)
        stack.enter_context(patch.object(torch, "roll", _rolled(torch.roll)))
        for owner in (torch.Tensor, torch):
            stack.enter_context(patch.object(owner, "split", _unsplit(owner.split)))
        for one in tensors:
            stack.enter_context(patch.object(one, "tolist", _listed(one.tolist)))
        for part in growing(model):
            told = part.rope_type  # one kind, or one for each kind of layer
            constant = dict.fromkeys(told, "default") if isinstance(told, dict) else "default"
            stack.enter_context(patch.object(part, "rope_type", constant))
        for kind in {type(part) for part in model.modules()}:
            for name, function in METHODS.items():
                if hasattr(kind, name):
                    stack.enter_context(patch.object(kind, name, function))
        for file in _files(model):
            stack.enter_context(patch.object(file, "int", Whole, create=True))
            for name, function in FUNCTIONS.items():
                if hasattr(file, name):
                    stack.enter_context(patch.object(file, name, function))
        for part in model.modules():
            for name, function in FUNCTIONS.items():
                if name in vars(part):
                    stack.enter_context(patch.object(part, name, function))
        stack.enter_context(_OneItem(sites))
        yield


def _files(model: nn.Module) -> list[Any]:
    names = {type(part).__module__ for part in model.modules()}
    return [sys.modules[name] for name in sorted(names) if ".models." in name]


__all__ = ["mark", "rewritten", "scatter_rows"]
