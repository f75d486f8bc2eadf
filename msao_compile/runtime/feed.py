"""What a module is fed: what is known by name, and zeros of the right shape for what a request does not have."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.backends.base import Arrays, Engine

CROSS = "cross_key_values"
_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def feed(engine: Engine, known: Mapping[str, np.ndarray], tokens: tuple[int, ...]) -> Arrays:
    """Every input of a module for new tokens [batch, sequence]; state is bound by the decoder itself.

    Raises:
        InputError: an array has another shape than the module takes.
    """
    found: Arrays = {}
    for name, shape in engine.inputs.items():
        if name.startswith("past_key_values."):
            continue
        kind = np.dtype(engine.types[name])
        if name not in known:
            found[name] = np.zeros(absent(name, shape, tokens), kind)
            continue
        value = np.asarray(known[name])
        fits = value.ndim == len(shape) and all(
            isinstance(size, str) or size == given for size, given in zip(shape, value.shape, strict=True)
        )
        if shape and not fits:  # of what only other modules make, the trace may not even know the rank
            raise unfit(name, value, shape)
        found[name] = np.ascontiguousarray(value.astype(kind, copy=False))
    return found


def unfit(name: str, value: np.ndarray, shape: tuple[int | str, ...]) -> InputError:
    """What is said of an array that a module does not take."""
    return InputError(
        f"{name} has shape {value.shape} where this model takes {tuple(shape)}: give what its processor makes"
    )


def absent(name: str, shape: tuple[int | str, ...], tokens: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that stands for nothing: no features, or one key that every mask hides.

    A tensor over the tokens, [batch, sequence], has one entry for each of them.
    """
    over_tokens = "sequence_length" in shape
    empty = 1 if over_tokens or name.startswith(CROSS) else 0
    lengths = dict(zip(("batch_size", "sequence_length"), tokens, strict=True))
    return tuple(
        size if isinstance(size, int) else _one(size, lengths) if empty else lengths.get(size, 0) for size in shape
    )


def _one(size: str, lengths: Mapping[str, int]) -> int:
    """A length such as `17*num_images`, each name in it by what `lengths` says, else 1."""

    def value(tree: ast.expr) -> int:
        if isinstance(tree, ast.BinOp) and type(tree.op) in _ARITHMETIC:
            return _ARITHMETIC[type(tree.op)](value(tree.left), value(tree.right))
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            return tree.value
        return lengths.get(tree.id, 1) if isinstance(tree, ast.Name) else 1

    try:
        return max(value(ast.parse(size, mode="eval").body), 0)
    except SyntaxError:  # the name of an axis after its tensor
        return lengths.get(size, 1)
