"""Codes and scales of weights, against loops that do one number after the other."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.graph.precision import weights
from msao_compile.graph.precision.codes import Grid, codes_NK, nbits_NB, packed, scales_NB

GRIDS = [
    Grid(ir.DataType.INT4, 8),
    Grid(ir.DataType.INT8, 32),
    Grid(ir.DataType.INT4, 16, ir.DataType.FLOAT16),
    Grid(ir.DataType.INT8, 32, ir.DataType.BFLOAT16),
    Grid(ir.DataType.FLOAT8E4M3FN, 32),
]


@pytest.fixture
def weight_NK() -> np.ndarray:
    numbers = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    numbers[2] = 0
    numbers[3] *= 1e-3
    return numbers


def plain(weight_NK: np.ndarray, grid: Grid) -> tuple[list[list[float]], list[list[float]]]:
    """Scales and codes, one number after the other."""
    scales, codes = [], []
    for row in weight_NK.tolist():
        scales.append([])
        codes.append([])
        for start in range(0, len(row), grid.block):
            block = row[start : start + grid.block]
            scale = np.float32(max(map(abs, block))) / np.float32(grid.top)
            scale = float(scale.astype(grid.scale.numpy())) or 1.0
            scales[-1].append(scale)
            codes[-1] += [code(number / scale, grid) for number in block]
    return scales, codes


def code(number: float, grid: Grid) -> float:
    number = max(-grid.top, min(grid.top, number))
    return float(ml_dtypes.float8_e4m3fn(number)) if grid.top == 448 else float(round(number))


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_and_scales_are_those_of_the_plain_loop(weight_NK: np.ndarray, grid: Grid) -> None:
    scales, codes = plain(weight_NK, grid)
    np.testing.assert_allclose(scales_NB(weight_NK, grid), scales, rtol=1e-6)
    np.testing.assert_array_equal(codes_NK(weight_NK, grid).astype(np.float32), codes)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_weight_comes_back_within_half_a_step(weight_NK: np.ndarray, grid: Grid) -> None:
    scales = np.repeat(scales_NB(weight_NK, grid), grid.block, 1)
    back = codes_NK(weight_NK, grid).astype(np.float32) * scales
    steps = scales * (32 / 2 if grid.top == 448 else 0.5)  # fp8's widest step is 32 of 448
    assert (np.abs(back - weight_NK) <= steps * 1.01).all()


def test_rows_that_do_not_fit_into_one_chunk_are_the_same(
    weight_NK: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = codes_NK(weight_NK, GRIDS[0])
    monkeypatch.setattr(weights, "CHUNK", 70)  # two rows
    np.testing.assert_array_equal(codes_NK(weight_NK, GRIDS[0]), whole)


def test_four_bit_codes_are_packed_low_half_first() -> None:
    assert packed(np.array([1, -1, -8, 7, 3], np.int8)).tolist() == [0xF1, 0x78, 0x03]


def test_nbits_codes_start_at_zero() -> None:
    codes = np.array([[-8, -7, 0, 7]], np.int8)
    assert nbits_NB(codes, Grid(ir.DataType.INT4, 2)).tolist() == [[[0x10], [0xF8]]]
    assert nbits_NB(codes, Grid(ir.DataType.INT8, 4)).tolist() == [[[120, 121, 128, 135]]]
