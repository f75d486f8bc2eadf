"""Rows picked by a mask, as the whole tensor and the mask: what is done to them is done to all, and nothing is counted.

Models write `x[mask] = features` or `x.masked_scatter(mask, x[mask] + features)`. How many rows a mask picks depends on
data; how many there are does not.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from msao_compile.graph.cut import MARK_DOMAIN, MERGE
from msao_compile.symbolic import Unknown


def mark(tensor: torch.Tensor, needs: str) -> torch.Tensor:
    """The same tensor, said to depend on `needs` as well: `cut` then draws a border before it."""
    if not torch.compiler.is_exporting():
        return tensor
    return torch.onnx.ops.symbolic(
        f"{MARK_DOMAIN}::Mark", [tensor], {"needs": needs}, dtype=tensor.dtype, shape=tensor.shape, version=1
    )


def scatter_rows(embeds: torch.Tensor, mask: torch.Tensor, features: Any) -> torch.Tensor:
    """`embeds.masked_scatter(mask, features)` for masks that are the same along the last axis.

    A gather of feature rows by a running count. A place beyond the features keeps its embedding: where there are none,
    a placeholder that the model itself has written is a token as any other.

    Args:
        embeds: [..., H]. mask: [...], [..., 1] or [..., H], bool. features: [..., H], as many rows as the mask has
            places; or Picked rows, of the same mask where that has the same shape.
    """
    rows = mask if mask.ndim == embeds.ndim - 1 else mask[..., 0]
    if isinstance(features, Picked):
        if str(features.mask.shape) == str(rows.shape):  # compared as text: no question about symbols is asked
            return torch.where(rows[..., None], features.all, embeds)
        features = features.really()
    width = embeds.shape[-1]
    flat = mark(features, MERGE).reshape(-1, width).to(embeds.dtype)
    padded = torch.cat([flat, flat.new_zeros(1, width)])
    places = rows.reshape(-1)
    order = (torch.cumsum(places.to(torch.int64), 0) - 1).clamp(min=0)
    odd = flat[:, 0].isnan()
    # Counted, and not asked for its length: that is known from the pixels and would be computed on the encoder's side.
    count = (odd | ~odd).to(torch.int64).sum()
    given = (order < count).reshape(rows.shape)
    picked = padded.index_select(0, torch.minimum(order, count)).reshape(*rows.shape, width)
    return torch.where((rows & given)[..., None], picked, embeds)


class Picked:
    """`all[mask]`: adding rows adds them where the mask is; anything else really picks."""

    def __init__(self, everything: torch.Tensor, mask: torch.Tensor) -> None:
        self.all, self.mask = everything, mask

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's own functions take the rows themselves."""
        args, kwargs = pytree.tree_map_only(cls, cls.really, (tuple(args), kwargs or {}))
        return function(*args, **kwargs)

    def __add__(self, rows: Any) -> Picked:
        zeros = torch.zeros_like(self.all)
        return Picked(self.all + scatter_rows(zeros, self.mask, rows), self.mask)

    __radd__ = __add__

    def to(self, *_: Any, **__: Any) -> Picked:
        """The same: they are added to what has the right kind."""
        return self

    def view(self, *shape: Any) -> Any:
        """Rows are counted by the mask, however they lie; joined to longer ones they are really picked."""
        sizes = shape[0] if isinstance(shape[0], tuple | list) else shape
        if sizes[-1] not in (-1, self.all.shape[-1]):
            return self.really().reshape(*shape)
        by_row = len(sizes) > 1 and self.mask.ndim == self.all.ndim  # so far by element
        return Picked(self.all, self.mask[..., 0]) if by_row else self

    reshape = view

    def numel(self) -> Unknown:
        """How many there are depends on data."""
        return Unknown()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.really(), name)

    def really(self) -> torch.Tensor:
        """The rows themselves; their number depends on data."""
        places = torch.nonzero(self.mask.reshape(-1)).squeeze(1)
        return self.all.flatten(0, self.mask.ndim - 1).index_select(0, places)


class Places(tuple[torch.Tensor, ...]):
    """Indices of the places of a mask, and the mask."""

    mask: torch.Tensor


@dataclass
class Sites:
    """Lines of transformers' code that select by data, and whether all was selected whenever they ran on an example.

    Examples have no padding. What drops padding there keeps everything, and so it does for each request without any.
    """

    recording: bool = False
    everything: dict[str, bool] = field(default_factory=dict)

    def note(self, site: str, everything: bool) -> None:
        """Remember one run."""
        self.everything[site] = self.everything.get(site, True) and everything


def site() -> str:
    """The line of transformers' models that is running; empty where none is."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "transformers/models" in name.replace("\\", "/"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
