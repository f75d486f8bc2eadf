"""What crosses between modules has names that others know; a digest is of what is computed, however it is called."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.graph.ends import digest, name_ends, read_archive, spec, weights, write_archive

from .small import graph, numbers, operators

VISION = """g (float[n,4] pixel_values) => (float[n,4] raw_1, float[n,4] raw_2) {
  raw_1 = Neg(pixel_values)
  raw_2 = Abs(raw_1)
}"""
SOUND = "g (float[n,4] input_features) => (float[n,4] raw_a) { raw_a = Neg(input_features) }"
EMBED = """g (int64[b,s] input_ids, float[9,4] raw_1, float[9,4] raw_2, float[n,4] raw_a)
   => (float[b,s,4] e1, int64[b,s] e2) {
  e2 = Neg(input_ids)
  real = Cast<to = 1>(input_ids)
  deep = Unsqueeze(real, two)
  all = Add(raw_1, raw_2)
  more = Sum(all, raw_a)
  mean = ReduceMean<keepdims = 0>(more, zero)
  e1 = Add(deep, mean)
}"""
DECODER = """g (float[b,s,4] e1, int64[b,s] e2) => (float[b,s,4] logits) {
  real = Cast<to = 1>(e2)
  more = Unsqueeze(real, two)
  logits = Add(e1, more)
}"""
LINEAR = (
    "g (float[n,4] x) => (float[n,6] y) { t = Transpose<perm = [1, 0]>(weight) s = Mul(x, scale) y = MatMul(s, t) }"
)


def part(text: str, **values: np.ndarray | None) -> ir.Model:
    """A module; `values` are its initialisers, None for a weight that has no values yet."""
    known = {"two": np.array([2]), "zero": np.array([0])}
    shapes = {"weight": "float[6,4]", "scale": "float[4]", "two": "int64[1]", "zero": "int64[1]"}
    used = [name for name in shapes if name in text.replace("(", " ").replace(")", " ").replace(",", " ").split()]
    head, bracket, rest = text.partition("(")
    model = graph(f"{head}{bracket}{', '.join(f'{shapes[name]} {name}' for name in used)}{', ' if used else ''}{rest}")
    for value in list(model.graph.inputs)[: len(used)]:
        model.graph.inputs.remove(value)
        name = str(value.name)
        held = {**known, **values}.get(name)
        value.const_value = None if held is None else ir.tensor(held, name=name)
        model.graph.initializers[name] = value
    return model


def linear(scale: float = 1.0) -> ir.Model:
    return part(LINEAR, scale=np.full(4, scale, np.float32))


def ends(model: ir.Model) -> tuple[list[str], list[str]]:
    return [str(value.name) for value in model.graph.inputs], [str(value.name) for value in model.graph.outputs]


@pytest.fixture
def parts() -> dict[str, ir.Model]:
    texts = {"vision_encoder": VISION, "audio_encoder": SOUND, "embed_tokens": EMBED, "decoder": DECODER}
    return {component: part(text) for component, text in texts.items()}


def test_what_crosses_gets_the_names_that_other_tools_know(parts: dict[str, ir.Model]) -> None:
    name_ends(parts)
    assert ends(parts["vision_encoder"]) == (["pixel_values"], ["image_features", "image_features.1"])
    assert ends(parts["audio_encoder"]) == (["input_features"], ["audio_features"])
    taken = ["input_ids", "image_features", "image_features.1", "audio_features"]
    assert ends(parts["embed_tokens"]) == (taken, ["inputs_embeds", "inputs_embeds.1"])
    assert ends(parts["decoder"]) == (["inputs_embeds", "inputs_embeds.1"], ["logits"])


def test_the_embedding_itself_comes_before_what_else_crosses_with_it(parts: dict[str, ir.Model]) -> None:
    outputs = parts["embed_tokens"].graph.outputs
    first, second = outputs[0], outputs[1]
    outputs[0], outputs[1] = second, first
    name_ends(parts)
    assert (first.name, second.name) == ("inputs_embeds", "inputs_embeds.1")


def test_a_mask_over_what_was_read_is_not_taken_for_the_embedding() -> None:
    embed = part("g (float[b,s,4] x, float[b,1,s,t] y) => (float[b,1,s,t] m, float[b,s,4] e) { m = Neg(y) e = Neg(x) }")
    decoder = part("g (float[b,1,s,t] m, float[b,s,4] e) => (float[b,s,4] logits) { n = Neg(m) logits = Neg(e) }")
    mask, rows = embed.graph.outputs
    name_ends({"embed_tokens": embed, "decoder": decoder})
    assert (mask.name, rows.name) == ("inputs_embeds.1", "inputs_embeds")


def test_what_a_decoder_takes_straight_from_an_encoder_is_keys_and_values_of_cross_attention() -> None:
    decoder = part("g (float[n,4] raw_a) => (float[n,4] logits) { logits = Neg(raw_a) }")
    parts = {"audio_encoder": part(SOUND), "decoder": decoder}
    name_ends(parts)
    assert ends(parts["audio_encoder"])[1] == ends(decoder)[0] == ["cross_key_values"]


def test_an_output_of_the_model_is_called_what_it_is(parts: dict[str, ir.Model]) -> None:
    name_ends(parts, kept=("raw_a",))
    assert ends(parts["audio_encoder"])[1] == ["raw_a"]


def test_an_inner_value_never_has_the_name_of_an_end() -> None:
    inner = """g (float[n,4] pixel_values) => (float[n,4] raw_1) {
      image_features = Neg(pixel_values)
      raw_1 = Abs(image_features)
    }"""
    taker = "g (float[n,4] raw_1) => (float[n,4] out) { out = Neg(raw_1) }"
    parts = {"vision_encoder": part(inner), "embed_tokens": part(taker)}
    name_ends(parts)
    names = [str(output.name) for node in parts["vision_encoder"].graph for output in node.outputs]
    assert len(set(names)) == 2 and names[-1] == "image_features"


def test_with_no_picture_there_are_no_features(parts: dict[str, ir.Model]) -> None:
    name_ends(parts)
    shapes = {value.name: spec(value)["shape"] for value in parts["embed_tokens"].graph.inputs}
    assert shapes["image_features"] == ["num_image_features", 4]
    assert shapes["image_features.1"] == ["num_image_features_1", 4]
    assert shapes["audio_features"] == ["n", 4]


def test_features_that_lie_across_keep_their_width() -> None:
    across = "g (float[n,4] pixel_values) => (float[4,n] raw_1) { raw_1 = Transpose<perm = [1, 0]>(pixel_values) }"
    taker = "g (float[b,4] texts, float[4,n] raw_1) => (float[b,n] logits) { logits = MatMul(texts, raw_1) }"
    parts = {"vision_encoder": part(across), "classifier": part(taker)}
    name_ends(parts)
    assert [spec(value)["shape"] for value in parts["classifier"].graph.inputs] == [["b", 4], [4, "n"]]
    assert spec(parts["vision_encoder"].graph.outputs[0])["shape"] == [4, "n"]


def test_a_length_without_a_name_gets_one_after_its_tensor() -> None:
    made = part("g (float16[b,s,4] hidden) => (float16[b,s,4] logits) { logits = Neg(hidden) }")
    [value] = made.graph.outputs
    value.shape = ir.Shape(["b", None, 4])
    name_ends({"decoder": made})
    assert spec(value) == {"name": "logits", "dtype": "float16", "shape": ["b", "logits_axis1", 4]}


def test_a_digest_is_of_what_is_computed_whatever_it_is_called() -> None:
    other = linear()
    for node in other.graph:
        node.name = f"another_{node.op_type}"
        node.outputs[0].name = f"another_{node.outputs[0].name}"
    other.graph.inputs[0].name = "hidden"
    other.graph.initializers.pop("weight")
    renamed = next(node for node in other.graph if node.op_type == "Transpose").inputs[0]
    renamed.name = "model.layers.7.weight"
    other.graph.initializers[renamed.name] = renamed
    assert digest(other) == digest(linear())


@pytest.mark.parametrize("changed", ["constant", "attribute", "operator", "order", "length", "opset"])
def test_a_digest_changes_with_what_is_computed(changed: str) -> None:
    other = linear(2.0 if changed == "constant" else 1.0)
    by_kind = {node.op_type: node for node in other.graph}
    if changed == "attribute":
        by_kind["Transpose"].attributes["perm"] = ir.AttrInt64s("perm", [0, 1])
    elif changed == "operator":
        by_kind["Mul"].op_type = "Add"
    elif changed == "order":
        node = by_kind["MatMul"]
        one, two = node.inputs
        node.replace_input_with(0, two)
        node.replace_input_with(1, one)
    elif changed == "length":
        other.graph.inputs[0].shape = ir.Shape([3, 4])
    elif changed == "opset":
        other.graph.opset_imports[""] = 23
    assert digest(other) != digest(linear())


def test_graphs_wait_in_an_archive_for_their_weights(tmp_path: Path) -> None:
    model = linear()
    assert weights(model) == ["weight"]
    before = digest(model)
    write_archive({"vision_encoder": model, "decoder": part(DECODER)}, tmp_path / "graphs.zip")
    found = read_archive(tmp_path / "graphs.zip", "vision_encoder", {"weight"})
    assert ends(found) == (["x"], ["y"])
    assert (weights(found), digest(found), operators(found)) == (["weight"], before, operators(linear()))
    assert np.array_equal(found.graph.initializers["scale"].const_value.numpy(), np.ones(4, np.float32))


def test_the_same_graphs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_archive({"decoder": linear()}, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    with zipfile.ZipFile(tmp_path / "one") as archive:
        assert archive.namelist() == ["decoder.onnx"]


def test_the_archive_holds_no_weights(tmp_path: Path) -> None:
    write_archive({"decoder": linear()}, tmp_path / "graphs.zip")
    assert (tmp_path / "graphs.zip").stat().st_size < numbers(6, 4).nbytes + 2000
