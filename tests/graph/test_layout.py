"""Layout changes that undo each other go away, and the numbers stay bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from msao_compile.graph.passes.layout import cancel_layouts

from .small import graph, numbers, operators, run

INVERSE = """g (float[2,3,4] x) => (float[2,3,4] y) {
  a = Transpose<perm = [2, 0, 1]>(x)
  b = Transpose<perm = [1, 2, 0]>(a)
  y = Neg(b)
}"""
TWICE = """g (float[2,3,4] x) => (float[3,4,2] y) {
  a = Transpose<perm = [2, 0, 1]>(x)
  b = Transpose<perm = [2, 0, 1]>(a)
  y = Neg(b)
}"""
SHARED = """g (float[2,3,4] x) => (float[2,3,4] y, float[4,2,3] z) {
  a = Transpose<perm = [2, 0, 1]>(x)
  b = Transpose<perm = [1, 2, 0]>(a)
  y = Neg(b)
  z = Abs(a)
}"""
AT_THE_END = """g (float[2,3,4] x) => (float[2,3,4] y) {
  a = Transpose<perm = [2, 0, 1]>(x)
  y = Transpose<perm = [1, 2, 0]>(a)
}"""
RESHAPES = """g (float[2,3,4] x) => (float[4,6] y) <int64[1] flat = {-1}, int64[2] square = {4, 6}> {
  a = Reshape(x, flat)
  b = Reshape(a, square)
  y = Neg(b)
}"""
COPIED_AXIS = """g (float[2,3,4] x) => (float[6,4] y) <int64[2] first = {6, 4}, int64[2] second = {0, -1}> {
  a = Reshape(x, first)
  b = Reshape(a, second)
  y = Neg(b)
}"""
NOTHING = """g (float[n,3,4] x) => (float[n,3,4] y) <int64[3] same = {-1, 3, 4}> {
  a = Abs(x)
  b = Reshape(a, same)
  y = Neg(b)
}"""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (INVERSE, {"Neg": 1}),
        (TWICE, {"Transpose": 2, "Neg": 1}),
        (SHARED, {"Transpose": 1, "Neg": 1, "Abs": 1}),
        (RESHAPES, {"Reshape": 1, "Neg": 1}),
        (COPIED_AXIS, {"Reshape": 2, "Neg": 1}),  # a 0 means "as in my input", so the input must stay
        (NOTHING, {"Abs": 1, "Reshape": 1, "Neg": 1}),  # no shape is known in between, so nothing is taken for equal
    ],
)
def test_what_cancels_goes_and_the_numbers_stay(text: str, left: dict[str, int], tmp_path: Path) -> None:
    x = numbers(2, 3, 4)
    before, model = run(graph(text), tmp_path, x=x), graph(text)
    cancel_layouts(model)
    assert operators(model) == Counter(left)
    for one, other in zip(before, run(model, tmp_path, x=x), strict=True):
        assert np.array_equal(one, other)


def test_a_pair_whose_result_is_a_graph_output_keeps_the_output(tmp_path: Path) -> None:
    model, x = graph(AT_THE_END), numbers(2, 3, 4)
    cancel_layouts(model)
    assert np.array_equal(run(model, tmp_path, x=x)[0], x)
    assert [value.name for value in model.graph.outputs] == ["y"]
