"""Put codes where products had weights: DequantizeLinear for TensorRT, MatMulNBits for CPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from msao_compile.errors import StageError
from msao_compile.graph.precision import blocks, codes, weights
from msao_compile.graph.precision.operators import FLOAT
from msao_compile.graph.precision.plan import Conversion
from msao_compile.graph.precision.products import Product, flag, made_of_weights, products

LATER = ("int4", "fp8")  # INT4, and float8 through Transpose, came with this opset
INT4_OPSET = 21
"""The first operator set whose DequantizeLinear knows 4-bit codes and blocks."""
NARROWEST = 16
MICROSOFT = "com.microsoft"
CODES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN, "int4": ir.DataType.INT4}


def quantise(model: ir.Model, plan: Conversion) -> tuple[int, dict[str, str]]:
    """After: products that can be are quantised, in a graph that otherwise is still fp32.

    Returns how many, and for each that is left alone why.

    Raises:
        StageError: the dialect has no such precision.
    """
    if plan.precision == "fp8" and plan.dialect == "fused":
        raise StageError("precision fp8 has no form in dialect 'fused': choose portable or scatter, or int8 or int4")
    labels = blocks.labels(model) if plan.keep_fp32 else {}
    count, left_alone = 0, dict.fromkeys(made_of_weights(model), "the graph cuts, chooses or shapes it first")
    steps = Steps(model, plan)
    for product in list(products(model)):
        block = labels.get(product.node, "")
        reason = "is in a block that stays in fp32" if blocks.inside(block, plan.keep_fp32) else obstacle(product, plan)
        if reason:
            left_alone[product.name] = reason
        else:
            steps.of(product)
            count += 1
    common.RemoveUnusedNodesPass()(model)
    if count and plan.precision in LATER and plan.dialect != "fused":
        _raise_opset(model, plan.precision)
    if count and plan.dialect == "fused":
        model.opset_imports.setdefault(MICROSOFT, 1)
    return count, left_alone


def obstacle(product: Product, plan: Conversion) -> str:
    """Why a product cannot be quantised; empty where it can."""
    experts, outputs, inputs = product.shape_ENK
    if outputs < NARROWEST or inputs < NARROWEST:
        return f"{inputs} inputs and {outputs} outputs are too few"
    if plan.precision == "int4" or plan.dialect == "fused":
        if product.is_conv:
            return "a convolution's weight has no form by blocks"
        if inputs % plan.rows:
            return f"its {inputs} inputs do not divide into blocks of {plan.rows}"
        if "alpha" in product.node.attributes and product.node.attributes["alpha"].as_float() != 1:
            return "it scales its result"
        return "it has a weight for each expert" if experts > 1 and plan.dialect == "fused" else ""
    if experts > 1:
        return "it has a weight for each expert"
    largest = plan.ranges.get(str(product.activation.name))
    if largest is None:
        return f"its input {product.activation.name!r} has no range"
    return "" if largest > 0 else f"its input {product.activation.name!r} has a range of zero"


@dataclasses.dataclass(frozen=True)
class Steps:
    """Rewrites of one graph under one plan."""

    model: ir.Model
    plan: Conversion
    activations: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)

    def of(self, product: Product) -> None:
        """Quantise one product."""
        if self.plan.dialect == "fused":
            self._nbits(product)
            return
        by_blocks = self.plan.precision == "int4"
        if not by_blocks:
            product.node.replace_input_with(0, self._activation(product))
        product.node.replace_input_with(1, self._weight(product, self.plan.rows if by_blocks else None))

    def constant(
        self, name: str, kind: ir.DataType, shape: tuple[int, ...], made: Callable[[], np.ndarray]
    ) -> ir.Value:
        """A constant of the graph that is computed when it is written."""
        if name in self.model.graph.initializers:
            return self.model.graph.initializers[name]
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind))
        if kind == ir.DataType.INT4:
            value.const_value = ir.LazyTensor(
                lambda: ir.PackedTensor(codes.packed(made()), kind, shape=ir.Shape(shape), name=name),
                kind, ir.Shape(shape), name=name,
            )  # fmt: skip
        else:
            value.const_value = weights.lazy(name, kind, shape, made)
        self.model.graph.initializers[name] = value
        return value

    def _weight(self, product: Product, rows: int | None) -> ir.Value:
        """A weight as codes and scales behind a DequantizeLinear, laid out as its product takes it."""
        _, outputs, inputs = product.shape_ENK
        grid = codes.Grid(CODES[self.plan.precision], rows or inputs, self.plan.kind)
        by_output = product.is_conv or flag(product.node, "transB")
        shape = product.shape if by_output == product.by_output else (*product.shape[:-2], *product.shape[:-3:-1])
        axis = 0 if product.is_conv else len(shape) - 2 + int(by_output == bool(rows))
        scale_shape = (
            tuple(size // rows if place == axis else size for place, size in enumerate(shape)) if rows else (outputs,)
        )

        def laid_out(made: Callable[[np.ndarray, codes.Grid], np.ndarray], final: tuple[int, ...]) -> np.ndarray:
            found = [made(weight_NK, grid) for weight_NK in product.array_ENK()]
            return np.stack([part if by_output else part.T for part in found]).reshape(final)

        suffix = self.plan.precision if by_output else f"{self.plan.precision}.turned"
        values = self.constant(f"{product.name}.{suffix}", grid.kind, shape, lambda: laid_out(codes.codes_NK, shape))
        scales = self.constant(
            f"{product.name}.{suffix}.scales", FLOAT, scale_shape, lambda: laid_out(codes.scales_NB, scale_shape)
        )
        return self._dequantised(
            product, values, scales, {"axis": axis, "block_size": rows} if rows else {"axis": axis}
        )

    def _dequantised(
        self, product: Product, values: ir.Value, scales: ir.Value, attributes: dict[str, int]
    ) -> ir.Value:
        node = ir.node("DequantizeLinear", [values, scales], attributes, name=f"{values.name}.dequantised")
        node.outputs[0].name, node.outputs[0].dtype = f"{values.name}.dequantised.{product.node.name}", FLOAT
        node.outputs[0].shape = values.shape
        self.model.graph.insert_before(product.node, node)
        return node.outputs[0]

    def _activation(self, product: Product) -> ir.Value:
        """The activation rounded to codes, made once for all products that take it."""
        value = product.activation
        if value not in self.activations:
            kind = CODES[self.plan.precision]
            top = codes.Grid(kind, 1).top
            largest = self.plan.ranges[str(value.name)]
            scale = self.constant(f"{value.name}_scale", FLOAT, (), lambda: np.array(largest / top, np.float32))
            zero = self.constant(f"zero_of_{kind.name.lower()}", kind, (), lambda: np.zeros((), kind.numpy()))
            first = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}_quantised")
            second = ir.node("DequantizeLinear", [first.outputs[0], scale, zero], name=f"{value.name}_rounded")
            for node, suffix, dtype in ((first, "codes", kind), (second, "rounded", FLOAT)):
                node.outputs[0].name, node.outputs[0].shape = f"{value.name}_{suffix}", value.shape
                node.outputs[0].dtype = dtype
            _insert_behind(self.model, value, [first, second])
            self.activations[value] = second.outputs[0]
        return self.activations[value]

    def _nbits(self, product: Product) -> None:
        """MatMulNBits instead of a product, and an Add where a Gemm had a bias."""
        _, outputs, inputs = product.shape_ENK
        node, rows = product.node, self.plan.rows
        grid = codes.Grid(CODES[self.plan.precision], rows, self.plan.kind)
        bits = 4 if grid.kind == ir.DataType.INT4 else 8
        values = self.constant(
            f"{product.name}.{self.plan.precision}", ir.DataType.UINT8, (outputs, inputs // rows, rows * bits // 8),
            lambda: codes.nbits_NB(codes.codes_NK(product.array_ENK()[0], grid), grid),
        )  # fmt: skip
        scales = self.constant(
            f"{product.name}.{self.plan.precision}.scales", FLOAT, (outputs, inputs // rows),
            lambda: codes.scales_NB(product.array_ENK()[0], grid),
        )  # fmt: skip
        attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": rows, "accuracy_level": 4}
        new = [
            ir.node("MatMulNBits", [product.activation, values, scales], attributes, domain=MICROSOFT, name=node.name)
        ]
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            new[0].outputs[0].name, new[0].outputs[0].dtype = f"{node.outputs[0].name}.product", FLOAT
            new.append(ir.node("Add", [new[0].outputs[0], node.inputs[2]], name=f"{node.name}.bias"))
        old, value = node.outputs[0], new[-1].outputs[0]
        value.name, value.type, value.shape = old.name, old.type, old.shape
        self.model.graph.insert_before(node, new)
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.model.graph.remove(node, safe=True)


def _insert_behind(model: ir.Model, value: ir.Value, nodes: list[ir.Node]) -> None:
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(next(iter(model.graph)), nodes)
    else:
        model.graph.insert_after(producer, nodes)


def _raise_opset(model: ir.Model, precision: str) -> None:
    if model.opset_imports[""] >= INT4_OPSET:
        return
    if any(node.op_type == "GroupNormalization" for node in model.graph):
        raise StageError(
            f"the graph has a GroupNormalization, which means another thing in opset {INT4_OPSET}, and {precision} "
            "needs that opset: choose another precision"
        )
    model.opset_imports[""] = INT4_OPSET
