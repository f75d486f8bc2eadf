"""Shape profiles: for every input whose shape varies, the smallest, best and largest shape an engine is built for.

A decoder has two, 0 for prefill and 1 for decode, in one engine over one copy of the weights. Lengths are chosen once a
profile and every shape follows from them, so `attention_mask` is as long as past and sequence together in each.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from msao_compile.errors import RecipeError
from msao_compile.manifest.schema import GROWS, Graph, ShapeProfile, ShapeRange, TensorSpec
from msao_compile.recipe.schema import Shapes

Lengths = tuple[int, int, int]
"""Smallest, best and largest."""
BATCH, SEQUENCE, TOTAL = "batch_size", "sequence_length", "total_sequence_length"
SEVERAL: Lengths = (1, 1, 4)
"""Pictures, clips or sounds of one request where the recipe does not say."""
GROWTH = 4
"""How many times the best size of a request is the largest, where the recipe does not say."""
DRAFTED = 8
"""Tokens of a decode profile at most. With exactly one, and batch 1, TensorRT-RTX 1.7 keeps most weights in two
layouts, one for each profile: 415 MB instead of 277 for the decoder of the standard model in fp16."""
DOT = "__dot__"
"""Stands in Python's grammar for the dot in the name of a length."""
_LARGEST_GUESS = 1 << 16
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {"Max": max, "Min": min, "max": max, "min": min}


def profiles(
    component: str,
    graph: Graph,
    shapes: Shapes,
    tokens: int | None = None,
    known: Mapping[str, Lengths] = MappingProxyType({}),
) -> tuple[ShapeProfile, ...]:
    """The profiles of one module's graph; empty where no shape varies.

    `tokens` is how many tokens stand for the medium of a typical request: an encoder is fastest there. `known` are
    lengths that follow from each other; the recipe's own come before them.

    Raises:
        RecipeError: a shape follows from lengths in a way that is not known here; names the recipe's table.
    """
    if component == "decoder":
        chosen = {"prefill": _prefill(graph, shapes), "decode": _decode(graph, shapes)}
    else:
        told = shapes.model_copy(update={"dims": {**known, **shapes.dims}})
        chosen = {"encode": _one(component, graph, told, tokens)}
    found = (_profile(name, graph, lengths) for name, lengths in chosen.items())  # type: ignore[arg-type]
    return tuple(profile for profile in found if profile.inputs)


def _prefill(graph: Graph, shapes: Shapes) -> dict[str, Lengths]:
    """Prompts after nothing, or after what fits before the longest: later turns and verification."""
    batch, sequence, capacity = _of_decoder(shapes)
    past = (0, 0, capacity - sequence[2])
    lengths = {BATCH: batch, SEQUENCE: sequence, GROWS: past, "num_logits": (1, 1, sequence[2])}
    return _with_the_rest(graph, lengths, shapes)


def _decode(graph: Graph, shapes: Shapes) -> dict[str, Lengths]:
    """One token after what is known, or a few that were drafted."""
    batch, _, capacity = _of_decoder(shapes)
    past, count = (0, capacity // 2, capacity - 1), (1, 1, min(DRAFTED, capacity))
    lengths: dict[str, Lengths] = {BATCH: batch, SEQUENCE: count, GROWS: past, "num_logits": count}
    return _with_the_rest(graph, lengths, shapes)


def _of_decoder(shapes: Shapes) -> tuple[Lengths, Lengths, int]:
    capacity = shapes.kv_capacity
    if shapes.decoder is not None:
        return shapes.decoder.batch, shapes.decoder.sequence, capacity
    longest = min(capacity, 1024)
    return (1, 1, 1), (1, min(64, longest), longest), capacity


def _with_the_rest(graph: Graph, lengths: dict[str, Lengths], shapes: Shapes) -> dict[str, Lengths]:
    """Positions known and fed, added up at each end; and what an encoder gave, for cross-attention."""
    added = zip(lengths[SEQUENCE], lengths[GROWS], strict=True)
    low, best, high = (one + other for one, other in added)
    lengths[TOTAL] = (low, best, high)
    for symbol in _symbols(graph):
        lengths.setdefault(symbol, shapes.dims.get(symbol, (1, 64, max(1024, lengths[SEQUENCE][2]))))
    return lengths


def _one(component: str, graph: Graph, shapes: Shapes, tokens: int | None) -> dict[str, Lengths]:
    batch, sequence, _ = _of_decoder(shapes)
    lengths: dict[str, Lengths] = {BATCH: batch, SEQUENCE: (1, *sequence[1:]), **shapes.dims}
    vision = shapes.vision_encoder
    free = [symbol for symbol in _symbols(graph) if symbol not in lengths]
    embeds = component == "embed_tokens"
    least = 0 if embeds else 1  # it also embeds what is decoded, and questions about nothing
    for symbol in free:
        best = _best(graph.inputs if embeds else graph.outputs, symbol, free, tokens)
        lengths[symbol] = (least, *SEVERAL[1:]) if best is None else (least, best, GROWTH * best)
    if vision is not None and component == "vision_encoder" and free:
        given = vision.images or vision.patches
        lengths[free[0]] = given if given is not None else lengths[free[0]]
    return lengths


def _best(ends: Iterable[TensorSpec], symbol: str, free: Iterable[str], tokens: int | None) -> int | None:
    """The length with which `ends` have as many rows as a typical request has tokens; None where none is seen to.

    Raises:
        RecipeError: as `_value`.
    """
    rows = next((str(size) for spec in ends for size in spec.shape if symbol in _names(str(size))), None)
    if rows is None or tokens is None or any(name != symbol and name in _names(rows) for name in free):
        return None
    low, high = 1, _LARGEST_GUESS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _value(rows, {symbol: middle}) >= tokens else (middle + 1, high)
    return low


def _profile(
    name: Literal["encode", "prefill", "decode"], graph: Graph, lengths: Mapping[str, Lengths]
) -> ShapeProfile:
    """Each varying input's shapes at the three sizes; lengths that stand in several inputs agree in each."""
    ends = [{symbol: three[end] for symbol, three in lengths.items()} for end in range(3)]
    ranges = []
    for spec in graph.inputs:
        if all(isinstance(size, int) for size in spec.shape):
            continue
        low, best, high = (tuple(_value(str(size), end) for size in spec.shape) for end in ends)
        ranges.append(ShapeRange(name=spec.name, min=low, opt=best, max=high))
    return ShapeProfile(name=name, inputs=tuple(ranges))


def _symbols(graph: Graph) -> list[str]:
    """Every length that graph inputs name, in order; those inside expressions as well."""
    return list(dict.fromkeys(name for spec in graph.inputs for size in spec.shape for name in _names(str(size))))


def _names(text: str) -> list[str]:
    tree = _parsed(text)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [
        node.id.replace(DOT, ".") for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called
    ]


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.replace(".", DOT), mode="eval").body
    except SyntaxError as error:
        raise RecipeError(
            f"the length {text!r} of a graph is not arithmetic; give it a range in [shapes.dims]"
        ) from error


def _value(text: str, lengths: Mapping[str, int]) -> int:
    """A length's number where those it is made of are known.

    Raises:
        RecipeError: it is made of something else.
    """

    def of(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id.replace(DOT, ".") in lengths:
            return lengths[node.id.replace(DOT, ".")]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return int(_OPERATORS[type(node.op)](of(node.left), of(node.right)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -of(node.operand)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            return int(_FUNCTIONS[node.func.id](*map(of, node.args)))
        raise RecipeError(f"the length {text!r} follows from no length that a recipe gives; set it in [shapes.dims]")

    return of(_parsed(text))
