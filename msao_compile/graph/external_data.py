"""Weights outside the graph: every initialiser points into a data file whose layout was fixed before the export."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from msao_compile.errors import StageError


def reference_weights(model: ir.Model, layout: Mapping[str, Mapping[str, Any]]) -> None:
    """Give each weight its place: `layout[name]` holds file, offset, shape and dtype.

    Raises:
        StageError: the graph has a weight that the layout does not know.
    """
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        if name not in layout:
            raise StageError(f"weight {name!r} of the graph is not among the module's tensors")
        place = layout[name]
        kind = ir.DataType.from_numpy(np.dtype(place.get("dtype", "float32")))
        value.shape, value.dtype = ir.Shape(place["shape"]), kind
        value.const_value = external(name, place["file"], place["offset"], place["shape"], kind)


def external(
    name: str, file: str, offset: int, shape: list[int], kind: ir.DataType = ir.DataType.FLOAT
) -> ir.ExternalTensor:
    """A tensor in a data file beside the graph."""
    size = math.prod(shape) * kind.numpy().itemsize
    return ir.ExternalTensor(file, offset, size, kind, shape=ir.Shape(shape), name=name)


def save(model: ir.Model, path: Path) -> None:
    """Write the graph alone; the data files are written by the load stage."""
    ir.save(model, path)
