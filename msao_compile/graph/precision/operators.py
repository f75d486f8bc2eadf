"""What operators do with floating point numbers, and the types of values that a graph leaves unsaid."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from msao_compile.graph.precision import weights

FLOAT = ir.DataType.FLOAT
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
                        "ReduceLogSum", "ReduceMax", "ReduceMin", "ReduceProd"})  # fmt: skip
NORMS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization",
                   "BatchNormalization", "LpNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization",
                   "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})  # fmt: skip
SUMS = REDUCTIONS | {"Softmax", "LogSoftmax", "Exp", "Log", "CumSum", "Softplus"}
"""What is added up or goes through an exponential; what only these take is computed in fp32 as well."""
EXACT = SUMS | NORMS | {"Cos", "Sin", "Tan", "Acos", "Asin", "Atan", "Range", "Pow", "Sqrt", "Reciprocal", "Resize",
                        "TopK", "CastLike", "ConstantOfShape", "RandomNormalLike", "RandomUniformLike", "STFT",
                        "DFT"}  # fmt: skip
SAME_SHAPE = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Min", "Max", "Clip", "Where", "Sum", "Sign", "Floor",
                        "Ceil", "Round", "Mod", "Identity"})  # fmt: skip
LAYOUT = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Flatten", "Slice", "Split", "Concat",
                    "Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements", "Tile", "Pad", "Trilu",
                    "Compress", "DepthToSpace", "SpaceToDepth", "TensorScatter", "Cast"})  # fmt: skip
FOLLOWS = SAME_SHAPE | LAYOUT
"""These run in the type of what they are given."""
TABLE = 1024
"""Constants of at least so many numbers that a Gather reads are embeddings, not positions."""
SMALL = 1 << 16


def floats(values: object) -> list[ir.Value]:
    """Those of a node's inputs or outputs that are float32."""
    return [value for value in values if value is not None and value.dtype == FLOAT]  # type: ignore[attr-defined]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a small constant, flat; None for anything else."""
    tensor = value.const_value if value is not None else None
    if tensor is None or tensor.size > SMALL or tensor.dtype != FLOAT:
        return None
    return np.asarray(weights.array(tensor), np.float32).reshape(-1)


def name_types(model: ir.Model) -> None:
    """After: every value has a type. Where a graph says none it is that of the first typed input."""
    for value in model.graph.initializers.values():
        if value.dtype is None and value.const_value is not None:
            value.dtype = value.const_value.dtype
    for node in model.graph:
        for output in node.outputs:
            kind = _type_of(node) if output.dtype is None else None
            if kind is not None:
                output.dtype = kind


def _type_of(node: ir.Node) -> ir.DataType | None:
    if node.op_type in ("Shape", "Size", "NonZero", "ArgMax", "ArgMin"):
        return ir.DataType.INT64
    if node.op_type in (
        "Equal",
        "Less",
        "Greater",
        "LessOrEqual",
        "GreaterOrEqual",
        "And",
        "Or",
        "Not",
        "Xor",
        "IsNaN",
    ):
        return ir.DataType.BOOL
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    inputs = node.inputs[1:] if node.op_type in ("Where", "DequantizeLinear") else node.inputs
    return next((value.dtype for value in inputs if value is not None and value.dtype is not None), None)


def allows(node: ir.Node, opset: int, kind: ir.DataType) -> bool:
    """Whether an operator of the standard takes and gives a half type where this node has float32."""
    if node.domain not in ("", "ai.onnx"):
        return True
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    wanted = f"tensor({kind.name.lower()})"
    kinds = {parameter.type_param_str: set(parameter.allowed_type_strs)
             for parameter in schema.type_constraints}  # fmt: skip
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for place, value in enumerate(values):
            formal = formals[min(place, len(formals) - 1)]
            is_float = value is not None and value.dtype == FLOAT
            if is_float and wanted not in kinds.get(formal.type_str, {formal.type_str}):
                return False
    return True
