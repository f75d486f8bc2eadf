"""State in place: the same logits as by concatenation, and a graph whose numbers mean something else is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph.small import graph, numbers, operators, run
from msao_compile.graph.passes.scatter import OPSET, scatter_state

CAPACITY, WIDTH = 9, 4
STATES = [
    {"name": f"past_{end}", "output": f"present_{end}", "dtype": "float32", "update": "concat",
     "shape": ["batch_size", 1, "past_sequence_length", WIDTH]} for end in ("key", "value")
]  # fmt: skip
# One causal head: positions held follow from the mask's width less the tokens fed, as exporters write it.
DECODER = f"""
decoder (int64[batch_size, total_sequence_length] attention_mask,
         float[batch_size, 1, sequence_length, {WIDTH}] x,
         float[batch_size, 1, past_sequence_length, {WIDTH}] past_key,
         float[batch_size, 1, past_sequence_length, {WIDTH}] past_value)
    => (float[batch_size, 1, sequence_length, {WIDTH}] y,
        float[batch_size, 1, total_sequence_length, {WIDTH}] present_key,
        float[batch_size, 1, total_sequence_length, {WIDTH}] present_value)
<int64 zero = {{0}}, int64 one = {{1}}, float low = {{-1e9}}, float nought = {{0}}, int64[1] first = {{0}},
 int64[1] second = {{1}}, int64[1] minus = {{-1}}>
{{
    mask_sizes = Shape(attention_mask)
    total = Gather(mask_sizes, one)
    moved = Transpose<perm = [0, 2, 1, 3]>(x)
    moved_sizes = Shape(moved)
    count = Gather(moved_sizes, one)
    held = Sub(total, count)
    present_key = Concat<axis = -2>(past_key, x)
    present_value = Concat<axis = 2>(past_value, x)
    columns = Range(zero, total, one)
    rows = Range(zero, count, one)
    places = Add(rows, held)
    standing = Unsqueeze(places, second)
    lying = Unsqueeze(columns, first)
    before = LessOrEqual(lying, standing)
    wide = Unsqueeze(attention_mask, second)
    shown = Cast<to = 9>(wide)
    seen = And(before, shown)
    added = Where(seen, nought, low)
    four = Unsqueeze(added, second)
    keys = Transpose<perm = [0, 1, 3, 2]>(present_key)
    scores = MatMul(x, keys)
    key_sizes = Shape<start = 2, end = 3>(past_key)
    counts = Unsqueeze(count, first)
    sums = Add(key_sizes, counts)
    batch = Shape<start = 0, end = 1>(x)
    target = Concat<axis = 0>(batch, second, counts, sums)
    shaped = Reshape(scores, target)
    masked = Add(shaped, four)
    weights = Softmax<axis = -1>(masked)
    y = MatMul(weights, present_value)
}}
"""


def both(folder: Path) -> tuple[ir.Model, ir.Model]:
    """The decoder as it is traced, and with its state in place."""
    plain, placed = graph(DECODER), graph(DECODER)
    states, growing = scatter_state(placed, STATES, CAPACITY)
    assert growing is None
    assert [state["update"] for state in states] == ["in_place", "in_place"]
    assert states[0]["shape"] == ["batch_size", 1, CAPACITY, WIDTH]
    return plain, placed


def test_a_buffer_that_is_written_gives_what_concatenation_gives(tmp_path: Path) -> None:
    plain, placed = both(tmp_path)
    grown = [np.zeros((2, 1, 0, WIDTH), np.float32)] * 2
    buffers = [np.zeros((2, 1, CAPACITY, WIDTH), np.float32)] * 2
    held = 0
    for count in (4, 1, 3):  # a prompt, a step, several at once
        x = numbers(2, 1, count, WIDTH, seed=held)
        mask = np.ones((2, held + count), np.int64)
        mask[1, 0] = 0  # a row that began with padding
        state = dict(zip(("past_key", "past_value"), grown, strict=True))
        expected, *grown = run(plain, tmp_path, attention_mask=mask, x=x, **state)
        state = dict(zip(("past_key", "past_value"), buffers, strict=True))
        padded = np.pad(mask, ((0, 0), (0, CAPACITY - held - count)))
        places = np.full(2, held, np.int64)
        found, *buffers = run(placed, tmp_path, attention_mask=padded, x=x, write_indices=places, **state)
        real = mask[:, held:].astype(bool)  # what padding itself attends to is nobody's business
        np.testing.assert_allclose(found[:, 0][real], expected[:, 0][real], atol=1e-6)
        held += count
        np.testing.assert_array_equal(buffers[0][:, :, :held], grown[0])
        assert not buffers[0][:, :, held:].any()


def test_nothing_grows_any_more_and_the_capacity_stands_in_the_graph(tmp_path: Path) -> None:
    _, placed = both(tmp_path)
    assert operators(placed)["TensorScatter"] == 2
    assert placed.opset_imports[""] == OPSET
    shapes = {value.name: list(value.shape or ()) for value in placed.graph.inputs}
    assert shapes["attention_mask"] == [ir.SymbolicDim("batch_size"), CAPACITY]
    assert shapes["past_key"][2] == CAPACITY
    assert shapes["write_indices"] == [ir.SymbolicDim("batch_size")]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("held = Sub(total, count)", "twice = Mul(total, one_more)\n held = Sub(twice, count)", "in another way"),
        ("Concat<axis = 2>(past_value, x)", "Concat<axis = 2>(x, past_value)", "behind it"),
    ],
)
def test_a_graph_that_uses_its_past_otherwise_keeps_concatenating(old: str, new: str, reason: str) -> None:
    text = DECODER.replace(old, new).replace("int64 one = {1},", "int64 one = {1}, int64 one_more = {2},")
    model = graph(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    states, growing = scatter_state(model, STATES, CAPACITY)
    assert growing is not None
    assert reason in growing
    assert states == STATES
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
