"""What an exported graph promises is tried out: a frozen dimension, a lost input, control flow and NaN are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.errors import ShapeSpecialised, StageError
from msao_compile.families.base import Piece, Sizes
from msao_compile.families.registry import open_model
from msao_compile.graph.assemble import export
from msao_compile.manifest.schema import TensorSpec
from msao_compile.stages import export as stage

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
FINE = "g (int64[batch_size,sequence_length] input_ids) => (float[batch_size,sequence_length,4] inputs_embeds) "
HONEST = (
    FINE
    + """<int64[1] axes = {2}, int64[3] four = {1, 1, 4}> {
  real = Cast<to = 1>(input_ids)
  deep = Unsqueeze(real, axes)
  inputs_embeds = Expand(deep, four)
}"""
)
FROZEN = (
    FINE
    + """<int64[3] frozen = {2, 5, 1}, int64[3] four = {1, 1, 4}> {
  real = Cast<to = 1>(input_ids)
  deep = Reshape(real, frozen)
  inputs_embeds = Expand(deep, four)
}"""
)
NARROW = HONEST.replace("{1, 1, 4}", "{1, 1, 3}").replace("sequence_length,4]", "sequence_length,3]")
ENDLESS = HONEST.replace("Expand(deep, four)", "Log(wide)").replace(
    "  inputs_embeds", "  zero = Sub(deep, deep)\n  wide = Expand(zero, four)\n  inputs_embeds"
)
LEAKING = (
    HONEST.replace("Expand(deep, four)", "Add(wide, mean)")
    .replace(
        "  inputs_embeds",
        "  wide = Expand(deep, four)\n  mean = ReduceMean<keepdims = 1>(wide, zero)\n  inputs_embeds",
    )
    .replace("int64[1] axes", "int64[1] zero = {0}, int64[1] axes")
)
TWISTED = HONEST.replace("Expand(deep, four)", "Transpose<perm = [1, 0, 2]>(wide)").replace(
    "  inputs_embeds", "  wide = Expand(deep, four)\n  inputs_embeds"
)
BRANCHING = FINE + """<bool yes = {1}> {
  inputs_embeds = If (yes) <then_branch = a () => (float[n,m,4] x) { x = Constant<value_float = 1.0>() },
                            else_branch = b () => (float[n,m,4] y) { y = Constant<value_float = 2.0>() }>
}"""  # fmt: skip


def example(sizes: Sizes, chance: np.random.Generator) -> dict[str, np.ndarray]:
    return {"input_ids": chance.integers(1, 9, (sizes.batch, sizes.sequence))}


def piece(*names: str) -> Piece:
    import torch

    axes = ("batch_size", "sequence_length")
    return Piece(
        component="embed_tokens", module=torch.nn.Identity(), example=example, config=None,
        inputs=tuple(TensorSpec(name=name, dtype="int64", shape=axes) for name in names or ("input_ids",)),
        outputs=(TensorSpec(name="inputs_embeds", dtype="float32", shape=(*axes, 4)),),
    )  # fmt: skip


def saved(text: str, folder: Path) -> Path:
    ir.save(ir.from_onnx_text(HEAD + text), folder / "graph.onnx")
    return folder / "graph.onnx"


def test_an_honest_graph_passes(tmp_path: Path) -> None:
    stage._run_at_sizes(saved(HONEST, tmp_path), piece(), "portable", 1)


def test_a_frozen_dimension_is_refused_and_the_operator_named(tmp_path: Path) -> None:
    with pytest.raises(
        ShapeSpecialised, match=r"embed_tokens \(portable\): the graph does not run at every size.*Reshape"
    ) as caught:
        stage._run_at_sizes(saved(FROZEN, tmp_path), piece(), "portable", 1)
    assert caught.value.exit_code == 3


def test_an_output_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeSpecialised, match=r"'inputs_embeds' has shape \(1, 5, 3\) where"):
        stage._run_at_sizes(saved(NARROW, tmp_path), piece(), "portable", 1)


def test_a_name_that_means_two_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeSpecialised, match=r"'inputs_embeds' has shape \(5, 1, 4\) where .* {'batch_size': 1"):
        stage._run_at_sizes(saved(TWISTED, tmp_path), piece(), "portable", 1)


def test_a_sequence_that_feels_those_beside_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeSpecialised, match="first along batch_size changes with those beside it"):
        stage._run_at_sizes(saved(LEAKING, tmp_path), piece(), "portable", 1)


def test_an_output_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'inputs_embeds' holds values that are not finite"):
        stage._run_at_sizes(saved(ENDLESS, tmp_path), piece(), "portable", 1)


@pytest.mark.parametrize(
    ("text", "names", "dialect", "error", "said"),
    [
        (HONEST, ("input_ids",), "fused", StageError, "opset 20 came out where 23 was asked for"),
        (HONEST, ("input_ids", "position_ids"), "portable", ShapeSpecialised, "input 'position_ids' has no effect"),
        (BRANCHING, ("input_ids",), "portable", StageError, "control flow in the graph, which TensorRT refuses"),
    ],
)
def test_a_graph_that_breaks_a_promise_is_refused(
    text: str, names: tuple[str, ...], dialect: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        stage._check_promises(ir.from_onnx_text(HEAD + text), piece(*names), dialect)


def test_a_trace_that_saw_one_size_only_is_caught(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The fault planted: what is promised as dynamic is told to the tracer as fixed."""
    from dataclasses import replace

    from msao_compile.graph.external_data import reference_weights

    folder = checkpoint("idefics3")
    family, model = open_model(folder)
    honest = next(one for one in family.pieces(model) if one.component == "embed_tokens")
    frozen = replace(honest, inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(2, 5)),))
    graph = export(stage._request(frozen, "portable"))
    rows, width = honest.module.embedding.weight.shape
    reference_weights(graph, {"embedding.weight": {"file": "w.data", "offset": 0, "shape": [rows, width]}})
    (tmp_path / "w.data").write_bytes(bytes(rows * width * 4))
    ir.save(graph, tmp_path / "graph.onnx")
    with pytest.raises(ShapeSpecialised, match="embed_tokens"):
        stage._run_at_sizes(tmp_path / "graph.onnx", honest, "portable", 1)
