"""Key-value state updated in place: one buffer of full capacity per state instead of a longer copy for every step.

`Concat(past, new)` becomes `TensorScatter(past, new, write_indices)`, whose output may lie where its input does. What
the graph took from the past's length has to change its meaning with it: positions still count what is *held*
(`write_indices`), and keys are as many as the buffer is long, a number that TensorRT wants to stand in the graph. Which
of the graph's numbers mean what is found by computing them for several lengths, not by the names of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from msao_compile.manifest.schema import GROWS

WRITE_INDICES = "write_indices"
OPSET = 24  # the first that has TensorScatter
_BATCH, _SEQUENCE, _HELD, _TOTAL = "batch_size", "sequence_length", GROWS, "total_sequence_length"
_PROBES = ((2, 3, 11), (3, 5, 7), (1, 13, 29), (5, 2, 17))  # batch, sequence, held: no sum or product is another's
_ARITHMETIC = frozenset(
    ("Squeeze", "Unsqueeze", "Gather", "Add", "Sub", "Mul", "Div", "Mod", "Concat", "Reshape", "Slice", "Cast", "Neg",
     "Max", "Min", "Identity", "Floor", "Ceil")
)  # fmt: skip


def scatter_state(
    model: ir.Model, states: list[dict[str, Any]], capacity: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Update every growing state in place, in a buffer of `capacity` positions, or none.

    After: the states as the manifest tells of them, and None or why they still grow by concatenation. The graph takes
    `write_indices` [batch_size] as well, and its `attention_mask` is [batch_size, capacity].
    """
    ends = {str(value.name): value for value in (*model.graph.inputs, *model.graph.outputs)}
    growing = [state for state in states if state["update"] == "concat"]
    concats = [_concat_of(ends, state) for state in growing]
    lengths = _lengths(model)
    if not growing:
        return states, None
    if any(node is None for node in concats):
        return states, "a state is not what came before with the new positions behind it"
    if strange := next((name for name, meaning in lengths.items() if meaning == "other"), None):
        return states, f"{strange} depends on the past's length in another way than a position or a size does"
    indices = _tell_what_is_held(model, lengths, capacity)
    ends["attention_mask"].shape = ir.Shape([_BATCH, capacity])
    for state, node in zip(growing, concats, strict=True):
        assert node is not None  # told above
        past, axis = ends[state["name"]], state["shape"].index(GROWS)
        past.shape = ir.Shape([capacity if place == axis else size for place, size in enumerate(past.shape or ())])
        _write_in_place(model, past, node, indices, axis)
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports[""] = OPSET
    return [_in_place(state, capacity) if state in growing else state for state in states], None


def _in_place(state: dict[str, Any], capacity: int) -> dict[str, Any]:
    shape = [capacity if size == GROWS else size for size in state["shape"]]
    return {**state, "update": "in_place", "shape": shape}


def _concat_of(ends: Mapping[str, ir.Value], state: Mapping[str, Any]) -> ir.Node | None:
    """The node that puts the new positions behind a state, where nothing else makes it longer."""
    past, node = ends[state["name"]], ends[state["output"]].producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or node.inputs[0] is not past:
        return None
    axis, rank = node.attributes["axis"].as_int(), len(state["shape"])
    others = [use.node for use in past.uses() if use.node is not node and use.node.op_type != "Shape"]
    return node if axis % rank == state["shape"].index(GROWS) and not others else None


def _lengths(model: ir.Model) -> dict[str, str]:
    """What each number that follows from the past's length means: `held`, `total`, `parts` of those, or `other`."""
    runs = [_numbers(model, *probe) for probe in _PROBES]
    found = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        meanings = {
            _meaning(np.array([value.flat[index] for value in values])) for index in range(values[0].size)
        } - {"free"}  # fmt: skip
        if not meanings:
            continue
        single = values[0].size == 1 and len(meanings) == 1
        found[name] = meanings.pop() if single else "other" if "other" in meanings else "parts"
    return found


def _meaning(values: np.ndarray) -> str:
    """What one number is, of its values at the probes; `free` where the past's length does not matter."""
    batch, sequence, held = (np.array(column) for column in zip(*_PROBES, strict=True))
    if np.array_equal(values, held):
        return "held"
    if np.array_equal(values, held + sequence):
        return "total"
    apart = np.stack([batch, sequence, batch * sequence, np.ones_like(batch)], 1).astype(float)
    # Four probes fit four numbers always: a number is free of the past where small whole factors give it.
    factors = np.linalg.solve(apart, values.astype(float))
    whole = np.allclose(factors, np.round(factors), atol=1e-6) and np.abs(factors).max() < 1e6
    return "free" if whole else "other"


def _numbers(model: ir.Model, batch: int, sequence: int, held: int) -> dict[str, np.ndarray]:
    """Every whole number that follows from lengths alone, at one choice of them."""
    shapes = _shapes(model, {_BATCH: batch, _SEQUENCE: sequence, _HELD: held, _TOTAL: held + sequence})
    known: dict[ir.Value, np.ndarray] = {}
    for node in model.graph:
        found = _shape_of(node, shapes) if node.op_type == "Shape" else _computed(node, known)
        if found is not None:
            known[node.outputs[0]] = found
    return {str(value.name): found for value, found in known.items()}


def _shapes(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, list[int | None]]:
    """The shape of every value where the inputs' lengths are `sizes`, by ONNX's own inference."""
    import onnx

    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    found = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*found.input, *found.value_info, *found.output)
        if value.type.tensor_type.HasField("shape")
    }


def _shape_of(node: ir.Node, shapes: Mapping[str, list[int | None]]) -> np.ndarray | None:
    dims = shapes.get(str(node.inputs[0].name), [None]) if node.inputs[0] is not None else [None]
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    chosen = dims[start.as_int() if start else None : end.as_int() if end else None]
    return None if None in chosen else np.array(chosen, np.int64)


def _computed(node: ir.Node, known: Mapping[ir.Value, np.ndarray]) -> np.ndarray | None:
    """One step of whole-number arithmetic; None where it is not that or reads what is not known."""
    if node.op_type not in _ARITHMETIC or node.domain or not any(value in known for value in node.inputs):
        return None
    given = []
    for value in node.inputs:
        if value is None or (value not in known and value.const_value is None):
            return None
        given.append(known[value] if value in known else value.const_value.numpy())  # type: ignore[union-attr]
    if any(array.dtype.kind not in "iu" for array in given):
        return None
    return np.asarray(_evaluate(node, given))


def _evaluate(node: ir.Node, given: list[np.ndarray]) -> np.ndarray:
    """A node's value by ONNX's own reference implementation."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = [f"x{index}" for index in range(len(given))]
    alone = onnx.NodeProto(op_type=node.op_type, input=names, output=["y"])
    alone.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, given, strict=True)
    ]
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None)
    graph = onnx.helper.make_graph([alone], "one", inputs, [result])
    single = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    [found] = ReferenceEvaluator(single).run(None, dict(zip(names, given, strict=True)))
    return np.asarray(found)


def _tell_what_is_held(model: ir.Model, lengths: Mapping[str, str], capacity: int) -> ir.Value:
    """Numbers that meant what is held read `write_indices`, which is given back; those of all positions are `capacity`.

    All rows of a batch hold the same: they are padded to one length.
    """
    indices = ir.Value(name=WRITE_INDICES, shape=ir.Shape([_BATCH]), type=ir.TensorType(ir.DataType.INT64))
    made = _sources(model, indices, capacity)
    for node in list(model.graph):
        for value in node.outputs:
            meaning = lengths.get(str(value.name))
            if meaning in ("held", "total"):
                value.replace_all_uses_with(made[meaning, _rank(value)])
    model.graph.inputs.append(indices)
    return indices


def _rank(value: ir.Value) -> int:
    """0 or 1 of a single number, as its producer makes it."""
    node = value.producer()
    assert node is not None  # it is computed
    if node.op_type in ("Shape", "Concat", "Slice", "Unsqueeze", "Reshape"):
        return 1
    if node.op_type == "Squeeze":
        return 0
    if node.op_type == "Gather":
        index = node.inputs[1]
        return 1 if index is not None and index.const_value is not None and index.const_value.numpy().ndim else 0
    return max((_rank(one) for one in node.inputs if one is not None and one.producer() is not None), default=0)


def _sources(model: ir.Model, indices: ir.Value, capacity: int) -> dict[tuple[str, int], ir.Value]:
    """The two numbers, each as a scalar and as a vector of one."""

    def constant(name: str, value: int | list[int]) -> ir.Value:
        tensor = ir.tensor(value, ir.DataType.INT64, name=name)
        held = ir.Value(
            name=name,
            const_value=tensor,
            shape=ir.Shape([1] if isinstance(value, list) else []),
            type=ir.TensorType(ir.DataType.INT64),
        )
        model.graph.initializers[name] = held
        return held

    zero, one = constant("scatter_zero", [0]), constant("scatter_one", [1])
    vector = ir.node("Slice", [indices, zero, one, zero], name="scatter_held_vector")
    scalar = ir.node("Squeeze", [vector.outputs[0], zero], name="scatter_held_scalar")
    for node in (vector, scalar):
        node.outputs[0].name, node.outputs[0].type = f"{node.name}_value", ir.TensorType(ir.DataType.INT64)
    model.graph.insert_before(next(iter(model.graph)), [vector, scalar])
    return {
        ("held", 1): vector.outputs[0],
        ("held", 0): scalar.outputs[0],
        ("total", 1): constant("scatter_capacity_vector", [capacity]),
        ("total", 0): constant("scatter_capacity_scalar", capacity),
    }


def _write_in_place(model: ir.Model, past: ir.Value, node: ir.Node, indices: ir.Value, axis: int) -> None:
    old = node.outputs[0]
    written = ir.node(
        "TensorScatter", [past, node.inputs[1], indices], {"axis": axis, "mode": "linear"}, name=f"{old.name}.scatter"
    )
    value = written.outputs[0]
    value.name, value.type, value.shape = old.name, past.type, past.shape
    model.graph.insert_before(node, written)
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
