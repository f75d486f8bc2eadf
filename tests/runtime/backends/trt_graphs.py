"""Tiny graphs for builders and runners: an encoder, and one attention layer with its cache in each dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

HEADS, WIDTH, HIDDEN, CAPACITY = 2, 8, 16, 16
ENCODER = """<ir_version: 10, opset_import: ["" : 20]>
encoder (float[batch_size, 4] x) => (float[batch_size, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{
  product = MatMul(x, w)
  y = Relu(product)
}"""
# New keys are half the query and new values the query and one; positions say what may be seen, so that a prompt, a
# single token and a few to verify go through the same nodes.
_HEAD = """<ir_version: 11, opset_import: ["" : {opset}]>
decoder (float[batch_size, sequence_length, 16] inputs_embeds, int64[batch_size, {total}] attention_mask,
         int64[batch_size, sequence_length] position_ids, int64[num_logits] logits_positions, {more}
         {kind}[batch_size, 2, {past}, 8] past_key,
         {kind}[batch_size, 2, {past}, 8] past_value)
     => (float[batch_size, num_logits, 16] logits, {kind}[batch_size, 2, {present}, 8] present_key,
         {kind}[batch_size, 2, {present}, 8] present_value)
<int64[4] split = {{0, 0, 2, 8}}, int64[3] joined = {{0, 0, 16}}, int64[1] one = {{1}},
 int64[1] last = {{-1}}, int64 axis = {{1}}, float half_wide = {{0.5}}, float unit_wide = {{1.0}},
 float none = {{0.0}}, float hidden = {{-10000.0}}, int64 nothing = {{0}}>
{{
  half = Cast<to = {number}>(half_wide)
  unit = Cast<to = {number}>(unit_wide)
  embeds = Cast<to = {number}>(inputs_embeds)
  apart = Reshape(embeds, split)
  query = Transpose<perm = [0, 2, 1, 3]>(apart)
  new_key = Mul(query, half)
  new_value = Add(query, unit)
  present_key = {update}(past_key, new_key{indices})
  present_value = {update}(past_value, new_value{indices})
  keys = Transpose<perm = [0, 1, 3, 2]>(present_key)
  products = MatMul(query, keys)
  scores = Cast<to = 1>(products)
  counted = CumSum(attention_mask, axis)
  places = Unsqueeze(counted, one)
  positions = Unsqueeze(position_ids, last)
  behind = Sub(places, one)
  seen = LessOrEqual(behind, positions)
  known = Greater(attention_mask, nothing)
  wide = Unsqueeze(known, one)
  both = And(seen, wide)
  every = Unsqueeze(both, one)
  bias = Where(every, none, hidden)
  biased = Add(scores, bias)
  soft = Softmax<axis = -1>(biased)
  weights = Cast<to = {number}>(soft)
  mixed = MatMul(weights, present_value)
  back = Transpose<perm = [0, 2, 1, 3]>(mixed)
  flat = Reshape(back, joined)
  chosen = Gather<axis = 1>(flat, logits_positions)
  logits = Cast<to = 1>(chosen)
}}"""
DOTTED = {"past_key": "past_key_values.0.key", "past_value": "past_key_values.0.value",
          "present_key": "present.0.key", "present_value": "present.0.value"}  # fmt: skip
NUMBERS = {"float": 1, "float16": 10, "bfloat16": 16}


def write_encoder(folder: Path) -> Path:
    """ReLU(x w)."""
    return _write(folder / "encoder.onnx", ENCODER)


def write_decoder(folder: Path, dialect: str, kind: str = "float") -> Path:
    """One attention layer; `kind` is its type, float or float16."""
    scatter = dialect == "scatter"
    text = _HEAD.format(
        opset=24 if scatter else 20,
        total="capacity" if scatter else "total_sequence_length",
        more="int64[batch_size] write_indices," if scatter else "",
        past=CAPACITY if scatter else "past_sequence_length",  # TensorRT-RTX takes no cache whose length varies
        present=CAPACITY if scatter else "total_sequence_length",
        update="TensorScatter<axis = 2>" if scatter else "Concat<axis = 2>",
        indices=", write_indices" if scatter else "",
        kind=kind,
        number=NUMBERS[kind],
    )
    return _write(folder / f"decoder.{dialect}.{kind}.onnx", text)


def _write(path: Path, text: str) -> Path:
    model = onnx.parser.parse_model(text)
    for value in (*model.graph.input, *model.graph.output):  # the text format takes no dots
        _rename(model.graph, value.name, DOTTED.get(value.name, value.name))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = new if value.name == old else value.name


def encoder_profile(most: int = 8) -> dict[str, Any]:
    """Batches of 1 to `most`."""
    return {"name": "encode", "inputs": [{"name": "x", "min": [1, 4], "opt": [2, 4], "max": [most, 4]}]}


def decoder_profiles(dialect: str, batch: int = 2) -> list[dict[str, Any]]:
    """Prompts of 1 to 8, then steps of 1 to 3; up to CAPACITY positions."""
    return [_profile(dialect, "prefill", (1, 4, 8), (0, 0, CAPACITY - 8), batch),
            _profile(dialect, "decode", (1, 1, 3), (1, 8, CAPACITY - 1), batch)]  # fmt: skip


def _profile(dialect: str, name: str, new: tuple[int, ...], past: tuple[int, ...], batch: int) -> dict[str, Any]:
    scatter, found = dialect == "scatter", []
    ranges: dict[str, list[list[int]]] = {}
    for index in range(3):
        count, rows = new[index], (1, 1, batch)[index]
        held = CAPACITY if scatter else past[index]
        shapes = {
            "inputs_embeds": [rows, count, HIDDEN],
            "attention_mask": [rows, CAPACITY if scatter else count + past[index]],
            "position_ids": [rows, count],
            "logits_positions": [(1, 1, count)[index]],
            "past_key_values.0.key": [rows, HEADS, held, WIDTH],
            "past_key_values.0.value": [rows, HEADS, held, WIDTH],
        }
        if scatter:
            shapes["write_indices"] = [rows]
        for one, shape in shapes.items():
            ranges.setdefault(one, []).append(shape)
    for one, (low, best, high) in ranges.items():
        found.append({"name": one, "min": low, "opt": best, "max": high})
    return {"name": name, "inputs": found}


def order(profiles: list[dict[str, Any]], sms: tuple[int, ...] = (89,), **more: Any) -> dict[str, Any]:
    """A BuildOrder for TensorRT-RTX as JSON has it."""
    return {"backend": "trt_rtx", "profiles": profiles, "level": "release", "compute_capabilities": list(sms),
            "timing_cache": None, **more}  # fmt: skip


def facts(component: str = "decoder", dialect: str = "portable", precision: str = "fp32") -> dict[str, Any]:
    """What a caller says of an engine; the builder adds what it knows itself."""
    return {"module": "0" * 64, "component": component, "precision": precision, "dialect": dialect,
            "graph_sha256": "1" * 64, "key": "2" * 64}  # fmt: skip
