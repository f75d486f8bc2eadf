"""Linear layers: no transposed weight is left, neighbours in the data file become one product, the numbers stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.errors import StageError
from msao_compile.graph.external_data import reference_weights
from msao_compile.graph.passes.linear import fuse_linear

from .small import graph, numbers, operators, run

WIDTH = 8
HEIGHTS = {"q": 8, "k": 4, "v": 4, "o": 6}
TEXT = f"""g (float[n,{WIDTH}] x) => (float[n,8] yq, float[n,4] yk, float[n,4] yv, float[n,6] yo) {{
  tq = Transpose<perm = [1, 0]>(q)
  tk = Transpose<perm = [1, 0]>(k)
  tv = Transpose<perm = [1, 0]>(v)
  to = Transpose<perm = [1, 0]>(o)
  pq = MatMul(x, tq)
  pk = MatMul(x, tk)
  pv = MatMul(x, tv)
  po = MatMul(x, to)
  yq = Neg(pq)
  yk = Neg(pk)
  yv = Neg(pv)
  yo = Neg(po)
}}"""


def linear(folder: Path, gap: int = 0) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The graph with its weights in a data file: q, k, v side by side, `gap` numbers, then o."""
    weights = {name: numbers(height, WIDTH, seed=seed) for seed, (name, height) in enumerate(HEIGHTS.items())}
    layout, content = {}, b""
    for name, value in weights.items():
        content += bytes(4 * gap) if name == "o" else b""
        layout[name] = {"file": "w.data", "offset": len(content), "shape": list(value.shape)}
        content += value.tobytes()
    (folder / "w.data").write_bytes(content)
    # Weights start as nameless-valued initialisers, as tracing leaves them.
    text = TEXT.replace(
        "(float[n,8] x)", "(float[n,8] x, " + ", ".join(f"float[{h},{WIDTH}] {n}" for n, h in HEIGHTS.items()) + ")"
    )
    model = graph(text)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        model.graph.initializers[str(value.name)] = value
    reference_weights(model, layout)
    return model, weights


def test_three_neighbours_become_one_product_and_all_numbers_stay(tmp_path: Path) -> None:
    model, weights = linear(tmp_path, gap=16)
    fuse_linear(model)
    assert operators(model) == Counter({"FusedMatMul": 2, "Split": 1, "Neg": 4})
    assert model.opset_imports["com.microsoft"] == 1
    x = numbers(3, WIDTH, seed=9)
    for found, weight in zip(run(model, tmp_path, x=x), weights.values(), strict=True):
        np.testing.assert_allclose(found, -(x @ weight.T), atol=1e-6)


def test_the_joined_weight_is_the_same_bytes_of_the_same_file(tmp_path: Path) -> None:
    model, _ = linear(tmp_path, gap=16)
    fuse_linear(model)
    held = {value.name: value.const_value for value in model.graph.initializers.values()}
    places = {name: (tensor.location, tensor.offset, tensor.length) for name, tensor in held.items()
              if isinstance(tensor, ir.ExternalTensor)}  # fmt: skip
    assert places == {"q+k+v": ("w.data", 0, 16 * WIDTH * 4), "o": ("w.data", (16 * WIDTH + 16) * 4, 6 * WIDTH * 4)}


def test_weights_with_a_gap_between_them_are_not_joined(tmp_path: Path) -> None:
    without, _ = linear(tmp_path)
    fuse_linear(without)
    assert operators(without)["FusedMatMul"] == 1
    apart, _ = linear(tmp_path, gap=1)
    fuse_linear(apart)
    assert operators(apart)["FusedMatMul"] == 2


def test_products_of_different_inputs_are_not_joined(tmp_path: Path) -> None:
    model, _ = linear(tmp_path)
    first = next(node for node in model.graph if node.op_type == "MatMul")
    other = ir.node("Abs", [model.graph.inputs[0]], name="other")
    model.graph.insert_before(first, other)
    first.replace_input_with(0, other.outputs[0])
    fuse_linear(model)
    assert operators(model)["FusedMatMul"] == 2


def test_weights_that_are_read_twice_are_joined_for_each_reader(tmp_path: Path) -> None:
    """As in a tower that looks at a picture whole and in parts."""
    model, weights = linear(tmp_path)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    again = ir.node("Neg", [model.graph.inputs[0]], name="again")
    model.graph.insert_before(products[0], again)
    for number, node in enumerate(products):
        twin = ir.node("MatMul", [again.outputs[0], node.inputs[1]], name=f"twin{number}")
        twin.outputs[0].name = f"twin_{number}"
        twin.outputs[0].type, twin.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        model.graph.insert_after(products[-1], twin)
        model.graph.outputs.append(twin.outputs[0])
    fuse_linear(model)
    names = [node.name for node in model.graph if node.name]
    assert operators(model)["FusedMatMul"] == 2 and len(set(names)) == len(names)
    x = numbers(3, WIDTH, seed=9)
    found = run(model, tmp_path, x=x)
    for value, weight in zip(found[-len(products) :], weights.values(), strict=False):
        np.testing.assert_allclose(value, -(x @ weight.T), atol=1e-6)


def test_a_product_of_two_computed_matrices_stays_as_it_is() -> None:
    model = graph(
        "g (float[2,3] x, float[4,3] z) => (float[2,4] y) { t = Transpose<perm = [1, 0]>(z) y = MatMul(x, t) }"
    )
    fuse_linear(model)
    assert operators(model) == Counter({"Transpose": 1, "MatMul": 1})


def test_a_weight_that_the_layout_does_not_know_is_refused(tmp_path: Path) -> None:
    model, _ = linear(tmp_path)
    model.graph.initializers["q"].const_value = None
    with pytest.raises(StageError, match="weight 'q' of the graph is not among the module's tensors"):
        reference_weights(model, {})


def test_saving_writes_the_graph_and_not_one_weight(tmp_path: Path) -> None:
    from msao_compile.graph.external_data import save

    model, _ = linear(tmp_path)
    before = (tmp_path / "w.data").read_bytes()
    save(model, tmp_path / "linear.onnx")
    assert (tmp_path / "linear.onnx").stat().st_size < 2500
    assert (tmp_path / "w.data").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.onnx", "w.data"]
