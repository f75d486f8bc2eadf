"""The products of a graph that can be quantised: those of an activation and a constant weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from msao_compile.graph.precision import weights
from msao_compile.graph.precision.operators import FLOAT

KINDS = frozenset({"MatMul", "Gemm", "FusedMatMul", "Conv"})


@dataclass(frozen=True)
class Product:
    """One product of `activation` and `weight`, which lies as [N, K] where `by_output`, else as [K, N]."""

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    by_output: bool

    @property
    def name(self) -> str:
        """Of its weight, which says where in the model it is."""
        return str(self.weight.name)

    @property
    def shape_NK(self) -> tuple[int, int]:
        """Outputs and inputs; a Conv's inputs are all numbers of a filter."""
        shape = [int(size) for size in self.weight.shape or ()]
        if self.node.op_type == "Conv":
            return shape[0], int(np.prod(shape[1:]))
        return (shape[0], shape[1]) if self.by_output else (shape[1], shape[0])

    def array_NK(self) -> np.ndarray:
        """The weight's numbers as [N, K], mapped."""
        assert self.weight.const_value is not None  # `products` gives constants only
        numbers = weights.array(self.weight.const_value)
        return numbers.reshape(self.shape_NK) if self.by_output else numbers.T


def products(model: ir.Model) -> Iterator[Product]:
    """Every MatMul, Gemm and Conv of an activation and a constant matrix (or filter) in float32."""
    for node in model.graph:
        if node.op_type in KINDS and len(node.inputs) > 1 and node.inputs[0] is not None and node.inputs[1] is not None:
            found = _product(node, node.inputs[0], node.inputs[1])
            if found is not None:
                yield found


def _product(node: ir.Node, activation: ir.Value, weight: ir.Value) -> Product | None:
    by_output = node.op_type == "Conv" or _flag(node, "transB")
    if _flag(node, "transA") or _flag(node, "transBatchA") or _flag(node, "transBatchB") or activation.is_initializer():
        return None
    transpose = weight.producer()
    if transpose is not None and transpose.op_type == "Transpose" and node.op_type != "Conv":
        turned = transpose.inputs[0]
        if turned is None or list(transpose.attributes["perm"].as_ints()) != [1, 0]:
            return None
        weight, by_output = turned, not by_output
    if weight.const_value is None or weight.dtype != FLOAT or weight.shape is None:
        return None
    return Product(node, activation, weight, by_output) if node.op_type == "Conv" or len(weight.shape) == 2 else None


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())
