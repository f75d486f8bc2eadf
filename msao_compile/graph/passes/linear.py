"""Linear layers for ONNX Runtime: weights stay in the checkpoint's [out, in] layout, and neighbours become one product.

`MatMul(x, Transpose(W))` becomes `FusedMatMul(x, W, transB=1)`: nothing is transposed on disk or at load. Products
of the same input whose weights lie side by side in the data file (query, key, value; gate, up) become one product
over the joined weight, which costs no byte, and a Split.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common

MICROSOFT = "com.microsoft"


def fuse_linear(model: ir.Model) -> None:
    """After: no Transpose of a weight feeds a MatMul; adjacent products of one input are joined."""
    for node in list(model.graph):
        weight = _transposed_weight(node)
        if weight is not None:
            _replace(model, node, weight)
    common.RemoveUnusedNodesPass()(model)
    for group in list(_groups(model)):
        _join(model, group)
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.setdefault(MICROSOFT, 1)


def _transposed_weight(node: ir.Node) -> ir.Value | None:
    if node.op_type != "MatMul" or node.inputs[1] is None:
        return None
    transpose = node.inputs[1].producer()
    if transpose is None or transpose.op_type != "Transpose" or list(transpose.attributes["perm"].as_ints()) != [1, 0]:
        return None
    weight = transpose.inputs[0]
    return weight if weight is not None and isinstance(weight.const_value, ir.ExternalTensor) else None


def _replace(model: ir.Model, node: ir.Node, weight: ir.Value) -> None:
    fused = ir.node("FusedMatMul", [node.inputs[0], weight], {"transB": 1}, domain=MICROSOFT, name=node.name)
    _swap(model, node, fused)


def _swap(model: ir.Model, node: ir.Node, new: ir.Node) -> None:
    old, value = node.outputs[0], new.outputs[0]
    value.name, value.type, value.shape = old.name, old.type, old.shape
    model.graph.insert_before(node, new)
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _groups(model: ir.Model) -> Iterator[list[ir.Node]]:
    """Products of one input whose weights are neighbours in one data file, in file order."""
    by_input: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type == "FusedMatMul" and node.inputs[0] is not None:
            by_input.setdefault(node.inputs[0], []).append(node)
    for nodes in by_input.values():
        nodes.sort(key=lambda node: _place(node)[1])
        run = [nodes[0]]
        for node in nodes[1:]:
            file, offset, _ = _place(node)
            before_file, before_offset, before_size = _place(run[-1])
            if file == before_file and offset == before_offset + before_size and _width(node) == _width(run[0]):
                run.append(node)
            else:
                yield run
                run = [node]
        yield run


def _place(node: ir.Node) -> tuple[str, int, int]:
    weight = node.inputs[1]
    assert weight is not None and isinstance(weight.const_value, ir.ExternalTensor)  # made by _replace
    tensor = weight.const_value
    return str(tensor.location), int(tensor.offset or 0), int(tensor.length or 0)


def _width(node: ir.Node) -> int:
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    return int(weight.shape[1])  # type: ignore[arg-type]


def _join(model: ir.Model, nodes: list[ir.Node]) -> None:
    if len(nodes) < 2:
        return
    from msao_compile.graph.external_data import external

    heights = [int(node.inputs[1].shape[0]) for node in nodes]  # type: ignore[union-attr,index,arg-type]
    file, offset, _ = _place(nodes[0])
    name = "+".join(str(node.inputs[1].name) for node in nodes)  # type: ignore[union-attr]
    held = model.graph.initializers
    if name not in held:  # a tower that is called twice joins the same weights for each call
        shape = [sum(heights), _width(nodes[0])]
        held[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        held[name].const_value = external(name, file, offset, shape)
        sizes = f"{name}.heights"
        held[sizes] = ir.Value(name=sizes, const_value=ir.tensor(heights, ir.DataType.INT64, name=sizes))
    call = f"{name}.{nodes[0].name}"
    first = min(nodes, key=list(model.graph).index)
    product = ir.node(
        "FusedMatMul", [nodes[0].inputs[0], held[name]], {"transB": 1}, domain=MICROSOFT, name=f"{call}.product"
    )
    split = ir.node(
        "Split", [product.outputs[0], held[f"{name}.heights"]], {"axis": -1}, num_outputs=len(nodes),
        name=f"{call}.split",
    )  # fmt: skip
    model.graph.insert_before(first, [product, split])
    for node, value in zip(nodes, split.outputs, strict=True):
        value.name = node.outputs[0].name
        node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    model.graph.remove(nodes, safe=True)
    for node in nodes:
        old = node.inputs[1]
        if old is not None and not old.uses():
            model.graph.initializers.pop(str(old.name), None)
