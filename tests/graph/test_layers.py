"""A layer's graph where it is called: its lengths are those of the call."""

from __future__ import annotations

import onnx_ir as ir

from msao_compile.graph.layers import as_function, placed

from .small import graph

LAYER = """g (float[8,8] weight, float[b,s,8] t0, float[b,k,8] t1) => (float[b,s,8] out) {
  last = Identity(t1)
  out = MatMul(t0, weight)
}"""


def shapes(*given: tuple[int | str | None, ...]) -> dict[str, list[int | str | None]]:
    """What the layer's values look like where it is called with tensors of these shapes."""
    model = graph(LAYER)
    inner = {"last": ["b", "2*k + s", 8], "out": ["b", "s", 8]}
    for node in model.graph:
        node.outputs[0].shape = ir.Shape(inner[str(node.outputs[0].name)])
    values = [ir.Value(name=f"v{index}", shape=ir.Shape(shape)) for index, shape in enumerate([(8, 8), *given])]
    found = placed(as_function(model, "Layer0"), "layers.3", values)
    return {
        str(node.outputs[0].name): [size if isinstance(size, int) else size.value for size in node.outputs[0].shape]
        for node in found
        if node.outputs[0].shape is not None
    }


def test_lengths_of_a_layer_are_those_of_what_it_is_given() -> None:
    assert shapes((2, "q", 8), (2, "4*n", 8)) == {"last": [2, "2*(4*n) + q", 8], "out": [2, "q", 8]}


def test_the_same_layer_elsewhere_has_other_lengths() -> None:
    assert shapes(("rows", 1, 8), ("rows", 7, 8))["out"] == ["rows", 1, 8]


def test_a_length_that_is_not_known_around_the_call_has_no_name_but_its_axis_stays() -> None:
    assert shapes((2, "q", 8), (2, None, 8)) == {"last": [2, None, 8], "out": [2, "q", 8]}
