"""One model in one dialect: trace what is around the layers, put traced layers in their places, cut, name the ends."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import nn

from msao_compile.errors import ShapeSpecialised, StageError
from msao_compile.graph.attend import Setting
from msao_compile.graph.cut import NAME, STEP, cut
from msao_compile.graph.layers import (
    EveryLayerCalledError,
    Stub,
    all_called,
    as_function,
    placed,
    refuse_fixed,
    signature,
    stubbed,
    stubs_for,
    trace_layer,
    varying,
)
from msao_compile.graph.selections import Sites, mark
from msao_compile.graph.state import StateTensor
from msao_compile.graph.whole import (
    LAYER_DOMAIN,
    LOGITS_POSITIONS,
    Seen,
    Subject,
    Tensors,
    call,
    empty_like,
    prepared,
    trace,
)
from msao_compile.manifest.schema import Dialect

logger = logging.getLogger(__name__)
PAST = 11  # positions known already in the first example of a trace; unlike every other length
MASK = "attention_mask"
SHARED = ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length", "text_sequence_length")
"""Lengths that are one for all inputs of a request; another name stands for one symbol."""
CHANCE = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
LIMIT = re.compile(r"\b((?:past_)?sequence_length) = Dim\('\1'(?:, min=(\d+))?(?:, max=(\d+))?\)")
"""How torch says that a table of positions ends."""


def export(subject: Subject, seen: Seen, dialect: Dialect, needs: Mapping[str, str]) -> dict[str, ir.Model]:
    """The modules of a model as ONNX IR whose weights are initialisers without values, named as in the model.

    Raises:
        StageError: torch cannot trace it. ShapeSpecialised: an axis that varies came out as a number.
    """
    raw = seen.fusible if dialect == "fused" else frozenset()
    setting = Setting(dialect, raw=raw, rotary=seen.rotary, sites=Sites(everything=seen.everything))
    stubs = stubs_for(subject, seen)
    whole, lengths = _frame(subject, seen, setting, stubs)
    _fill(whole, subject, seen, setting, stubs)
    _weights_to_initializers(whole.graph, set(subject.model.state_dict()))
    _clean(whole)
    _refuse_chance(whole.graph)
    _name_lengths(whole.graph, lengths)
    return cut(whole, {**needs, **dict.fromkeys(seen.states, STEP), LOGITS_POSITIONS: STEP})


def _with_past(subject: Subject, seen: Seen, which: int) -> tuple[Tensors, Tensors]:
    """The example as a later step of an answer sees it, and its state."""
    values = dict(subject.examples[which])
    if subject.tokens is None:
        return values, {}
    batch = values[subject.tokens].shape[0]
    past = _past(subject, which)
    mask = values.get(MASK)
    if mask is not None and subject.names[MASK][-1] == "total_sequence_length":
        values[MASK] = torch.cat([torch.ones(batch, past, dtype=mask.dtype), mask], 1)
    values[LOGITS_POSITIONS] = torch.arange(3 + which)  # few: logits of a whole prompt are larger than all else
    return values, {name: state.example(batch, past) for name, state in seen.states.items()}


def _past(subject: Subject, which: int) -> int:
    """Positions known already; the two examples then differ in them and in the sum with those that are new."""
    lengths = [example[str(subject.tokens)].shape[1] for example in subject.examples]
    return PAST + which * (abs(lengths[0] - lengths[1]) + 2)


def _frame(
    subject: Subject, seen: Seen, setting: Setting, stubs: Mapping[str, Stub]
) -> tuple[ir.Model, dict[str, str]]:
    """The whole model with a stub node for each stubbed layer, and the names of its lengths by symbol.

    The stubs then know the calls of two runs.
    """
    hidden = tuple(f"{path}." for path in stubs)
    named = subject.model.state_dict(keep_vars=True)  # what a checkpoint holds: parameters, and buffers that are kept
    own = {name: empty_like(value) for name, value in named.items() if not name.startswith(hidden or ("\0",))}
    one, other = ({**values, **states} for values, states in (_with_past(subject, seen, which) for which in (0, 1)))
    outside = [
        name for name, state in seen.states.items() if not any(state.layer in seen.asks.get(p, ()) for p in stubs)
    ]
    holder = _Holder(subject, setting, outside)
    with stubbed(stubs), prepared(subject, setting), _entrance(subject.model, seen):

        def body(parameters: Tensors, inputs: Tensors) -> Any:
            prefixed = {f"model.{name}": value for name, value in parameters.items()}
            return torch.func.functional_call(holder, prefixed, (inputs,), tie_weights=False)

        dynamic = _dynamic(subject, seen, (one, other), {})
        try:
            graph = trace(body, own, one, dynamic, setting.dialect)
        except StageError as error:
            limits = _limits(error)
            if not limits:
                raise
            dynamic = _dynamic(subject, seen, (one, other), limits)
            logger.info("lengths have limits: %s", limits)
            _forget_calls(stubs)
            graph = trace(body, own, one, dynamic, setting.dialect)
        _forget_calls(stubs)  # those of the trace held symbolic tensors; the next ones are concrete
        for stub in stubs.values():
            stub.stops = lambda: all_called(stubs.values())
        for example in (one, other) if stubs else ():
            with contextlib.suppress(EveryLayerCalledError):
                body({name: named[name] for name in own}, example)
    axes = {**subject.names, **{name: _state_axes(state) for name, state in seen.states.items()}}
    lengths = _lengths(graph.graph, axes, dynamic, (one, other))
    names = ["logits", *(f"present{name.removeprefix('past_key_values')}" for name in outside)]
    for value, name in zip(graph.graph.outputs, names if subject.tokens else subject.outputs, strict=True):
        value.name = name
    return graph, lengths


def _limits(error: BaseException | None) -> dict[str, dict[str, int]]:
    """By the name of a length, the bounds that torch asks for in what it raised."""
    found: dict[str, dict[str, int]] = {}
    while error is not None:
        for name, least, most in LIMIT.findall(str(error)):
            found[name] = {key: int(bound) for key, bound in (("min", least), ("max", most)) if bound}
        error = error.__cause__
    return found


def _forget_calls(stubs: Mapping[str, Stub]) -> None:
    for stub in stubs.values():
        stub.calls.clear()


class _Holder(nn.Module):
    """Calls the model with state among its inputs; gives the logits and the state of layers that have no stub."""

    def __init__(self, subject: Subject, setting: Setting, outside: list[str]) -> None:
        super().__init__()
        self.model = subject.model
        self.subject, self.setting, self.outside = subject, setting, outside

    def forward(self, inputs: Tensors) -> Any:
        states = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
        values = {name: value for name, value in inputs.items() if name not in states}
        found = call(self.subject, self.setting, values, states, self._past(values, states))
        if self.subject.tokens is None:
            return tuple(found.values())
        return (found["logits"], *(found["states"].left[name] for name in self.outside))

    def _past(self, values: Tensors, states: Tensors) -> int:
        """Positions known already; a buffer's length says nothing of them, so that a mask of all is asked first."""
        names = self.subject.names.get(MASK, ("",))
        if self.subject.tokens is not None and names[-1] == "total_sequence_length" and MASK in values:
            return values[MASK].shape[1] - values[self.subject.tokens].shape[1]
        growing = (value.shape[2] for name, value in states.items() if name.endswith(".key"))
        return next(growing, 0)


def _entrance(model: nn.Module, seen: Seen) -> Any:
    """Draw the decoder's border before the first layer with state: its norm and projections belong to it."""

    @contextlib.contextmanager
    def hooked() -> Any:
        if seen.entrance is None:
            yield
            return

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (mark(args[0], STEP), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": mark(kwargs["hidden_states"], STEP)}

        handle = model.get_submodule(seen.entrance).register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    return hooked()


def _dynamic(
    subject: Subject, seen: Seen, examples: tuple[Tensors, Tensors], limits: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[int, Any]]:
    """Which axes of which inputs vary: those that differ between the examples, and the positions of state."""
    sequence, past = (
        torch.export.Dim(name, **limits.get(name, {})) for name in ("sequence_length", "past_sequence_length")
    )
    found: dict[str, dict[int, Any]] = {}
    one, other = examples
    for name, value in one.items():
        if name in seen.states:
            continue
        axes = [axis for axis in range(value.ndim) if value.shape[axis] != other[name].shape[axis]]
        named = subject.names.get(name, ())
        found[name] = {
            axis: sequence if axis < len(named) and named[axis] == "sequence_length" else torch.export.Dim.AUTO
            for axis in axes
        }
    varies = subject.tokens is not None and 0 in found[subject.tokens]
    for name, state in seen.states.items():
        found[name] = {0: torch.export.Dim.AUTO} if varies else {}
        if state.axis is not None:
            found[name][state.axis] = past
    return found


def _state_axes(state: StateTensor) -> tuple[str, ...]:
    """The names of a state tensor's axes."""
    names = {0: "batch_size", state.axis: "past_sequence_length"}
    return tuple(names.get(axis, "") for axis in range(len(state.shape)))


def _lengths(
    graph: ir.Graph,
    names: Mapping[str, tuple[str, ...]],
    dynamic: Mapping[str, Mapping[int, Any]],
    examples: tuple[Tensors, Tensors],
) -> dict[str, str]:
    """The name of each symbol that an axis of an input has; two symbols share a name only where users know it.

    Raises:
        ShapeSpecialised: an axis that was to vary came out as a number, or as another's length where the examples
            show that it is not: the trace saw one of them, in which they may be equal by chance.
    """
    found: dict[str, str] = {}
    bound: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for value in graph.inputs:
        name = str(value.name)
        own = dict(enumerate(names.get(name, ())))
        refuse_fixed(value, dynamic.get(name, {}))
        for axis in dynamic.get(name, {}):
            size = value.shape[axis] if value.shape is not None else None
            symbol = size.value if isinstance(size, ir.SymbolicDim) else None
            if symbol is None:
                continue
            for known, example in zip(bound, examples, strict=True):
                if known.setdefault(symbol, example[name].shape[axis]) != example[name].shape[axis]:
                    raise ShapeSpecialised(f"input {name!r}: axis {axis} came out as long as another, which it is not")
            named = own.get(axis, "")
            taken = named not in SHARED and named in found.values()
            found.setdefault(symbol, named if named and not taken else f"{name}_axis{axis}")
    return found


def _name_lengths(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Symbols of the trace by their names, in every value; what has another origin keeps torch's own."""
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else size.value for size in value.shape]
            value.shape = ir.Shape([_renamed(size, names) if isinstance(size, str) else size for size in sizes])


def _renamed(length: str, names: Mapping[str, str]) -> str:
    return re.sub(NAME, lambda found: names.get(found[0], found[0]), length)


def _fill(whole: ir.Model, subject: Subject, seen: Seen, setting: Setting, stubs: Mapping[str, Stub]) -> None:
    """Replace every stub node by a call of its traced layer with that layer's own weights and state."""
    graph = whole.graph
    traced: dict[tuple[str, tuple[Any, ...]], tuple[ir.Function, list[str], list[str]]] = {}
    for node in [node for node in graph if node.domain == LAYER_DOMAIN]:
        stub, place = stubs[node.attributes["path"].as_string()], node.attributes["call"].as_int()
        own = tuple(name for name, state in seen.states.items() if state.layer in seen.asks.get(stub.path, ()))
        kinds = tuple((seen.states[name].kind, seen.states[name].shape[1:]) for name in own)
        one, other = stub.examples(place)
        key = signature(stub.layer, one, kinds), varying(one, other)
        if key not in traced:
            model, names, states = trace_layer(subject, seen, stub, place, setting, PAST)
            traced[key] = (as_function(model, f"Layer{len(traced)}"), names, states)
        _instantiate(whole, node, traced[key], stub, own)
    logger.debug("%d distinct layers traced for %d", len(traced), len(stubs))


def _instantiate(
    whole: ir.Model, node: ir.Node, traced: tuple[ir.Function, list[str], list[str]], stub: Stub, own: tuple[str, ...]
) -> None:
    function, names, _ = traced
    graph = whole.graph
    weights = [_input(graph, f"{stub.path}.{name}") for name in names]
    tensors = [value for value in node.inputs if value is not None]
    states = [_input(graph, name) for name in own]
    if len(function.inputs) != len(weights) + len(tensors) + len(states):
        raise StageError(f"layer {stub.path}: traced with {len(function.inputs)} inputs where it is called with others")
    given = [*weights, *tensors, *states]
    place = node.attributes["call"].as_int()
    name = stub.path if place == 0 else f"{stub.path}.{place}"
    function = placed(function, name, given)
    whole.functions[function.identifier()] = function
    called = ir.Node(LAYER_DOMAIN, function.name, given, overload=name, num_outputs=1 + len(states), name=name)
    called.outputs[0].name = f"{name}.output"
    for state, value, past in zip(own, called.outputs[1:], states, strict=True):
        value.name = f"present{state.removeprefix('past_key_values')}"
        value.type = past.type
        graph.outputs.append(value)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [called], node.outputs, called.outputs[:1])


def _input(graph: ir.Graph, name: str) -> ir.Value:
    held = next((value for value in graph.inputs if value.name == name), None)
    if held is None:
        held = ir.Value(name=name)
        graph.inputs.append(held)
    return held


def _weights_to_initializers(graph: ir.Graph, names: set[str]) -> None:
    for value in [value for value in graph.inputs if value.name in names]:
        graph.inputs.remove(value)
        if value.uses():
            graph.initializers[str(value.name)] = value


def _refuse_chance(graph: ir.Graph) -> None:
    drawn = next((node.op_type for node in graph if node.op_type in CHANCE), None)
    if drawn is not None:
        raise StageError(f"the model draws random numbers ({drawn}): no two runs of it would give the same")


def _clean(model: ir.Model) -> None:
    passes = ir.passes.Sequential(
        common.InlinePass(),
        common.RemoveUnusedFunctionsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),  # the layers' equal constants; weights have no values yet
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
    )
    passes(model)
