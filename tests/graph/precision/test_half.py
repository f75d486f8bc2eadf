"""Half precision: what would overflow or lose its digits stays in fp32, casts are few, and types agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from msao_compile.graph.precision.convert import Conversion, convert

from .samples import cosine, kinds, run, saved

HALF = Conversion("fp16", "portable")
PRODUCT = """g (float[2,8] x, float[8,8] w) => (float[2,8] y) {
  a = MatMul(x, w)
  y = Relu(a)
}"""
RMS = """g (float[2,8] x, float[8,8] w, float[8] scale) => (float[2,8] y)
  <float two = {2.0}, float eps = {0.000001}, int64[1] last = {-1}> {
  h = MatMul(x, w)
  square = Pow(h, two)
  mean = ReduceMean<keepdims = 1>(square, last)
  safe = Add(mean, eps)
  root = Sqrt(safe)
  inverse = Reciprocal(root)
  normal = Mul(h, inverse)
  scaled = Mul(normal, scale)
  y = MatMul(scaled, w)
}"""
LAYER = """g (float[2,8] x, float[8,8] w) => (float[2,8] y)
  <float eps = {0.000001}, int64[1] last = {-1}> {
  h = MatMul(x, w)
  mean = ReduceMean<keepdims = 1>(h, last)
  centred = Sub(h, mean)
  square = Mul(centred, centred)
  variance = ReduceMean<keepdims = 1>(square, last)
  safe = Add(variance, eps)
  root = Sqrt(safe)
  normal = Div(centred, root)
  y = MatMul(normal, w)
}"""


def eye(size: int, factor: float = 1.0) -> np.ndarray:
    return (np.eye(size) * factor).astype(np.float32)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("text", [RMS, LAYER])
@pytest.mark.parametrize("size", [3e4, 1e-3])
def test_a_spelt_out_norm_keeps_its_digits_whatever_the_size_of_its_input(
    tmp_path: Path, text: str, size: float
) -> None:
    weights = {"w": eye(8)} | ({"scale": np.ones(8, np.float32)} if "scale" in text else {})
    source = saved(tmp_path / "a.onnx", text, **weights)
    convert(source, tmp_path / "b.onnx", HALF)
    x = numbers(2, 8) * np.float32(size / 2)
    wanted, found = run(source, x=x)["y"], run(tmp_path / "b.onnx", x=x)["y"]
    np.testing.assert_allclose(found, wanted, atol=4e-3, rtol=4e-3)
    assert set(kinds(tmp_path / "b.onnx", "MatMul")) == {"FLOAT16"}
    for operator in ("ReduceMean", "Sub", "Div", "Mul"):
        assert set(kinds(tmp_path / "b.onnx", operator)) <= {"FLOAT"}


def test_only_the_borders_of_a_norm_are_cast(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.onnx", RMS, w=eye(8), scale=np.ones(8, np.float32))
    convert(source, tmp_path / "b.onnx", HALF)
    graph = ir.load(tmp_path / "b.onnx").graph
    casts = [node for node in graph if node.op_type == "Cast"]
    assert [node.outputs[0].dtype.name for node in casts] == ["FLOAT16", "FLOAT", "FLOAT16", "FLOAT"]
    assert not [node for node in casts if node.inputs[0].producer() in casts]


def test_neighbours_in_fp32_have_no_cast_between_them(tmp_path: Path) -> None:
    text = """g (float[2,8] x, float[8] scale) => (float[2,8] y) {
      a = LayerNormalization(x, scale)
      b = Softmax(a)
      c = Transpose<perm = [1, 0]>(b)
      y = LayerNormalization(b, scale)
    }"""
    source = saved(tmp_path / "a.onnx", text, scale=np.ones(8, np.float32))
    convert(source, tmp_path / "b.onnx", HALF)
    assert not kinds(tmp_path / "b.onnx", "Cast")


def test_a_value_is_cast_once_for_all_who_ask(tmp_path: Path) -> None:
    text = """g (float[2,8] x, float[8] scale, float[8,8] w) => (float[2,8] y) {
      a = LayerNormalization(x, scale)
      b = MatMul(a, w)
      c = MatMul(a, w)
      y = Add(b, c)
    }"""
    source = saved(tmp_path / "a.onnx", text, scale=np.ones(8, np.float32), w=eye(8))
    convert(source, tmp_path / "b.onnx", HALF)
    assert kinds(tmp_path / "b.onnx", "Cast") == ["FLOAT16", "FLOAT"]


def test_scale_and_mask_before_a_softmax_are_in_fp32_with_it(tmp_path: Path) -> None:
    text = """g (float[2,4,8] q, float[2,8,4] k, bool[2,4,4] seen) => (float[2,4,4] y)
      <float zero = {0.0}, float never = {-3.4028234663852886e38}, float root = {0.35}> {
      scores = MatMul(q, k)
      scaled = Mul(scores, root)
      mask = Where(seen, zero, never)
      masked = Add(scaled, mask)
      y = Softmax(masked)
    }"""
    source = saved(tmp_path / "a.onnx", text)
    convert(source, tmp_path / "b.onnx", HALF)
    feed = {"q": numbers(2, 4, 8), "k": numbers(2, 8, 4, seed=1), "seen": np.tril(np.ones((2, 4, 4), bool))}
    feed["seen"][0, 0] = False  # a row that sees nothing: its softmax is even, not NaN
    wanted, found = run(source, **feed)["y"], run(tmp_path / "b.onnx", **feed)["y"]
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert kinds(tmp_path / "b.onnx", "Cast") == ["FLOAT16", "FLOAT16", "FLOAT"]


@pytest.mark.parametrize("never", [-3.4028234663852886e38, -1e9])
def test_a_mask_that_half_arithmetic_takes_stays_finite(tmp_path: Path, never: float) -> None:
    text = f"""g (float[2,8] x, float[8,8] w, bool[2,8] seen) => (float[2,8] y)
      <float zero = {{0.0}}, float never = {{{never:.17g}}}> {{
      h = MatMul(x, w)
      mask = Where(seen, zero, never)
      masked = Add(h, mask)
      y = MatMul(masked, w)
    }}"""
    source = saved(tmp_path / "a.onnx", text, w=eye(8, 0.5))
    convert(source, tmp_path / "b.onnx", HALF)
    found = run(tmp_path / "b.onnx", x=numbers(2, 8), seen=np.zeros((2, 8), bool))["y"]
    np.testing.assert_allclose(found, -65504 / 2, rtol=1e-3)


@pytest.mark.parametrize("constant", ["0.000000000001", "100000.0"])
def test_arithmetic_with_a_constant_that_half_cannot_hold_is_in_fp32(tmp_path: Path, constant: str) -> None:
    text = f"""g (float[2,8] x, float[8,8] w) => (float[2,8] y) <float c = {{{constant}}}> {{
      h = MatMul(x, w)
      a = Mul(h, c)
      b = Div(a, c)
      y = MatMul(b, w)
    }}"""
    source = saved(tmp_path / "a.onnx", text, w=eye(8))
    convert(source, tmp_path / "b.onnx", HALF)
    x = numbers(2, 8)
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x=x)["y"], x, rtol=2e-3)


def test_angles_come_from_positions_in_fp32(tmp_path: Path) -> None:
    text = """g (int64[1,4] positions, float[1,4,8] q, float[8] frequencies, float[8,8] w) => (float[1,4,8] y)
      <int64[1] last = {-1}> {
      column = Unsqueeze(positions, last)
      real = Cast<to = 1>(column)
      angle = Mul(real, frequencies)
      turned = Cos(angle)
      h = MatMul(q, w)
      y = Mul(h, turned)
    }"""
    source = saved(tmp_path / "a.onnx", text, frequencies=np.geomspace(1, 1e-4, 8, dtype=np.float32), w=eye(8))
    convert(source, tmp_path / "b.onnx", HALF)
    feed = {"positions": np.array([[4097, 9001, 30011, 100003]]), "q": np.ones((1, 4, 8), np.float32)}
    np.testing.assert_allclose(run(tmp_path / "b.onnx", **feed)["y"], run(source, **feed)["y"], atol=1e-3)


def test_what_comes_from_integers_is_a_number_in_fp32_before_it_is_half(tmp_path: Path) -> None:
    text = """g (int64[2,8] counts, float[2,8] x, float[8,8] w) => (float[2,8] y) {
      real = Cast<to = 1>(counts)
      h = MatMul(x, w)
      y = Mul(h, real)
    }"""
    source = saved(tmp_path / "a.onnx", text, w=eye(8))
    convert(source, tmp_path / "b.onnx", HALF)
    graph = ir.load(tmp_path / "b.onnx").graph
    given = [node.outputs[0].dtype.name for node in graph if node.inputs[0] in graph.inputs and node.op_type == "Cast"]
    assert sorted(given) == ["FLOAT", "FLOAT16"]  # of the counts and of x


def test_states_are_half_in_and_out_and_all_else_keeps_its_type(tmp_path: Path) -> None:
    text = """g (float[1,2,4] past, float[1,1,4] x, float[4,4] w) => (float[1,3,4] present, float[1,1,4] y) {
      new = MatMul(x, w)
      present = Concat<axis = 1>(past, new)
      y = Relu(new)
    }"""
    source = saved(tmp_path / "a.onnx", text, w=eye(4))
    facts = convert(source, tmp_path / "b.onnx", Conversion("fp16", "portable", states=("past", "present")))
    assert [entry["dtype"] for entry in facts["inputs"]] == ["float16", "float32"]
    assert [entry["dtype"] for entry in facts["outputs"]] == ["float16", "float32"]
    assert [entry["name"] for entry in facts["outputs"]] == ["present", "y"]
    past, x = numbers(1, 2, 4), numbers(1, 1, 4, seed=1)
    found = run(tmp_path / "b.onnx", past=past, x=x)
    np.testing.assert_allclose(found["present"], np.concatenate([past, x], 1), atol=2e-3)
    assert found["y"].dtype == np.float32


TWO_BLOCKS = """g (float[2,8] x, float[8,8] m__layers__0__a__weight, float[8] m__layers__0__n__weight,
    float[8,8] m__layers__0__b__weight, float[8,8] m__layers__1__a__weight, float[8] m__layers__1__n__weight,
    float[8,8] m__layers__1__b__weight, float[8] m__norm__weight) => (float[2,8] y) {
  a0 = LayerNormalization(x, m__layers__0__n__weight)
  b0 = MatMul(a0, m__layers__0__a__weight)
  c0 = Tanh(b0)
  d0 = MatMul(c0, m__layers__0__b__weight)
  x1 = Add(x, d0)
  a1 = LayerNormalization(x1, m__layers__1__n__weight)
  b1 = MatMul(a1, m__layers__1__a__weight)
  c1 = Tanh(b1)
  d1 = MatMul(c1, m__layers__1__b__weight)
  x2 = Add(x1, d1)
  y = LayerNormalization(x2, m__norm__weight)
}"""


def two_blocks(path: Path, size: int = 8) -> Path:
    """Two layers of a norm, two products and a Tanh, and a last norm."""
    text = TWO_BLOCKS.replace("8", str(size))
    products = {f"m__layers__{layer}__{name}__weight": numbers(size, size, seed=layer) / 3
                for layer in (0, 1) for name in "ab"}  # fmt: skip
    norms = {f"m__layers__{layer}__n__weight": np.ones(size, np.float32) for layer in (0, 1)}
    return saved(path, text, **products, **norms, m__norm__weight=np.ones(size, np.float32))


def test_a_block_that_is_kept_stays_in_fp32_with_what_lies_between_its_products(tmp_path: Path) -> None:
    source = two_blocks(tmp_path / "a.onnx")
    convert(source, tmp_path / "b.onnx", Conversion("fp16", "portable", keep_fp32=("m.layers.0",)))
    assert kinds(tmp_path / "b.onnx", "MatMul") == ["FLOAT", "FLOAT", "FLOAT16", "FLOAT16"]
    assert kinds(tmp_path / "b.onnx", "Tanh") == ["FLOAT", "FLOAT16"]
    x = numbers(2, 8)
    assert cosine(run(source, x=x)["y"], run(tmp_path / "b.onnx", x=x)["y"]) > 0.99999


def test_bf16_leaves_in_fp32_what_the_operator_set_has_no_bf16_for(tmp_path: Path) -> None:
    text = """g (float[1,3,8,8] x, float[4,3,2,2] filters, float[4,4] w) => (float[1,4,4,4] y) {
      a = Conv<strides = [2, 2]>(x, filters)
      b = MatMul(a, w)
      y = Gelu(b)
    }"""
    source = saved(tmp_path / "a.onnx", text, filters=numbers(4, 3, 2, 2), w=numbers(4, 4))
    convert(source, tmp_path / "b.onnx", Conversion("bf16", "portable"))
    onnx.checker.check_model(str(tmp_path / "b.onnx"))
    assert [kinds(tmp_path / "b.onnx", name)[0] for name in ("Conv", "MatMul")] == ["FLOAT", "BFLOAT16"]
    x = numbers(1, 3, 8, 8)
    found = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, {"x": x})[0]  # ONNX Runtime's CPU has no bf16 MatMul
    assert cosine(run(source, x=x)["y"], found) > 0.9999


def test_a_weight_beyond_half_is_its_largest_number_not_infinity(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.onnx", PRODUCT, w=eye(8, 1e6))
    convert(source, tmp_path / "b.onnx", HALF)
    assert run(tmp_path / "b.onnx", x=np.full((2, 8), 0.5, np.float32))["y"].max() == 32752


def test_an_embedding_table_is_half_and_a_small_table_of_positions_is_not(tmp_path: Path) -> None:
    text = """g (int64[3] ids, float[64,32] table, float[4,1] places) => (float[3,32] y) {
      a = Gather(table, ids)
      b = Gather(places, ids)
      c = Cos(b)
      y = Mul(a, c)
    }"""
    source = saved(tmp_path / "a.onnx", text, table=numbers(64, 32), places=np.arange(4, dtype=np.float32)[:, None])
    convert(source, tmp_path / "b.onnx", HALF)
    assert kinds(tmp_path / "b.onnx", "Gather") == ["FLOAT16", "FLOAT"]


def test_every_constant_is_there_once_in_each_type_that_is_asked_for(tmp_path: Path) -> None:
    text = """g (float[2,8] x, float[8] c, float[8,8] w) => (float[2,8] y) {
      a = LayerNormalization(x, c)
      b = MatMul(a, w)
      d = Add(b, c)
      y = Mul(d, c)
    }"""
    source = saved(tmp_path / "a.onnx", text, c=np.ones(8, np.float32), w=eye(8))
    convert(source, tmp_path / "b.onnx", HALF)
    found = Counter(value.dtype.name for value in ir.load(tmp_path / "b.onnx").graph.initializers.values())
    assert found == {"FLOAT": 1, "FLOAT16": 2}
