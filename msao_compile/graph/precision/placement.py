"""Which nodes of a graph stay in fp32 when the rest goes to half: found by what they compute, not by their names."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from msao_compile.graph.precision import blocks
from msao_compile.graph.precision.norms import norm_nodes
from msao_compile.graph.precision.operators import (
    EXACT,
    FLOAT,
    FOLLOWS,
    SAME_SHAPE,
    SUMS,
    TABLE,
    allows,
    constant,
    floats,
)
from msao_compile.graph.precision.plan import LARGEST, SMALLEST

RESHAPES = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand"})


def exact_nodes(
    model: ir.Model, kind: ir.DataType, keep_fp32: Collection[str], states: Collection[str]
) -> set[ir.Node]:
    """The nodes that compute in fp32: sums, exponentials, norms whole or in parts, angles, positions and islands.

    A node that only moves or combines numbers follows what it is given: fp32 where all of it is fp32, else half. What
    writes a state in place has the state's type, in islands too: engines write into the input itself, not into a cast.
    """
    pinned = _pinned(model, kind, keep_fp32) | _before_sums(model) | norm_nodes(model)
    pinned -= {node for node in model.graph if _writes(node, states)}
    exact: set[ir.Node] = set()
    free: set[ir.Node] = set()
    for node in model.graph:
        given = [value for value in floats(node.inputs) if not _is_free(value, free)]
        if not given and not floats(node.outputs):
            continue
        if node in pinned:
            exact.add(node)
        elif _follows(node):
            in_fp32 = [_is_fp32(value, exact, states) for value in given]
            if not given:
                free.add(node)
            elif all(in_fp32) or (any(in_fp32) and not floats(node.outputs)):
                exact.add(node)
    for node in reversed(list(model.graph)):
        if node in free and not _serves_half(node, exact, free):
            exact.add(node)
        free.discard(node)
    return exact


def _follows(node: ir.Node) -> bool:
    """Whether a node has no type of its own. A table that is looked up has: that is what half is for."""
    if node.op_type == "Gather":
        table = node.inputs[0].const_value if node.inputs[0] is not None else None
        return table is None or table.size < TABLE
    if node.op_type == "QuantizeLinear":
        return False
    return node.domain == "" and (node.op_type in FOLLOWS or not floats(node.outputs))


def _writes(node: ir.Node, states: Collection[str]) -> bool:
    return node.op_type == "TensorScatter" and node.inputs[0] is not None and node.inputs[0].name in states


def _is_free(value: ir.Value, free: set[ir.Node]) -> bool:
    return value.is_initializer() or value.producer() in free


def _is_fp32(value: ir.Value, exact: set[ir.Node], states: Collection[str]) -> bool:
    producer = value.producer()
    return producer in exact if producer is not None else value.name not in states


def _serves_half(node: ir.Node, exact: set[ir.Node], free: set[ir.Node]) -> bool:
    """Whether all who take what is made of constants alone are half."""
    takers = [user for value in node.outputs for user in value.consumers()]
    ends = any(value.is_graph_output() for value in node.outputs)
    return bool(takers) and not ends and all(user not in exact and user.graph is node.graph for user in takers)


def _pinned(model: ir.Model, kind: ir.DataType, keep_fp32: Collection[str]) -> set[ir.Node]:
    opset = model.opset_imports[""]
    of_block = blocks.labels(model) if keep_fp32 else {}
    return {
        node
        for node in model.graph
        if node.op_type in EXACT
        or any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        )
        or _comes_from_integers(node)
        or blocks.inside(of_block.get(node, ""), keep_fp32)
        or _has_unfit_constant(node, kind)
        or not allows(node, opset, kind)
    }


def _comes_from_integers(node: ir.Node) -> bool:
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype != FLOAT


def _has_unfit_constant(node: ir.Node, kind: ir.DataType) -> bool:
    """Whether arithmetic has a constant that half cannot hold: a mask's -3.4e38, a norm's epsilon of 1e-12."""
    if node.op_type not in SAME_SHAPE:
        return False
    return any(unfit(value, kind) for value in floats(node.inputs))


def unfit(value: ir.Value, kind: ir.DataType) -> bool:
    """Whether a small constant overflows a half type, or is all below the numbers that keep their digits."""
    numbers = constant(value)
    if numbers is None or not numbers.size:
        return False
    finite = np.abs(numbers[np.isfinite(numbers)])
    most = float(finite.max(initial=0.0))
    return most > LARGEST[kind] or 0.0 < most < SMALLEST[kind]


def _before_sums(model: ir.Model) -> set[ir.Node]:
    """Arithmetic that only sums and exponentials take: scale and mask before a Softmax, squares before a mean."""
    found: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        if node.domain or node.op_type not in SAME_SHAPE | RESHAPES or not floats(node.outputs):
            continue
        takers = [user for value in node.outputs for user in value.consumers()]
        ends = any(value.is_graph_output() for value in node.outputs)
        sums = all((user.op_type in SUMS and not user.domain) or user in found for user in takers)
        if takers and sums and not ends:
            found.add(node)
    return found
