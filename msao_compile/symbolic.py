"""Small tensors of sizes whose numbers are known while tracing, as lengths of other tensors.

Models read such tensors with `.tolist()` and `int()` and reshape by what they get, which no graph can follow. Here the
numbers are plain ones or symbolic lengths, and everything made of them is computed at once.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

NO_CHECKS = {"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}
"""Environment in which transformers compares no numbers of placeholders and features: that is data."""

_ARITHMETIC = ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod")
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


class Numbers:
    """A tensor of whole numbers beside the same numbers as an array of objects: `int` or symbolic.

    Indexing, arithmetic with numbers and reductions give Numbers; everything else is done to the tensor.
    """

    def __init__(self, numbers: Any, tensor: torch.Tensor | None) -> None:
        self.numbers = np.asarray(numbers, dtype=object)
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's own functions take the tensor."""
        args, kwargs = plain((tuple(args), kwargs or {}))
        return function(*args, **kwargs)

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return torch.Size(self.numbers.shape)

    @property
    def ndim(self) -> int:
        """Of the tensor."""
        return self.numbers.ndim

    @property
    def device(self) -> torch.device:
        """Of the tensor."""
        return torch.device("cpu")

    def size(self, axis: int | None = None) -> Any:
        """Shape of the tensor, or one length of it."""
        return self.shape if axis is None else self.shape[axis]

    def tolist(self) -> Any:
        """Nested lists of the numbers."""
        return self.numbers.tolist()

    def item(self) -> Any:
        """The only number."""
        return self.numbers.reshape(-1)[0]

    def to(self, *_: Any, **__: Any) -> Numbers:
        """The same: kinds and devices of whole numbers make no difference here."""
        return self

    cpu = long = clone = detach = contiguous = to

    def view(self, *shape: Any) -> Numbers:
        """The same numbers in another shape."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return Numbers(self.numbers.reshape(sizes), None if self.tensor is None else self.tensor.reshape(sizes))

    reshape = view

    def repeat(self, *counts: int) -> Numbers:
        """The same numbers several times along each axis."""
        return Numbers(np.tile(self.numbers, counts), None if self.tensor is None else self.tensor.repeat(counts))

    def expand(self, *sizes: int) -> Numbers:
        """The same numbers along axes of length 1."""
        shape = [own if size == -1 else size for own, size in zip(self.numbers.shape, sizes, strict=True)]
        return Numbers(np.broadcast_to(self.numbers, shape), None if self.tensor is None else self.tensor.expand(sizes))

    def prod(self, dim: int | None = None, **_: Any) -> Any:
        """Product, of all or along an axis."""
        return _made(self.numbers.prod(axis=dim))

    def sum(self, dim: int | None = None, **_: Any) -> Any:
        """Sum, of all or along an axis."""
        return _made(self.numbers.sum(axis=dim))

    def unbind(self, dim: int = 0) -> tuple[Any, ...]:
        """The items along an axis."""
        return tuple(_made(part) for part in np.moveaxis(self.numbers, dim, 0))

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self.numbers)))

    def __getitem__(self, index: Any) -> Any:
        return _made(self.numbers[index], None if self.tensor is None else self.tensor[index])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.as_tensor(), name)

    def as_tensor(self) -> torch.Tensor:
        """As int64, from the request where it comes from there, else made of the lengths."""
        if self.tensor is None:
            flat = [torch.scalar_tensor(number, dtype=torch.int64) for number in self.numbers.reshape(-1)]
            self.tensor = torch.stack(flat).reshape(self.numbers.shape) if flat else torch.zeros(self.shape).long()
        return self.tensor


def _made(numbers: Any, tensor: torch.Tensor | None = None) -> Any:
    """A single number as itself: torch takes nothing else for a length."""
    return Numbers(numbers, tensor) if isinstance(numbers, np.ndarray) else numbers


def _binary(name: str) -> Callable[[Numbers, Any], Any]:
    reflected = name.startswith("r")
    function = getattr(operator, name[1:] if reflected else name)

    def apply(self: Numbers, other: Any) -> Any:
        if isinstance(other, torch.Tensor):
            own = self.as_tensor()
            return function(other, own) if reflected else function(own, other)
        theirs = other.numbers if isinstance(other, Numbers) else other
        found = function(theirs, self.numbers) if reflected else function(self.numbers, theirs)
        return found if name in _COMPARISONS else Numbers(found, None)

    return apply


for _name in (*_ARITHMETIC, *_COMPARISONS):
    setattr(Numbers, f"__{_name}__", _binary(_name))


def plain(values: Any) -> Any:
    """Arguments of a torch function with every Numbers, also in slices, as what torch takes."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Numbers):
            return leaf.as_tensor()
        if isinstance(leaf, slice):
            return slice(one(leaf.start), one(leaf.stop), one(leaf.step))
        return leaf

    return pytree.tree_map(one, values, is_leaf=lambda leaf: isinstance(leaf, Numbers | slice))


def zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until somebody writes to them, unlike torch's."""
    count = math.prod(shape)
    held = np.zeros((count + 1) * dtype.itemsize, np.uint8)  # one more: torch views nothing empty as another kind
    return torch.from_numpy(held).view(dtype)[:count].reshape(tuple(shape))


DATA = "msao_data"
"""Written on a tensor without data: the one that has it."""


class Unknown:
    """A number that depends on data, in a list of one: it passes every check, and nothing can be made of its size.

    What compares it with a length compares features with placeholders, which the runtime does for each request.
    """

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def _same(self, *_: Any) -> Unknown:
        return self

    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = __floordiv__ = _same


class _WholeMeta(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, builtins.int)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is builtins.int

    def __hash__(cls) -> builtins.int:
        return hash(builtins.int)


class Whole(metaclass=_WholeMeta):
    """Stands for `int` in a modeling file while it is traced: a symbolic length stays symbolic."""

    def __new__(cls, value: Any = 0, *rest: Any) -> Any:
        """`int(value)`, or the length that `value` is."""
        if isinstance(value, Numbers):
            return value.item()
        if isinstance(value, torch.SymInt | Unknown):
            return value
        if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_floating_point():
            return value.item()
        if isinstance(value, torch.SymFloat):  # a length divided
            return torch.sym_int(value)
        return builtins.int(value, *rest)
