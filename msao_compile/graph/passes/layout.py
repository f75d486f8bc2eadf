"""Remove layout changes that undo each other or change nothing: Transpose of Transpose, Reshape of Reshape."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common


def cancel_layouts(model: ir.Model) -> None:
    """After: no Transpose feeds a Transpose that inverts it, no Reshape with a constant-free shape feeds a Reshape."""
    for node in list(model.graph):
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if source is None or source.op_type != node.op_type or source.inputs[0] is None:
            continue
        if node.op_type == "Transpose":
            outer, inner = node.attributes["perm"].as_ints(), source.attributes["perm"].as_ints()
            undone = [inner[axis] for axis in outer] == list(range(len(outer)))
            if undone and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(source.inputs[0])
        elif node.op_type == "Reshape" and not _copies_axes(node):
            node.replace_input_with(0, source.inputs[0])
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.inputs[0] is not None and _same_shape(node.inputs[0], node.outputs[0]):
            node.outputs[0].replace_all_uses_with(node.inputs[0])
    common.RemoveUnusedNodesPass()(model)


def _same_shape(before: ir.Value, after: ir.Value) -> bool:
    """Equal numbers and equal symbols, and nothing unknown: tracing named equal lengths alike."""
    if before.shape is None or after.shape is None or after.is_graph_output():
        return False
    sizes = [[size if isinstance(size, int) else size.value for size in shape] for shape in (before.shape, after.shape)]
    return sizes[0] == sizes[1] and None not in sizes[0]


def _copies_axes(node: ir.Node) -> bool:
    """A 0 in the target shape means "as in the input", which would change meaning with another input."""
    shape = node.inputs[1].const_value if node.inputs[1] is not None else None
    if shape is None:
        return node.inputs[1] is None or not _built_without_zero(node.inputs[1])
    return bool((shape.numpy() == 0).any())


def _built_without_zero(shape: ir.Value) -> bool:
    producer = shape.producer()
    if producer is None or producer.op_type != "Concat":
        return False
    parts = [part.const_value for part in producer.inputs if part is not None and part.const_value is not None]
    return all(not (part.numpy() == 0).any() for part in parts)
