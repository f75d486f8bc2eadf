"""The products of a graph that can be quantised: those of an activation and a constant weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from msao_compile.graph.precision import weights
from msao_compile.graph.precision.operators import FLOAT, LAYOUT

KINDS = frozenset({"MatMul", "Gemm", "FusedMatMul", "Conv"})
LEAST = 1024
"""Numbers that make a weight of a constant; smaller ones are scales and masks."""


@dataclass(frozen=True)
class Product:
    """One product of `activation` and `weight`, which lies as [..., N, K] where `by_output`, else as [..., K, N]."""

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    by_output: bool

    @property
    def name(self) -> str:
        """Of its weight, which says where in the model it is."""
        return str(self.weight.name)

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution, whose inputs are all numbers of a filter."""
        return self.node.op_type == "Conv"

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape, as it lies."""
        return self.weight.shape.numpy() if self.weight.shape is not None else ()

    @property
    def shape_ENK(self) -> tuple[int, int, int]:
        """Experts (1 where there are none), outputs and inputs."""
        if self.is_conv:
            return 1, self.shape[0], int(np.prod(self.shape[1:]))
        experts = self.shape[0] if len(self.shape) > 2 else 1
        outputs, inputs = self.shape[-2:] if self.by_output else self.shape[:-3:-1]
        return experts, outputs, inputs

    def array_ENK(self) -> np.ndarray:
        """The weight's numbers, mapped."""
        assert self.weight.const_value is not None  # `products` gives constants only
        numbers = weights.array(self.weight.const_value)
        experts, outputs, inputs = self.shape_ENK
        if self.by_output:
            return numbers.reshape(experts, outputs, inputs)
        return numbers.reshape(experts, inputs, outputs).swapaxes(1, 2)


def products(model: ir.Model) -> Iterator[Product]:
    """Every MatMul, Gemm and Conv of an activation and a float32 constant: a matrix, one for each expert, filters."""
    for node in model.graph:
        if node.op_type in KINDS and len(node.inputs) > 1 and node.inputs[0] is not None and node.inputs[1] is not None:
            found = _product(node, node.inputs[0], node.inputs[1])
            if found is not None:
                yield found


def _product(node: ir.Node, activation: ir.Value, weight: ir.Value) -> Product | None:
    by_output = node.op_type == "Conv" or flag(node, "transB")
    if flag(node, "transA") or flag(node, "transBatchA") or flag(node, "transBatchB") or activation.is_initializer():
        return None
    transpose = weight.producer()
    if transpose is not None and transpose.op_type == "Transpose" and node.op_type != "Conv":
        turned = transpose.inputs[0]
        order = list(transpose.attributes["perm"].as_ints())
        if turned is None or order not in ([1, 0], [0, 2, 1]):
            return None
        weight, by_output = turned, not by_output
    if weight.const_value is None or weight.dtype != FLOAT or weight.shape is None:
        return None
    ranks = (2, 3) if node.op_type == "MatMul" else (2,)
    found = Product(node, activation, weight, by_output)
    return found if found.is_conv or len(weight.shape) in ranks else None


def flag(node: ir.Node, name: str) -> bool:
    """An attribute that is 0 or 1; 0 where it is absent."""
    return name in node.attributes and bool(node.attributes[name].as_int())


def made_of_weights(model: ir.Model) -> dict[str, str]:
    """Weights that a product takes only after the graph has cut, chosen or shaped them, and the product's name."""
    direct = {product.node for product in products(model)}
    found: dict[str, str] = {}
    for node in model.graph:
        if node.op_type in KINDS and node not in direct:
            for value in node.inputs[:2]:
                weight = _origin(value)
                if weight is not None:
                    found[str(weight.name)] = str(node.name)
    return found


def _origin(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (producer := value.producer()) is not None and producer.op_type in LAYOUT:
        value = producer.inputs[0]
    tensor = value.const_value if value is not None and value.dtype == FLOAT else None
    return value if tensor is not None and tensor.size >= LEAST else None
