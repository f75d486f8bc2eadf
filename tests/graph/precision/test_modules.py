"""Whole modules of tiny checkpoints, converted, against themselves in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.graph.precision.convert import Conversion, convert
from msao_compile.graph.precision.observe import leaving, observed
from msao_compile.graph.precision.ranges import Ranges

from .samples import cosine, input_for, run, states

MODULES = [
    ("idefics3", "vision_encoder"), ("idefics3", "embed_tokens"), ("idefics3", "decoder"),
    ("qwen2_5_vl", "vision_encoder"), ("qwen2_5_vl", "decoder"), ("llava", "vision_encoder"), ("llava", "decoder"),
    ("whisper", "decoder"), ("clip", "text_encoder"),
]  # fmt: skip


def module(folder: Path, component: str) -> Path:
    return next(folder.glob(f"modules/*/{component}.onnx"))


@pytest.mark.parametrize(("family", "component"), MODULES)
def test_half_gives_what_fp32_does(built: Callable[[str], Path], tmp_path: Path, family: str, component: str) -> None:
    source = module(built(family), component)
    facts = convert(source, tmp_path / "half.onnx", Conversion("fp16", "portable", states=states(source)))
    assert {entry["name"] for entry in facts["outputs"] if entry["dtype"] == "float16"} == {
        name for name in states(source) if name.startswith("present.")
    }
    feed = input_for(source)
    wanted, found = run(source, **feed), run(tmp_path / "half.onnx", **feed)
    for name, numbers in wanted.items():
        assert cosine(numbers, found[name]) > 0.999, name


def test_int8_with_ranges_of_its_own_samples_gives_nearly_what_fp32_does(deployment: Path, tmp_path: Path) -> None:
    source = module(deployment, "decoder")
    ranges = Ranges(observed(source, tmp_path / "observed.onnx"))
    for seed in range(4):
        ranges.add(run(tmp_path / "observed.onnx", **input_for(source, seed)))
    assert not ranges.coverage().never
    plan = Conversion("int8", "portable", states=states(source), ranges=ranges.maximum)
    facts = convert(source, tmp_path / "int8.onnx", plan)
    assert facts["quantised"] > 10
    feed = input_for(source)
    assert cosine(run(source, **feed)["logits"], run(tmp_path / "int8.onnx", **feed)["logits"]) > 0.99


def test_int4_of_a_cpu_decoder_quantises_joined_products(deployment: Path, tmp_path: Path) -> None:
    source = next(deployment.glob("modules/*/decoder.fused.onnx"))
    facts = convert(source, tmp_path / "int4.onnx", Conversion("int4", "fused"))
    assert any("+" in name and name.endswith(".int4") for name in ir.load(tmp_path / "int4.onnx").graph.initializers)
    assert facts["quantised"] > 4
    feed = input_for(source)
    found = run(tmp_path / "int4.onnx", **feed)["logits"]
    assert np.isfinite(found).all()
    assert cosine(run(source, **feed)["logits"], found) > 0.9


def test_each_layer_of_a_decoder_is_left_by_its_residual_stream(deployment: Path) -> None:
    source = module(deployment, "decoder")
    found = leaving(source)
    assert [block.rpartition(".")[2] for block in found] == ["0", "1"]
    makers = {value.name: node.op_type for node in ir.load(source).graph for value in node.outputs}
    assert [makers[value] for value in found.values()] == ["Add", "Add"]
