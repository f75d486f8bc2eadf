"""Norms that a graph spells out: means, variances and what they divide, found by structure."""

from __future__ import annotations

import onnx_ir as ir

from msao_compile.graph.precision.operators import LAYOUT, REDUCTIONS, SAME_SHAPE, floats

COMBINES = frozenset({"Sub", "Mul", "Div"})
LEADS = SAME_SHAPE | LAYOUT | {"Sqrt", "Reciprocal", "Pow", "Log", "Exp"}


def constants_only(model: ir.Model) -> set[ir.Node]:
    """Nodes that no input of the graph reaches."""
    found: set[ir.Node] = set()
    for node in model.graph:
        values = [value for value in node.inputs if value is not None]
        if values and all(value.is_initializer() or value.producer() in found for value in values):
            found.add(node)
    return found


def norm_nodes(model: ir.Model) -> set[ir.Node]:
    """The nodes of spelt-out norms: squares, statistics, and what a statistic is taken from or divides.

    A statistic is what a reduction gives, or what is computed from statistics and constants alone.
    """
    constant = constants_only(model)
    statistics: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in model.graph:
        given = [
            value for value in floats(node.inputs) if not value.is_initializer() and value.producer() not in constant
        ]
        if node in constant or not given:
            continue
        leads = node.op_type in LEADS and all(value in statistics for value in given)
        if node.op_type in REDUCTIONS or leads:
            statistics.update(floats(node.outputs))
            found.add(node)
        elif _is_summed_square(node) or (node.op_type in COMBINES and any(value in statistics for value in given)):
            found.add(node)
    return found


def _is_summed_square(node: ir.Node) -> bool:
    is_square = node.op_type == "Pow" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])
    return is_square and all(user.op_type in REDUCTIONS for user in node.outputs[0].consumers())
