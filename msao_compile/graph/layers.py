"""Layers that repeat: a stub stands for each while the model around them is traced; equal ones are traced once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache

from msao_compile.errors import ShapeSpecialised, StageError
from msao_compile.graph.attend import Setting
from msao_compile.graph.cut import NAME, symbols
from msao_compile.graph.whole import (
    LAYER_DOMAIN,
    Call,
    Seen,
    Subject,
    Tensors,
    empty_like,
    plain,
    prepared,
    shapes_of,
    states_for,
    trace,
)
from msao_compile.symbolic import zeros

_IGNORED = {"layer_idx", "training", "layer_id", "idx"}


class EveryLayerCalledError(Exception):
    """Ends a run that was only to learn what the layers are called with: what follows them costs memory."""


class Stub:
    """Stands for one layer's forward and remembers what it was called with; `once` is what one run calls it with."""

    def __init__(self, path: str, layer: nn.Module, once: Sequence[Call]) -> None:
        self.path, self.layer, self.once = path, layer, once
        self.calls: list[Call] = []
        self.stops: Callable[[], bool] = lambda: False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors, first, _ = flatten_call(args, kwargs)
        place = len(self.calls) % len(self.once)
        tail = self.once[place].tail
        self.calls.append(Call(*shapes_of(args, kwargs), True, tail))
        if self.stops():
            raise EveryLayerCalledError
        known = torch.compiler.is_exporting()
        output = self._node(tensors, first, place) if known else zeros(first.shape, first.dtype)
        return output if tail is None else (output, *tail)

    def _node(self, tensors: list[torch.Tensor], first: torch.Tensor, place: int) -> torch.Tensor:
        told: dict[str, Any] = {"path": self.path, "call": place}
        return torch.onnx.ops.symbolic(
            f"{LAYER_DOMAIN}::Layer", tensors, told, dtype=first.dtype, shape=first.shape, version=1
        )

    def examples(self, place: int) -> tuple[Call, Call]:
        """One call of a run as each of two runs made it."""
        return self.calls[place], self.calls[len(self.once) + place]


def all_called(stubs: Iterable[Stub]) -> bool:
    """Whether the stubs have been called for whole runs, and all for as many."""
    runs = {divmod(len(stub.calls), len(stub.once)) for stub in stubs}
    return len(runs) == 1 and runs.pop()[1] == 0


def flatten_call(args: Any, kwargs: Any) -> tuple[list[torch.Tensor], torch.Tensor, Any]:
    """The tensors of a layer call in order, the first argument, and how to put others in their places.

    A cache among them is rebuilt as what the second argument of `rebuild` gives.
    """
    leaves, tree = pytree.tree_flatten((args, kwargs))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    first = args[0] if args else kwargs["hidden_states"]

    def rebuild(tensors: Sequence[torch.Tensor], cache: Cache | None) -> tuple[Any, Any]:
        filled = [cache if isinstance(leaf, Cache) else leaf for leaf in leaves]
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        rebuilt: tuple[Any, Any] = pytree.tree_unflatten(filled, tree)
        return rebuilt

    return [leaves[place] for place in places], first, rebuild


@contextlib.contextmanager
def stubbed(stubs: Mapping[str, Stub]) -> Iterator[None]:
    """Let the stubs answer for their layers; hooks on the layers still run."""
    with contextlib.ExitStack() as stack:
        for stub in stubs.values():
            stack.enter_context(patch.dict(vars(stub.layer), {"forward": stub}))
        yield


def stubs_for(subject: Subject, seen: Seen) -> dict[str, Stub]:
    """A stub for each layer of every stack in which a layer occurs at least twice."""
    found: dict[str, Stub] = {}
    for layers in seen.stacks(subject.model).values():
        parts = {path: subject.model.get_submodule(path) for path in layers}
        signatures = {
            tuple(signature(part, call, _kinds(seen, path)) for call in seen.calls[path][0])
            for path, part in parts.items()
        }
        nested = any(path.startswith(f"{other}.") for path in layers for other in found)
        if len(signatures) < len(layers) and not nested:
            found |= {path: Stub(path, part, seen.calls[path][0]) for path, part in parts.items()}
    return found


def _kinds(seen: Seen, path: str) -> tuple[Any, ...]:
    """The state tensors of one layer, without the layer's number."""
    own = seen.asks.get(path, ())
    return tuple((state.kind, state.shape, state.axis) for state in seen.states.values() if state.layer in own)


def signature(layer: nn.Module, call: Call, state: tuple[Any, ...]) -> str:
    """Equal for two layers exactly when the same traced graph serves both.

    Covers module types, parameter shapes, buffers, every plain attribute and function (but the layer's own index), the
    state and the call's structure.
    """
    facts: list[Any] = []
    for name, part in layer.named_modules():
        attributes = {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, int | float | str | bool | tuple) and key not in _IGNORED and key[0] != "_"
        }
        functions = {key: value.__qualname__ for key, value in vars(part).items() if hasattr(value, "__qualname__")}
        facts.append((name, type(part).__qualname__, sorted(map(repr, [*attributes.items(), *functions.items()]))))
    facts += [(name, tuple(value.shape)) for name, value in layer.named_parameters()]
    buffers = [(name, tuple(value.flatten().tolist())) for name, value in layer.named_buffers()]
    leaves, tree = pytree.tree_flatten((call.args, call.kwargs))
    given = [_shape_of(leaf) for leaf in leaves]
    return repr((facts, buffers, given, str(tree), state))


def varying(one: Call, other: Call) -> tuple[Any, ...]:
    """Of each axis of a call's tensors its size where both examples have it, else which of the lengths it is."""
    pairs: dict[tuple[int, int], str] = {}
    first, second = (flatten_call(call.args, call.kwargs)[0] for call in (one, other))
    return tuple(
        tuple(size if size == than else pairs.setdefault((size, than), f"s{len(pairs)}") for size, than in both)
        for both in (
            tuple(zip(tensor.shape, like.shape, strict=True)) for tensor, like in zip(first, second, strict=True)
        )
    )


def _shape_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.ndim, str(leaf.dtype)
    return "cache" if isinstance(leaf, Cache) else leaf


def trace_layer(
    subject: Subject, seen: Seen, stub: Stub, place: int, setting: Setting, past: int
) -> tuple[ir.Model, list[str], list[str]]:
    """Trace one layer as it is called at one place of a run: an axis that differs between two runs is dynamic.

    Graph inputs: the layer's parameters, then its tensors in call order, then its state. Outputs: what it answers, then
    its state. Returns the graph, the parameters' names and the state's names.
    """
    one, other = stub.examples(place)
    shapes, _, rebuild = flatten_call(one.args, one.kwargs)
    tensors = [zeros(shape.shape, shape.dtype) for shape in shapes]
    others, _, _ = flatten_call(other.args, other.kwargs)
    own = seen.asks.get(stub.path, ())
    states = {name: state for name, state in seen.states.items() if state.layer in own}
    batch = subject.examples[0][subject.tokens].shape[0] if subject.tokens is not None else 1

    def body(parameters: Tensors, values: Tensors) -> Any:
        given = {name: values[name] for name in states}
        first = values["t0"]
        cache = states_for(subject.model, past, first.shape[1], given, setting.raw) if states else None
        setting.states = plain(cache) if cache is not None else None
        args, kwargs = rebuild([values[f"t{index}"] for index in range(len(tensors))], cache)
        output = torch.func.functional_call(stub.layer, parameters, args, kwargs, tie_weights=False)
        output = output[0] if isinstance(output, tuple) else output
        left = setting.states.left if setting.states is not None else {}
        missing = [name for name in states if name not in left]
        if missing:
            raise StageError(f"layer {stub.path} left no {missing[0]}")
        return (output, *(left[name] for name in states)) if states else output

    inputs = {f"t{index}": tensor for index, tensor in enumerate(tensors)}
    dynamic: dict[str, Any] = {
        name: {axis: torch.export.Dim.AUTO for axis in range(tensor.ndim) if tensor.shape[axis] != like.shape[axis]}
        for (name, tensor), like in zip(inputs.items(), others, strict=True)
    }
    for name, state in states.items():
        inputs[name] = state.example(batch, past)
        dynamic[name] = {0: torch.export.Dim.AUTO}
        if state.axis is not None:
            dynamic[name][state.axis] = torch.export.Dim.AUTO
    parameters = {name: empty_like(value) for name, value in stub.layer.state_dict(keep_vars=True).items()}
    with prepared(subject, setting):
        model = trace(body, parameters, inputs, dynamic, setting.dialect)
    for value in model.graph.inputs[len(parameters) : len(parameters) + len(tensors)]:
        refuse_fixed(value, dynamic[str(value.name)], f" of layer {stub.path}")
    return model, list(parameters), list(states)


def refuse_fixed(value: ir.Value, varying: Iterable[int], where: str = "") -> None:
    """
    Raises:
        ShapeSpecialised: an axis of an input that varies came out of a trace as a number.
    """
    for axis in varying:
        size = value.shape[axis] if value.shape is not None else None
        if isinstance(size, int) or str(getattr(size, "value", "")).isdecimal():  # torch may say "2" for 2
            raise ShapeSpecialised(f"input {value.name!r}{where}: axis {axis} came out as {size} where it should vary")


def as_function(model: ir.Model, name: str) -> ir.Function:
    """A traced layer as an ONNX function: constants inside, everything else an input."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        constant = ir.node("Constant", [], {"value": value.const_value}, name=f"const_{value.name}")
        constant.outputs[0].name = f"{value.name}_constant"
        constant.outputs[0].type, constant.outputs[0].shape = value.type, value.shape
        value.replace_all_uses_with(constant.outputs[0])
        graph.insert_before(graph[0], constant)
    graph.initializers.clear()
    return ir.Function(LAYER_DOMAIN, name, graph=graph, attributes=[])


def placed(function: ir.Function, called: str, given: Sequence[ir.Value]) -> ir.Function:
    """The function as it is called under a name of its own: its lengths are those of the tensors it is given there.

    A length made of one that the trace around the call does not know has no name.
    """
    copy = function.clone()
    lengths: dict[str, int | str | None] = {}
    for taken, value in zip(copy.inputs, given, strict=True):
        for own, size in zip(taken.shape or (), value.shape or (), strict=False):
            if not isinstance(own, int) and own.value is not None:
                lengths.setdefault(own.value, size if isinstance(size, int) else size.value)
    for node in copy:
        for output in node.outputs:
            if output.shape is not None:
                sizes = [size if isinstance(size, int) else _outside(size.value, lengths) for size in output.shape]
                output.shape = ir.Shape(sizes)
    return ir.Function(copy.domain, copy.name, called, graph=copy.graph, attributes=list(copy.attributes.values()))


def _outside(length: str | None, lengths: Mapping[str, int | str | None]) -> int | str | None:
    """A length of a layer's trace in the lengths around its call."""
    if length is None or any(lengths.get(name) is None for name in symbols(length)):
        return None
    if length in lengths:
        return lengths[length]

    def said(found: re.Match[str]) -> str:
        other = str(lengths[found[0]])
        return other if re.fullmatch(r"\w+", other) else f"({other})"

    return re.sub(NAME, said, length)
