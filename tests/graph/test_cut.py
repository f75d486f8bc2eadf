"""A graph of a whole is cut where dependencies change, and its parts in a row compute the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
import pytest

from msao_compile.errors import StageError
from msao_compile.graph.cut import Part, _Builder, cut
from msao_compile.runtime.backends.ort import _give_threads

WHOLE = """<ir_version: 10, opset_import: ["" : 20]>
whole (float[patches, 4] pixel_values, int64[batch, sequence] input_ids, float[batch, sequence, 4] past,
       float[4, 4] tower, float[8, 4] table)
   => (float[batch, sequence, 4] logits)
{
   features = MatMul (pixel_values, tower)
   embedded = Gather (table, input_ids)
   mean = ReduceMean <keepdims = 1> (features)
   merged = Add (embedded, mean)
   lengths = Shape (input_ids)
   steps = Gather <axis = 0> (lengths, one)
   numbers = Cast <to = 1> (steps)
   grown = Add (merged, past)
   logits = Mul (grown, numbers)
}"""
NEEDS = {"pixel_values": "image", "input_ids": "ids", "past": "step"}


def _whole() -> ir.Model:
    text = WHOLE.replace("   lengths =", "   one = Constant <value = int64[1] {1}> ()\n   lengths =")
    model = ir.from_onnx_text(text)
    chance = np.random.default_rng(0)
    for name, shape in (("tower", (4, 4)), ("table", (8, 4))):
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        model.graph.initializers[name] = value
        value.const_value = ir.tensor(chance.standard_normal(shape).astype(np.float32), name=name)
    common.ShapeInferencePass()(model)
    return model


def _run(model: ir.Model, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    _give_threads(options, 1)
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feed = {value.name: values[value.name] for value in session.get_inputs()}
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))


def test_the_parts_in_a_row_are_the_whole() -> None:
    chance = np.random.default_rng(1)
    values = {
        "pixel_values": chance.standard_normal((6, 4)).astype(np.float32),
        "input_ids": chance.integers(0, 8, (2, 3)),
        "past": chance.standard_normal((2, 3, 4)).astype(np.float32),
    }
    whole = _whole()
    wanted = _run(whole, values)["logits"]
    parts = cut(whole, NEEDS)
    assert list(parts) == ["vision_encoder", "embed_tokens", "decoder"]
    for part in parts.values():
        values |= _run(part, values)
    np.testing.assert_allclose(values["logits"], wanted, rtol=1e-6)


def test_a_module_takes_what_crosses_and_nothing_else() -> None:
    parts = cut(_whole(), NEEDS)
    assert [value.name for value in parts["vision_encoder"].graph.inputs] == ["pixel_values"]
    assert {value.name for value in parts["embed_tokens"].graph.inputs} == {"input_ids", "mean"}
    assert {value.name for value in parts["decoder"].graph.inputs} == {"merged", "past"}
    assert set(parts["vision_encoder"].graph.initializers) == {"tower"}


def test_a_length_is_read_off_what_reaches_a_module() -> None:
    nodes = [node.op_type for node in cut(_whole(), NEEDS)["decoder"].graph]
    assert "Shape" in nodes


@pytest.mark.parametrize(
    ("length", "count"),
    [
        ("Min(Min(20, rows // 8) + 2, rows)", lambda rows: min(min(20, rows // 8) + 2, rows)),
        ("Max(3, rows % 4)", lambda rows: max(3, rows % 4)),
        ("rows + PythonMod(-rows, 8)", lambda rows: rows + -rows % 8),
        ("4 - (-rows) // 8", lambda rows: 4 - -rows // 8),
    ],
)
def test_lengths_are_reckoned_as_python_does(length: str, count: Callable[[int], int]) -> None:
    builder = _Builder(_whole(), Part("decoder"))
    taken = builder._take(ir.Value(name="x", shape=ir.Shape(["rows"]), type=ir.TensorType(ir.DataType.FLOAT)))
    found = builder._length(ir.SymbolicDim(length))
    graph = ir.Graph([taken], [found], nodes=builder.nodes, initializers=tuple(builder.initializers.values()),
                     opset_imports={"": 20}, name="lengths")  # fmt: skip
    for rows in (1, 7, 8, 30, 200):
        [value] = _run(ir.Model(graph, ir_version=10), {"x": np.zeros(rows, np.float32)}).values()
        assert value.tolist() == [count(rows)]
    with pytest.raises(KeyError):
        builder._length(ir.SymbolicDim("TruncToInt(rows)"))


def test_names_of_nodes_are_unique() -> None:
    for part in cut(_whole(), NEEDS).values():
        names = [node.name for node in part.graph if node.name]
        assert len(names) == len(set(names))


def test_an_input_that_belongs_nowhere_is_an_error() -> None:
    with pytest.raises(StageError, match="pixel_values"):
        cut(_whole(), {"input_ids": "ids", "past": "step"})


def test_a_medium_of_which_nothing_is_made_is_refused_by_name() -> None:
    whole = _whole()
    whole.graph.inputs.append(ir.Value(name="input_features"))
    with pytest.raises(StageError, match="no audio_encoder came out: .* nothing of its audio inputs alone"):
        cut(whole, {**NEEDS, "input_features": "audio"})


READS = """<ir_version: 10, opset_import: ["" : 20]>
whole (int64[batch, text] input_ids, int64[batch, sequence] decoder_input_ids, float[batch, sequence, 4] past,
       float[8, 4] table)
   => (float[batch, sequence, 4] logits)
{
   one = Constant <value = int64[1] {1}> ()
   read = Gather (table, input_ids)
   mean = ReduceMean <keepdims = 1> (read)
   embedded = Gather (table, decoder_input_ids)
   size = Shape <start = 1, end = 2> (decoder_input_ids)
   shape = Concat <axis = 0> (one, size, one)
   total = ReduceMean <keepdims = 1> (mean, one)
   everywhere = Expand (total, shape)
   shared = %s
   grown = Add (shared, past)
   logits = Add (grown, everywhere)
}"""
ENCODED = {"input_ids": "text", "decoder_input_ids": "ids", "past": "step"}


@pytest.mark.parametrize(
    ("shared", "home"), [("Neg (embedded)", "decoder"), ("Add (embedded, everywhere)", "embed_tokens")]
)
def test_what_an_encoder_gives_to_every_token_is_spread_where_it_is_read(shared: str, home: str) -> None:
    model = ir.from_onnx_text(READS % shared)
    table = next(value for value in model.graph.inputs if value.name == "table")
    model.graph.inputs.remove(table)
    model.graph.initializers["table"] = table
    table.const_value = ir.tensor(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), name="table")
    common.ShapeInferencePass()(model)
    values = {"input_ids": np.array([[1, 2]]), "decoder_input_ids": np.array([[3, 4, 5]]), "past": np.ones((1, 3, 4))}
    values["past"] = values["past"].astype(np.float32)
    wanted = _run(model, values)["logits"]
    parts = cut(model, ENCODED)
    spread = [name for name, part in parts.items() if any(node.op_type == "Expand" for node in part.graph)]
    crossing = {str(value.name) for value in parts["encoder"].graph.outputs}
    assert (spread, crossing) == ([home], {"total"})
    for part in parts.values():
        values |= _run(part, values)
    np.testing.assert_allclose(values["logits"], wanted, rtol=1e-6)
