"""Copies of a graph that report more: the largest magnitude of each activation, or what leaves each block.

The latter can also be fed in their middle.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from msao_compile.errors import DeploymentError, StageError
from msao_compile.graph.precision import blocks, operators, weights
from msao_compile.graph.precision.operators import FLOAT
from msao_compile.graph.precision.products import products

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def observed(source: Path, output: Path) -> dict[str, str]:
    """Write the fp32 graph `source` with a scalar output for each activation of a product that can be quantised.

    Weights stay in their files, which a folder other than the source's gets hard links to. Returns for each new output
    (float32 []) the name of the value that it is the absolute maximum of; 0 where the value was empty.

    Raises:
        DeploymentError: there is no graph at `source`, or its data file is damaged.
        StageError: `output` is on another file system.
    """
    model = weights.opened(source)
    operators.name_types(model)
    values = dict.fromkeys(product.activation for product in products(model) if product.shape_ENK[0] == 1)
    found: dict[str, str] = {}
    for number, value in enumerate(values):
        found[_largest(model, value, f"largest.{number}")] = str(value.name)
    _save(model, source, output)
    return found


def _largest(model: ir.Model, value: ir.Value, name: str) -> str:
    """max(0, |value|): the zero is for values of no rows, of which there is no maximum."""
    flat = _constant(model, "observed.flat", np.array([-1], np.int64))
    zero = _constant(model, "observed.zero", np.zeros(1, np.float32))
    nodes = [ir.node("Abs", [value], name=f"{name}.abs")]
    nodes.append(ir.node("Reshape", [nodes[0].outputs[0], flat], name=f"{name}.flat"))
    nodes.append(ir.node("Concat", [nodes[1].outputs[0], zero], {"axis": 0}, name=f"{name}.never_empty"))
    nodes.append(ir.node("ReduceMax", [nodes[2].outputs[0]], {"keepdims": 0}, name=f"{name}.most"))
    for node in nodes:
        node.outputs[0].name, node.outputs[0].dtype = f"{node.name}.value", FLOAT
    result = nodes[-1].outputs[0]
    result.name, result.shape = name, ir.Shape([])
    model.graph.extend(nodes)
    model.graph.outputs.append(result)
    return name


def _constant(model: ir.Model, name: str, numbers: np.ndarray) -> ir.Value:
    if name not in model.graph.initializers:
        tensor = ir.tensor(numbers, name=name)
        value = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.initializers[name] = value
    return model.graph.initializers[name]


def leaving(source: Path) -> dict[str, str]:
    """For each block of an fp32 graph, in order, the name of the value that leaves it.

    Raises:
        DeploymentError: there is no graph at `source`, or its data file is damaged.
    """
    model = weights.opened(source)
    operators.name_types(model)
    return {block: str(value.name) for block, value in blocks.exits(model).items()}


def observed_blocks(source: Path, output: Path, values: Mapping[str, str]) -> dict[str, str]:
    """Write a graph in any precision with what leaves its blocks as further outputs, cast to float32.

    What comes after a block `b` reads the further input `enters.b` (float32, in the shape of what leaves `b`) where
    `enters.b.given` (bool []) says so, else what left it; a single number stands for nothing given.

    `values` is what `leaving` says of the fp32 graph. Returns for each block the name of its output.

    Raises:
        DeploymentError: there is no graph at `source`, its data file is damaged, or it has not those values.
        StageError: `output` is on another file system.
    """
    model = weights.opened(source)
    by_name = {str(value.name): value for node in model.graph for value in node.outputs}
    found: dict[str, str] = {}
    for block, name in values.items():
        value = by_name.get(f"{name}.inner") or by_name.get(name)
        if value is None:
            raise DeploymentError(
                f"graph {source} has no value {name!r}, which leaves block {block!r}: convert it again"
            )
        found[block] = f"leaves.{block}"
        _enterable(model, value, f"enters.{block}")
        node = ir.node("Cast", [value], {"to": int(FLOAT)}, name=f"leaves.{block}.cast")
        node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = found[block], FLOAT, value.shape
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    _save(model, source, output)
    return found


def _enterable(model: ir.Model, value: ir.Value, name: str) -> None:
    """Let all that takes a value take what is given instead, where that is said."""
    producer = value.producer()
    assert producer is not None  # what leaves a block was computed there
    rank = None if value.shape is None else len(value.shape)
    shape = None if rank is None else ir.Shape([f"{name}.{axis}" for axis in range(rank)])
    given = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=shape)
    said = ir.Value(name=f"{name}.given", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    model.graph.inputs.extend((given, said))
    like = ir.node("CastLike", [given, value], name=f"{name}.cast")
    chosen = ir.node("Where", [said, like.outputs[0], value], name=f"{name}.chosen")
    for node in (like, chosen):
        node.outputs[0].name = f"{node.name}.value"
        if value.dtype is not None:
            node.outputs[0].dtype = value.dtype
    for node, index in list(value.uses()):
        if node not in (like, chosen):
            node.replace_input_with(index, chosen.outputs[0])
    model.graph.insert_after(producer, [like, chosen])


def _save(model: ir.Model, source: Path, output: Path) -> None:
    """Write the graph; its data files are those of the source, linked where the folder is another."""
    output.parent.mkdir(parents=True, exist_ok=True)
    files = set()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            file = Path(tensor.location)
            files.add(file)
            value.const_value = ir.ExternalTensor(
                file.name, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(value.name)
            )
    _link(files, output.parent)
    output.unlink(missing_ok=True)  # it may be a link to a file that others still read
    onnx.save(ir.to_proto(model), output)


def _link(files: Iterable[Path], folder: Path) -> None:
    for file in files:
        target = folder / file.name
        if target.exists() and target.samefile(file):
            continue
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError as problem:
            raise StageError(
                f"data file {file} cannot be linked into {folder} ({problem.strerror}): write to the same file system"
            ) from problem
