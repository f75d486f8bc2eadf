"""The passes in order, by dialect."""

from __future__ import annotations

import onnx_ir as ir

from msao_compile.graph.passes.layout import cancel_layouts
from msao_compile.graph.passes.linear import fuse_linear
from msao_compile.manifest.schema import Dialect


def optimise(model: ir.Model, dialect: Dialect) -> None:
    """Bring a traced graph into the form its dialect's consumers run fastest."""
    cancel_layouts(model)
    if dialect == "fused":
        fuse_linear(model)
