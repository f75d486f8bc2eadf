"""Observed graphs report maxima and what leaves blocks, read the same data file, and compute what they did."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest

from msao_compile.errors import DeploymentError
from msao_compile.graph.precision.blocks import blocks, exits, labels
from msao_compile.graph.precision.convert import Conversion, convert
from msao_compile.graph.precision.observe import leaving, observed, observed_blocks
from msao_compile.graph.precision.weights import opened

from .samples import run, saved
from .test_half import numbers, two_blocks


def test_each_activation_of_a_product_is_reported_with_its_largest_magnitude(tmp_path: Path) -> None:
    source = two_blocks(tmp_path / "a.onnx")
    values = observed(source, tmp_path / "b.onnx")
    assert sorted(values.values()) == ["a0", "a1", "c0", "c1"]
    x = numbers(2, 8)
    found = run(tmp_path / "b.onnx", x=x)
    np.testing.assert_array_equal(found["y"], run(source, x=x)["y"])
    outputs = {name: output for output, name in values.items()}
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found[outputs["a0"]], np.abs(normal).max(), rtol=1e-5)


def test_an_activation_of_no_rows_has_a_maximum_of_zero(tmp_path: Path) -> None:
    text = "g (float[rows,32] x, float[32,32] w) => (float[rows,32] y) { y = MatMul(x, w) }"
    observed(saved(tmp_path / "a.onnx", text, w=numbers(32, 32)), tmp_path / "b.onnx")
    assert run(tmp_path / "b.onnx", x=np.zeros((0, 32), np.float32))["largest.0"] == 0
    assert run(tmp_path / "b.onnx", x=np.array([[0.5, -3.0, *[0] * 30]], np.float32))["largest.0"] == 3


def test_the_weights_of_an_observed_graph_are_not_copied(tmp_path: Path) -> None:
    source = two_blocks(tmp_path / "a.onnx")
    observed(source, tmp_path / "beside.onnx")
    observed(source, tmp_path / "other" / "b.onnx")
    assert sorted(file.name for file in tmp_path.glob("*.data")) == ["a.onnx.data"]
    assert (tmp_path / "other" / "a.onnx.data").samefile(tmp_path / "a.onnx.data")
    assert run(tmp_path / "other" / "b.onnx", x=numbers(2, 8))["y"].shape == (2, 8)


def test_blocks_come_in_the_order_of_their_use(tmp_path: Path) -> None:
    assert blocks(two_blocks(tmp_path / "a.onnx")) == ("m.layers.0", "m.layers.1")


def test_what_leaves_a_block_is_its_last_value_that_others_take(tmp_path: Path) -> None:
    assert leaving(two_blocks(tmp_path / "a.onnx")) == {"m.layers.0": "x1", "m.layers.1": "x2"}


def test_a_norm_that_is_spelt_out_belongs_where_its_weight_does(tmp_path: Path) -> None:
    text = """g (float[2,4] x, float[4] m__layers__0__n, float[4,4] m__layers__0__a, float[4,4] m__layers__0__b,
      float[4] m__norm) => (float[2,4] y) <float two = {2.0}, int64[1] last = {-1}> {
      h = MatMul(x, m__layers__0__a)
      k = Mul(h, m__layers__0__n)
      x1 = MatMul(k, m__layers__0__b)
      square = Pow(x1, two)
      mean = ReduceMean(square, last)
      inverse = Reciprocal(mean)
      normal = Mul(x1, inverse)
      y = Mul(normal, m__norm)
    }"""
    shapes = {"m__layers__0__n": (4,), "m__layers__0__a": (4, 4), "m__layers__0__b": (4, 4), "m__norm": (4,)}
    source = saved(tmp_path / "a.onnx", text, **{name: numbers(*shape) for name, shape in shapes.items()})
    model = opened(source)
    of_value = {node.outputs[0].name: block for node, block in labels(model).items()}
    assert {name for name, block in of_value.items() if block} == {"h", "k", "x1"}
    assert [value.name for value in exits(model).values()] == ["x1"]


def nothing(blocks: Iterable[str]) -> dict[str, np.ndarray]:
    """Feeds no block in its place."""
    return {
        name: value for block in blocks for name, value in entering(block, np.zeros((1, 1)), is_given=False).items()
    }


def entering(block: str, value: np.ndarray, is_given: bool = True) -> dict[str, np.ndarray]:
    return {f"enters.{block}": value.astype(np.float32), f"enters.{block}.given": np.array(is_given)}


@pytest.mark.parametrize("kept", [(), ("m.layers.0",)])
def test_blocks_of_both_precisions_can_be_compared(tmp_path: Path, kept: tuple[str, ...]) -> None:
    source = two_blocks(tmp_path / "a.onnx")
    convert(source, tmp_path / "b.onnx", Conversion("fp16", "portable", keep_fp32=kept))
    found, x = {}, numbers(2, 8)
    for name in ("a", "b"):
        outputs = observed_blocks(tmp_path / f"{name}.onnx", tmp_path / f"{name}.blocks.onnx", leaving(source))
        assert outputs == {block: f"leaves.{block}" for block in blocks(source)}
        found[name] = run(tmp_path / f"{name}.blocks.onnx", x=x, **nothing(outputs))
    for output in ("leaves.m.layers.0", "leaves.m.layers.1", "y"):
        assert found["b"][output].dtype == np.float32
        difference = np.abs(found["a"][output] - found["b"][output]).max()
        assert difference < 0.02
        is_exact = output == "leaves.m.layers.0" and bool(kept)
        assert (difference < 1e-6) == is_exact


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_what_follows_a_block_takes_what_is_given_in_its_place(tmp_path: Path, kind: str) -> None:
    source = two_blocks(tmp_path / "a.onnx")
    convert(source, tmp_path / "b.onnx", Conversion("fp16", "portable"))
    graph = source if kind == "fp32" else tmp_path / "b.onnx"
    blocks = observed_blocks(graph, tmp_path / "c.onnx", leaving(source))
    x, other = numbers(2, 8), numbers(2, 8) * 2
    plain = run(tmp_path / "c.onnx", x=x, **nothing(blocks))
    given = run(tmp_path / "c.onnx", x=x, **nothing(blocks) | entering("m.layers.0", other))
    again = run(tmp_path / "c.onnx", x=0 * x, **nothing(blocks) | entering("m.layers.0", other))
    np.testing.assert_array_equal(given["leaves.m.layers.0"], plain["leaves.m.layers.0"])
    np.testing.assert_array_equal(given["y"], again["y"])
    assert np.abs(given["y"] - plain["y"]).max() > 0.1
    same = run(tmp_path / "c.onnx", x=x, **nothing(blocks) | entering("m.layers.0", plain["leaves.m.layers.0"]))
    np.testing.assert_array_equal(same["y"], plain["y"])


def test_what_is_made_before_the_first_block_has_a_place_too(tmp_path: Path) -> None:
    source = two_blocks(tmp_path / "a.onnx")
    model = onnx.load(source)
    for node in model.graph.node:
        node.input[:] = ["twice" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Add", ["x", "x"], ["twice"]))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("twice", onnx.TensorProto.FLOAT, [2, 8]))
    onnx.save(model, source)
    assert leaving(source) == {"(before)": "twice", "m.layers.0": "x1", "m.layers.1": "x2"}


def test_a_graph_without_those_blocks_is_refused(tmp_path: Path) -> None:
    source = two_blocks(tmp_path / "a.onnx")
    with pytest.raises(DeploymentError, match="'m.layers.7'"):
        observed_blocks(source, tmp_path / "b.onnx", {"m.layers.7": "nowhere"})
