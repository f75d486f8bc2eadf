"""What a conversion is asked for, and the facts of operators that every part of it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from msao_compile.manifest.engine import Dialect, Precision

Compute = Literal["fp16", "bf16", "fp32"]
KINDS: dict[str, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
"""Largest finite number of a half type."""
SMALLEST = {ir.DataType.FLOAT16: 2.0**-14, ir.DataType.BFLOAT16: 2.0**-126}
"""Smallest number of a half type that keeps all its digits."""


@dataclass(frozen=True)
class Conversion:
    """One precision of one graph.

    `compute` is the type of what is not quantised; none means half, or fp32 for a quantised `fused` graph, which only
    CPUs run. `keep_fp32` names blocks (as `blocks` gives them) that stay as they are, `ranges` the absolute maximum of
    each activation, `states` the inputs and outputs that take the compute type, and `block` the rows of a weight that
    share a scale in int4 (and in a CPU's int8); none means 32 for CPUs and 128 for TensorRT.
    """

    precision: Precision
    dialect: Dialect
    compute: Compute | None = None
    keep_fp32: tuple[str, ...] = ()
    ranges: Mapping[str, float] = field(default_factory=dict)
    states: tuple[str, ...] = ()
    block: int | None = None

    @property
    def kind(self) -> ir.DataType:
        """The type of what is not quantised."""
        if self.compute is not None:
            return KINDS[self.compute]
        if self.precision in KINDS:
            return KINDS[self.precision]
        return ir.DataType.FLOAT if self.dialect == "fused" else ir.DataType.FLOAT16

    @property
    def rows(self) -> int:
        """Rows of a weight that share a scale, where scales are by blocks."""
        return self.block or (32 if self.dialect == "fused" else 128)
