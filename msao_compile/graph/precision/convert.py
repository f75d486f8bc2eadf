"""One graph in another precision: `<name>.onnx` and one `<name>.onnx.data` beside it, weight after weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

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
        StageError: the graph is not in fp32.
    """
    model = weights.opened(source)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
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
