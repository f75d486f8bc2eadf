"""Weights as codes and scales, symmetric, in NumPy, a few rows at a time.

Shapes: N outputs, K inputs of a product (for a Conv all of a filter), B blocks of K that share a scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from msao_compile.graph.precision import weights


@dataclass(frozen=True)
class Grid:
    """The codes a weight may take and the largest of them, how many inputs share a scale, and the scale's type."""

    kind: ir.DataType
    block: int
    scale: ir.DataType = ir.DataType.FLOAT

    @property
    def top(self) -> float:
        """The code of a block's largest magnitude."""
        return {ir.DataType.INT4: 7.0, ir.DataType.INT8: 127.0, ir.DataType.FLOAT8E4M3FN: 448.0}[self.kind]


def scales_NB(weight_NK: np.ndarray, grid: Grid) -> np.ndarray:
    """float32 [N, B]: the largest magnitude of each block over the largest code, as `grid.scale` can hold it."""
    outputs, inputs = weight_NK.shape
    found = np.empty((outputs, inputs // grid.block), np.float32)
    for rows in _chunks(weight_NK):
        part = np.asarray(weight_NK[rows], np.float32).reshape(-1, inputs // grid.block, grid.block)
        found[rows] = np.abs(part).max(-1) / np.float32(grid.top)
    if grid.scale != ir.DataType.FLOAT:
        found = weights.rounded(found, grid.scale).astype(np.float32)
    return np.where(found == 0, np.float32(1), found)


def codes_NK(weight_NK: np.ndarray, grid: Grid) -> np.ndarray:
    """[N, K]: the nearest code of each weight, int8, or float8_e4m3fn where the grid is fp8."""
    outputs, inputs = weight_NK.shape
    scales = scales_NB(weight_NK, grid)[:, :, None]
    is_float = grid.kind == ir.DataType.FLOAT8E4M3FN
    found = np.empty((outputs, inputs), ml_dtypes.float8_e4m3fn if is_float else np.int8)
    for rows in _chunks(weight_NK):
        part = np.asarray(weight_NK[rows], np.float32).reshape(-1, inputs // grid.block, grid.block) / scales[rows]
        part = np.clip(part if is_float else np.rint(part), -grid.top, grid.top)
        found[rows] = part.reshape(-1, inputs).astype(found.dtype)
    return found


def packed(codes: np.ndarray) -> np.ndarray:
    """uint8 [ceil(size / 2)]: two 4-bit codes a byte, the first in the low half."""
    flat = codes.reshape(-1).astype(np.uint8) & 15
    flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
    return np.asarray(flat[::2] | flat[1::2] << 4, np.uint8)


def nbits_NB(codes: np.ndarray, grid: Grid) -> np.ndarray:
    """uint8 [N, B, bytes of a block]: the layout of ONNX Runtime's MatMulNBits, whose codes start at zero."""
    outputs, inputs = codes.shape
    shape = outputs, inputs // grid.block
    if grid.kind == ir.DataType.INT4:
        return packed(codes + np.int8(8)).reshape(*shape, grid.block // 2)
    return (codes.astype(np.int16) + 128).astype(np.uint8).reshape(*shape, grid.block)


def _chunks(weight_NK: np.ndarray) -> Iterator[slice]:
    rows = max(1, weights.CHUNK // max(1, weight_NK.shape[1]))
    for start in range(0, weight_NK.shape[0], rows):
        yield slice(start, start + rows)
