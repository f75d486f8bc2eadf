"""Give every value its type: casts where fp32 and half meet and nowhere else, constants as they are asked for."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from msao_compile.graph.precision import weights
from msao_compile.graph.precision.operators import FLOAT, LAYOUT, SAME_SHAPE, constant, floats
from msao_compile.graph.precision.placement import exact_nodes
from msao_compile.graph.precision.plan import LARGEST

Casts = dict[tuple[ir.Value, ir.DataType], ir.Value]


def to_half(model: ir.Model, kind: ir.DataType, keep_fp32: Collection[str], states: Collection[str]) -> None:
    """After: products and what lies between them are in `kind`, norms, sums, angles and islands in fp32.

    Inputs and outputs stay float32, but for `states`, which take `kind`.
    """
    _drop_idle_casts(model)
    exact = exact_nodes(model, kind, keep_fp32, states)
    wide = _wide(model, kind)
    nodes = list(model.graph)
    asked = {node: FLOAT if node in exact else kind for node in nodes}
    takes = {node: [value if value in set(floats(node.inputs)) else None for value in node.inputs] for node in nodes}
    given = {value for node in nodes for value in floats(node.outputs)} | set(floats(model.graph.inputs))
    _retype(model, asked, given, kind, states)
    done: Casts = {}
    for node, values in takes.items():
        for place, value in enumerate(values):
            if value is None:
                continue
            if value.is_initializer():
                node.replace_input_with(place, _constant(model, value, asked[node], done))
            elif value.dtype != asked[node]:
                node.replace_input_with(place, _cast(model, value, asked[node], done, value in wide))
    _inner_graphs(model, given, done)
    _ends(model, given, kind, states, done, wide)
    _drop_unused_constants(model)


def _drop_idle_casts(model: ir.Model) -> None:
    for node in list(model.graph):
        source, result = node.inputs[0] if node.op_type == "Cast" else None, node.outputs[0]
        idle = source is not None and source.dtype == FLOAT and result.dtype == FLOAT
        if source is not None and idle and not result.is_graph_output():
            result.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def _retype(
    model: ir.Model,
    asked: dict[ir.Node, ir.DataType],
    given: set[ir.Value],
    kind: ir.DataType,
    states: Collection[str],
) -> None:
    for node, wanted in asked.items():
        for value in node.outputs:
            if value in given:
                value.dtype = wanted
        if node.op_type == "Cast" and node.outputs[0] in given:
            node.attributes["to"] = ir.AttrInt64("to", int(wanted))
    for value in model.graph.inputs:
        if value in given and value.name in states:
            value.dtype = kind


def _wide(model: ir.Model, kind: ir.DataType) -> set[ir.Value]:
    """Values that hold numbers beyond half's range because a constant does: masks."""
    found: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type in SAME_SHAPE | LAYOUT | {"ConstantOfShape"}:
            inputs = floats(node.inputs)
            if any(value in found or _overflows(value, kind) for value in inputs) or _fills_wide(node, kind):
                found.update(floats(node.outputs))
    return found


def _overflows(value: ir.Value, kind: ir.DataType) -> bool:
    numbers = constant(value)
    return numbers is not None and bool((abs(numbers) > LARGEST[kind]).any())


def _fills_wide(node: ir.Node, kind: ir.DataType) -> bool:
    if node.op_type != "ConstantOfShape" or "value" not in node.attributes:
        return False
    return bool((abs(node.attributes["value"].as_tensor().numpy()) > LARGEST[kind]).any())


def _constant(model: ir.Model, value: ir.Value, kind: ir.DataType, done: Casts) -> ir.Value:
    """The constant itself, or its copy in half, made once."""
    if kind == FLOAT:
        return value
    if (value, kind) not in done:
        name = f"{value.name}_{kind.name.lower()}"
        new = ir.Value(name=name, shape=value.shape, type=ir.TensorType(kind))
        tensor = value.const_value
        assert tensor is not None  # a graph without its numbers is refused when it is opened
        new.const_value = weights.cast(tensor, kind, name)
        model.graph.initializers[name] = new
        done[value, kind] = new
    return done[value, kind]


def _cast(model: ir.Model, value: ir.Value, kind: ir.DataType, done: Casts, is_wide: bool) -> ir.Value:
    """The value in another type: one Cast behind where it is made, whoever asks."""
    if (value, kind) in done:
        return done[value, kind]
    added: list[ir.Node] = []
    source = value
    if is_wide and kind != FLOAT:
        source = _clipped(model, value, kind, added)
    node = ir.node("Cast", [source], {"to": int(kind)}, name=f"{value.name}.to_{kind.name.lower()}")
    added.append(node)
    result = node.outputs[0]
    result.name, result.shape, result.dtype = f"{value.name}.{kind.name.lower()}", value.shape, kind
    producer = value.producer()
    if producer is None:
        first = next(iter(model.graph))
        model.graph.insert_before(first, added)
    else:
        model.graph.insert_after(producer, added)
    done[value, kind] = result
    return result


def _clipped(model: ir.Model, value: ir.Value, kind: ir.DataType, added: list[ir.Node]) -> ir.Value:
    """A mask within half's range: as a bare -inf a row of them would be no number after a Softmax."""
    bounds = []
    for side in (-1, 1):
        name = f"{'lowest' if side < 0 else 'highest'}_{kind.name.lower()}"
        if name not in model.graph.initializers:
            bound = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(FLOAT))
            bound.const_value = ir.tensor(side * LARGEST[kind], dtype=FLOAT, name=name)
            model.graph.initializers[name] = bound
        bounds.append(model.graph.initializers[name])
    node = ir.node("Clip", [value, *bounds], name=f"{value.name}.within_{kind.name.lower()}")
    node.outputs[0].name, node.outputs[0].dtype = f"{value.name}.within", FLOAT
    node.outputs[0].shape = value.shape
    added.append(node)
    return node.outputs[0]


def _inner_graphs(model: ir.Model, given: set[ir.Value], done: Casts) -> None:
    """Inner graphs of loops and branches stay in fp32 and take fp32."""
    for value in given:
        for node, place in list(value.uses()):
            if node.graph is not model.graph and value.dtype != FLOAT:
                node.replace_input_with(place, _cast(model, value, FLOAT, done, is_wide=False))


def _ends(
    model: ir.Model,
    given: set[ir.Value],
    kind: ir.DataType,
    states: Collection[str],
    done: Casts,
    wide: set[ir.Value],
) -> None:
    """Outputs in the type that is promised, under their own names."""
    for place, value in enumerate(model.graph.outputs):
        wanted = kind if value.name in states else FLOAT
        if value not in given or value.dtype == wanted:
            continue
        name = str(value.name)
        result = _cast(model, value, wanted, done, value in wide)
        if value.producer() is not None:
            value.name = f"{name}.inner"
        result.name = name
        model.graph.outputs[place] = result


def _drop_unused_constants(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and value not in model.graph.inputs:
            del model.graph.initializers[name]
