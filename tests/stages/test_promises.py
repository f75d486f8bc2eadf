"""What an exported graph promises: its dialect's opset, no control flow, lengths that vary, names of what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.errors import ShapeSpecialised, StageError
from msao_compile.graph.ends import write_archive
from msao_compile.manifest.schema import RuntimeSettings
from msao_compile.runtime.backends.base import EngineFile
from msao_compile.runtime.backends.ort import OrtEngine
from msao_compile.stages import export as stage

SETTINGS = RuntimeSettings(threads=1, arena=False, warm_up=0)
HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
STATE = {"name": "past_0", "output": "present_0", "dtype": "float32",
         "shape": ["batch_size", 2, "past_sequence_length", 8], "update": "concat"}  # fmt: skip
EMBED = """g (int64[batch_size,sequence_length] input_ids, float[9,4] table)
   => (float[batch_size,sequence_length,4] inputs_embeds) {
  inputs_embeds = Gather(table, input_ids)
}"""
DECODER = """g (float[batch_size,sequence_length,4] inputs_embeds,
   float[batch_size,2,past_sequence_length,8] past_0,
   float[batch_size,2,sequence_length,8] fresh, int64[k] logits_positions)
   => (float[batch_size,k,4] logits, float[batch_size,2,t,8] present_0) {
  logits = Gather<axis = 1>(inputs_embeds, logits_positions)
  present_0 = Concat<axis = 2>(past_0, fresh)
}"""
BRANCHING = """g (int64[batch_size,sequence_length] input_ids, bool yes) => (float[n,4] inputs_embeds) {
  inputs_embeds = If (yes) <then_branch = a () => (float[n,4] x) { x = Constant<value_float = 1.0>() },
                            else_branch = b () => (float[n,4] y) { y = Constant<value_float = 2.0>() }>
}"""  # fmt: skip


def exported(
    folder: Path, text: str, component: str, dialect: str = "portable", weight: str | None = None
) -> dict[str, Any]:
    """The stage's result for a module given as text; `weight` names the one of its inputs that is a weight."""
    model = ir.from_onnx_text(HEAD.replace("20", {"portable": "20", "fused": "23"}[dialect]) + text)
    held = [value for value in model.graph.inputs if value.name == weight]
    for value in held:
        model.graph.inputs.remove(value)
        model.graph.initializers[str(value.name)] = value
    place = {"file": f"{component}.onnx.data", "offset": 64, "shape": [9, 4], "dtype": "float32"}
    write_archive({component: model}, folder / "graphs.zip")
    asked = {"component": component, "dialect": dialect, "layout": {weight: place} if weight else {}, "states": [STATE]}
    places = {"archive": str(folder / "graphs.zip"), "output": str(folder / f"{component}.onnx")}
    return stage.run({**asked, **places}, lambda record: None)


def test_a_graph_leaves_its_archive_and_reads_its_weights_from_the_data_file(tmp_path: Path) -> None:
    found = exported(tmp_path, EMBED, "embed_tokens", weight="table")
    table = np.arange(36, dtype=np.float32).reshape(9, 4)
    (tmp_path / "embed_tokens.onnx.data").write_bytes(bytes(64) + table.tobytes())
    engine = OrtEngine(EngineFile(tmp_path / "embed_tokens.onnx", "portable", SETTINGS))
    assert np.array_equal(engine.run({"input_ids": np.array([[3, 8]])})["inputs_embeds"], table[[[3, 8]]])
    assert (found["opset"], found["states"]) == (20, [])
    assert found["inputs"] == [{"name": "input_ids", "dtype": "int64", "shape": ["batch_size", "sequence_length"]}]


@pytest.mark.parametrize(
    ("update", "grown"), [("concat", "total_sequence_length"), ("in_place", "past_sequence_length")]
)
def test_what_a_decoder_gives_has_the_lengths_that_other_tools_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str, grown: str
) -> None:
    monkeypatch.setitem(STATE, "update", update)
    found = exported(tmp_path, DECODER, "decoder")
    shapes = {spec["name"]: spec["shape"] for spec in (*found["inputs"], *found["outputs"])}
    assert shapes["present_0"] == ["batch_size", 2, grown, 8]
    assert shapes["logits"] == ["batch_size", "num_logits", 4]
    assert shapes["logits_positions"] == ["num_logits"]
    assert found["states"] == [STATE]


def test_control_flow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"embed_tokens: control flow in the graph \(If\), which TensorRT refuses"):
        exported(tmp_path, BRANCHING, "embed_tokens")


@pytest.mark.parametrize("dialect", ["portable", "fused"])
@pytest.mark.parametrize(
    ("component", "text", "frozen"),
    [("embed_tokens", EMBED, "sequence_length"), ("decoder", DECODER, "past_sequence_length"),
     ("decoder", DECODER, "sequence_length")],
)  # fmt: skip
def test_a_length_that_does_not_vary_is_refused_by_its_name(
    tmp_path: Path, component: str, text: str, frozen: str, dialect: str
) -> None:
    inside = text.replace(f",{frozen}", ",5")
    with pytest.raises(ShapeSpecialised, match=rf"{component}: {frozen} has one value only .* \({dialect}\)") as caught:
        exported(tmp_path, inside, component, dialect)
    assert caught.value.exit_code == 3


def test_a_length_that_is_part_of_a_sum_varies(tmp_path: Path) -> None:
    model = ir.from_onnx_text(HEAD + EMBED)
    model.graph.inputs[0].shape = ir.Shape(["batch_size", "2*sequence_length + 1"])
    stage._check_promises(model, "embed_tokens", "portable", False)


def test_another_opset_than_the_dialect_s_is_refused() -> None:
    with pytest.raises(StageError, match="embed_tokens: opset 20 came out where 23 was asked for"):
        stage._check_promises(ir.from_onnx_text(HEAD + EMBED), "embed_tokens", "fused", False)
