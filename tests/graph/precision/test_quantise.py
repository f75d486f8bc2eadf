"""Quantised products compute with the codes of their weights, and what cannot be quantised is named with the reason."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.errors import StageError
from msao_compile.graph.precision.codes import Grid, codes_NK, scales_NB
from msao_compile.graph.precision.convert import Conversion, convert
from msao_compile.manifest.engine import Precision

from .samples import run, saved

K, N = 128, 48
TURNED = """g (float[2,128] x, float[48,128] w) => (float[2,48] y) {
  turned = Transpose<perm = [1, 0]>(w)
  y = MatMul(x, turned)
}"""
STRAIGHT = """g (float[2,128] x, float[128,48] w) => (float[2,48] y) { y = MatMul(x, w) }"""
FUSED = """g (float[2,128] x, float[48,128] w) => (float[2,48] y) { y = com.microsoft.FusedMatMul<transB = 1>(x, w) }"""
GEMM = """g (float[2,128] x, float[48,128] w, float[48] bias) => (float[2,48] y) {
  y = Gemm<transB = 1>(x, w, bias)
}"""
FORMS = {"turned": TURNED, "straight": STRAIGHT, "fused": FUSED, "gemm": GEMM}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def source_of(path: Path, form: str) -> Path:
    weight = numbers(N, K)
    given = {"w": np.ascontiguousarray(weight.T) if form == "straight" else weight}
    return saved(path, FORMS[form], **given, **({"bias": numbers(N, seed=2)} if form == "gemm" else {}))


def product(form: str, x: np.ndarray, weight_NK: np.ndarray) -> np.ndarray:
    return x @ weight_NK.T + (numbers(N, seed=2) if form == "gemm" else 0)


def back(weight_NK: np.ndarray, grid: Grid) -> np.ndarray:
    """What codes and scales stand for."""
    return codes_NK(weight_NK, grid).astype(np.float32) * np.repeat(scales_NB(weight_NK, grid), grid.block, 1)


@pytest.mark.parametrize("form", ["turned", "straight", "gemm"])
def test_int4_of_tensorrt_is_the_product_with_the_codes(tmp_path: Path, form: str) -> None:
    source = source_of(tmp_path / "a.onnx", form)
    facts = convert(source, tmp_path / "b.onnx", Conversion("int4", "portable", compute="fp32", block=32))
    x = numbers(2, K, seed=1)
    wanted = product(form, x, back(numbers(N, K), Grid(ir.DataType.INT4, 32)))
    np.testing.assert_allclose(run(tmp_path / "b.onnx", optimised=False, x=x)["y"], wanted, atol=1e-4)
    assert (facts["quantised"], facts["left_alone"]) == (1, {})
    assert (facts["source_opset"], facts["opset"]) == (20, 21)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(("precision", "kind"), [("int4", ir.DataType.INT4), ("int8", ir.DataType.INT8)])
def test_nbits_of_cpus_is_the_product_with_the_codes(
    tmp_path: Path, form: str, precision: Precision, kind: ir.DataType
) -> None:
    source = source_of(tmp_path / "a.onnx", form)
    facts = convert(source, tmp_path / "b.onnx", Conversion(precision, "fused"))
    x = numbers(2, K, seed=1)
    wanted = product(form, x, back(numbers(N, K), Grid(kind, 32)))
    found = run(tmp_path / "b.onnx", x=x)["y"]
    np.testing.assert_allclose(found, wanted, atol=0.01 * np.abs(wanted).max())  # level 4 rounds x to 8 bits
    operators = [node.op_type for node in ir.load(tmp_path / "b.onnx").graph]
    assert operators == ["MatMulNBits"] + ["Add"] * (form == "gemm")
    assert (facts["quantised"], facts["opset"]) == (1, 20)


@pytest.mark.parametrize("form", ["turned", "straight", "gemm"])
@pytest.mark.parametrize(
    ("precision", "kind", "top"), [("int8", ir.DataType.INT8, 127), ("fp8", ir.DataType.FLOAT8E4M3FN, 448)]
)
def test_a_product_of_rounded_activation_and_weight_is_just_that(
    tmp_path: Path, form: str, precision: Precision, kind: ir.DataType, top: int
) -> None:
    source = source_of(tmp_path / "a.onnx", form)
    plan = Conversion(precision, "portable", compute="fp32", ranges={"x": 4.0})
    facts = convert(source, tmp_path / "b.onnx", plan)
    x = numbers(2, K, seed=1)
    scaled = np.clip(x / np.float32(4 / top), -top, top)
    rounded = scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) if top == 448 else np.rint(scaled)
    wanted = product(form, rounded * np.float32(4 / top), back(numbers(N, K), Grid(kind, K)))
    np.testing.assert_allclose(run(tmp_path / "b.onnx", optimised=False, x=x)["y"], wanted, atol=1e-4)
    assert facts["quantised"] == 1


def test_a_convolution_is_quantised_by_filter(tmp_path: Path) -> None:
    text = """g (float[1,4,8,8] x, float[16,4,2,2] w) => (float[1,16,4,4] y) { y = Conv<strides = [2, 2]>(x, w) }"""
    source = saved(tmp_path / "a.onnx", text, w=numbers(16, 4, 2, 2))
    convert(source, tmp_path / "b.onnx", Conversion("int8", "portable", ranges={"x": 4.0}))
    x = numbers(1, 4, 8, 8, seed=1)
    wanted = run(source, x=x)["y"]
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x=x)["y"], wanted, atol=0.02 * np.abs(wanted).max())
    scales = [value.shape.numpy() for name, value in ir.load(tmp_path / "b.onnx").graph.initializers.items()
              if name.startswith("w.int8.scales")]  # fmt: skip
    assert scales == [(16,)]


def test_an_activation_is_rounded_once_for_all_its_products(tmp_path: Path) -> None:
    text = """g (float[2,32] x, float[32,32] a, float[32,32] b) => (float[2,32] y) {
      one = MatMul(x, a)
      two = MatMul(x, b)
      y = Add(one, two)
    }"""
    source = saved(tmp_path / "a.onnx", text, a=numbers(32, 32), b=numbers(32, 32))
    convert(source, tmp_path / "b.onnx", Conversion("int8", "portable", ranges={"x": 4.0}))
    assert [node.op_type for node in ir.load(tmp_path / "b.onnx").graph].count("QuantizeLinear") == 1


def test_each_expert_has_codes_of_its_own(tmp_path: Path) -> None:
    text = """g (float[3,2,64] x, float[3,64,32] w) => (float[3,2,32] y) { y = MatMul(x, w) }"""
    weight = numbers(3, 64, 32) * np.array([1, 10, 100], np.float32)[:, None, None]
    source = saved(tmp_path / "a.onnx", text, w=weight)
    convert(source, tmp_path / "b.onnx", Conversion("int4", "portable", compute="fp32", block=32))
    x = numbers(3, 2, 64, seed=1)
    wanted = np.stack([x[place] @ back(weight[place].T, Grid(ir.DataType.INT4, 32)).T for place in range(3)])
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x=x)["y"], wanted, rtol=1e-4, atol=1e-3)


LEFT = """g (float[2,100] x, float[100,32] odd, float[32,8] narrow, float[8,32] few, float[64,32] cut, float[2,2] z)
  => (float[2,32] y, float[2,2] unseen) <int64[1] zero = {0}, int64[1] half = {32}> {
  a = MatMul(x, odd)
  b = MatMul(a, narrow)
  c = MatMul(b, few)
  part = Slice(cut, zero, half, zero)
  y = MatMul(c, part)
  unseen = MatMul(z, z)
}"""


def left_source(path: Path) -> Path:
    shapes = {"odd": (100, 32), "narrow": (32, 8), "few": (8, 32), "cut": (64, 32)}
    return saved(path, LEFT, **{name: numbers(*shape) for name, shape in shapes.items()})


def test_what_is_left_alone_is_named_with_the_reason(tmp_path: Path) -> None:
    source = left_source(tmp_path / "a.onnx")
    facts = convert(source, tmp_path / "b.onnx", Conversion("int4", "portable", block=32))
    assert facts["left_alone"] == {
        "odd": "its 100 inputs do not divide into blocks of 32",
        "narrow": "32 inputs and 8 outputs are too few",
        "few": "8 inputs and 32 outputs are too few",
        "cut": "the graph cuts, chooses or shapes it first",
    }
    assert (facts["quantised"], facts["opset"]) == (0, 20)
    facts = convert(source, tmp_path / "c.onnx", Conversion("int8", "portable", ranges={"a": 1.0}))
    assert facts["left_alone"]["odd"] == "its input 'x' has no range"


def test_an_island_is_not_quantised(tmp_path: Path) -> None:
    from .test_half import two_blocks

    source = two_blocks(tmp_path / "a.onnx", size=32)
    plan = Conversion("int4", "portable", keep_fp32=("m.layers.1",), block=32)
    facts = convert(source, tmp_path / "b.onnx", plan)
    assert set(facts["left_alone"]) == {"m.layers.1.a.weight", "m.layers.1.b.weight"}
    assert facts["quantised"] == 2


def test_the_codes_of_a_half_scale_are_those_of_the_scale_as_it_is_stored(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.onnx", "turned")
    convert(source, tmp_path / "b.onnx", Conversion("int4", "portable", block=32))
    grid = Grid(ir.DataType.INT4, 32, ir.DataType.FLOAT16)
    initializers = ir.load(tmp_path / "b.onnx").graph.initializers
    scales = next(value for name, value in initializers.items() if name.startswith("w.int4.turned.scales"))
    codes = initializers["w.int4.turned"].const_value.numpy()
    assert scales.dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(scales.const_value.numpy().astype(np.float32), scales_NB(numbers(N, K), grid).T)
    np.testing.assert_array_equal(codes.astype(np.int8), codes_NK(numbers(N, K), grid).T)


def test_fp8_on_a_cpu_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.onnx", "fused")
    with pytest.raises(StageError, match="fp8 has no form in dialect 'fused'"):
        convert(source, tmp_path / "b.onnx", Conversion("fp8", "fused"))


def test_an_opset_that_would_change_another_operator_is_not_raised(tmp_path: Path) -> None:
    text = """g (float[2,128] x, float[128,128] w, float[2] scale, float[2] bias) => (float[2,128] y) {
      h = MatMul(x, w)
      y = GroupNormalization<num_groups = 2>(h, scale, bias)
    }"""
    ones = np.ones(2, np.float32)
    source = saved(tmp_path / "a.onnx", text, w=numbers(128, 128), scale=ones, bias=ones)
    with pytest.raises(StageError, match="GroupNormalization"):
        convert(source, tmp_path / "b.onnx", Conversion("int4", "portable"))
