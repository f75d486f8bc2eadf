"""One graph in another precision: `<name>.onnx` and one `<name>.onnx.data` beside it, weight after weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from msao_compile.errors import StageError
from msao_compile.graph import ends
from msao_compile.graph.precision import casting, operators, quantise, weights
from msao_compile.graph.precision.plan import Conversion

__all__ = ["Conversion", "convert"]


def convert(source: Path, output: Path, plan: Conversion) -> dict[str, Any]:
    """Write the fp32 graph `source` in the precision of `plan` to `output`.

    Returns the manifest's facts: inputs and outputs, opset (int4 raises it: `source_opset`
    is what it was), `quantised` products, `left_alone` (name of a product and
    why) and `size_bytes` of both files.

    Raises:
        DeploymentError: there is no graph at `source`, or its data file is damaged.
        StageError: the graph is not in fp32, its dialect has no such precision, or it would be overwritten.
    """
    model = weights.opened(source)
    _refuse_unfit(model, source, output)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    weights.merge_tied(model)
    operators.name_types(model)
    opset, quantised, left_alone = model.opset_imports[""], 0, dict[str, str]()
    if plan.precision in quantise.CODES:
        quantised, left_alone = quantise.quantise(model, plan)
    if plan.kind != ir.DataType.FLOAT:
        casting.to_half(model, plan.kind, plan.keep_fp32, plan.states)
    size = weights.write(model, output)
    return {
        "inputs": [ends.spec(value) for value in model.graph.inputs],
        "outputs": [ends.spec(value) for value in model.graph.outputs],
        "opset": model.opset_imports[""],
        "source_opset": opset,
        "quantised": quantised,
        "left_alone": left_alone,
        "size_bytes": size,
    }


def _refuse_unfit(model: ir.Model, source: Path, output: Path) -> None:
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            raise StageError(f"graph {source} is not in fp32 ({value.name!r} is {value.dtype}): convert the fp32 graph")
    data = output.with_name(f"{output.name}.data")
    taken = [file for file in (source, *weights.files(model)) for new in (output, data) if _is_same(file, new)]
    if taken:
        raise StageError(f"{output} would be written over {taken[0]}, which is read: choose another name or folder")


def _is_same(file: Path, new: Path) -> bool:
    return new.exists() and new.samefile(file)
