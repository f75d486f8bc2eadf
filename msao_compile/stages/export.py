"""One module's graph in one dialect, from its archive to a file beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from msao_compile.errors import ShapeSpecialised, StageError
from msao_compile.graph.ends import read_archive, spec
from msao_compile.graph.external_data import reference_weights, save
from msao_compile.graph.opsets import OPSETS
from msao_compile.graph.passes.pipeline import optimise
from msao_compile.graph.passes.scatter import scatter_state
from msao_compile.manifest.schema import GROWS, Dialect

VARYING = {"embed_tokens": ("sequence_length",), "decoder": ("sequence_length", "past_sequence_length")}
"""Lengths that have to vary for a model to answer at all."""


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Export `component` from `archive` in `dialect` to `output`; `layout` says where its weights lie.

    `states` are the decoder's state tensors as the manifest tells of them, `kv_capacity` the positions of a buffer.

    Raises:
        StageError: control flow is left in it. ShapeSpecialised: a length that has to vary does not.
    """
    component, dialect = arguments["component"], cast("Dialect", arguments["dialect"])
    layout = arguments["layout"]
    model = read_archive(Path(arguments["archive"]), component, set(layout))
    reference_weights(model, layout)
    optimise(model, dialect)
    states = arguments["states"] if component == "decoder" else []
    _check_promises(model, component, dialect, bool(states))
    growing = None
    if dialect == "scatter" and states:
        states, growing = scatter_state(model, states, int(arguments["kv_capacity"]))
    _tell_lengths(model, states)
    save(model, Path(arguments["output"]))
    shapes = {str(value.name): spec(value)["shape"] for value in model.graph.inputs}
    by_name = {state["name"]: {**state, "shape": shapes.get(state["name"])} for state in states}
    return {
        "opset": model.opset_imports[""],
        "growing": growing,
        "nodes": len(model.graph),
        "inputs": [spec(value) for value in model.graph.inputs],
        "outputs": [spec(value) for value in model.graph.outputs],
        "states": [by_name[str(value.name)] for value in model.graph.inputs if value.name in by_name],
    }


def _tell_lengths(model: ir.Model, states: list[dict[str, Any]]) -> None:
    """What comes out of a decoder has the lengths that users of other tools know by name."""
    ends = {str(value.name): value for value in (*model.graph.inputs, *model.graph.outputs)}
    if "logits_positions" in ends and "logits" in ends:
        ends["logits_positions"].shape = ir.Shape(["num_logits"])
        [batch, _, vocabulary] = ends["logits"].shape or (None, None, None)
        ends["logits"].shape = ir.Shape([batch, "num_logits", vocabulary])
    for state in states:
        grown = "total_sequence_length" if state["update"] == "concat" else GROWS
        ends[state["output"]].shape = ir.Shape([grown if size == GROWS else size for size in state["shape"]])


def _check_promises(model: ir.Model, component: str, dialect: Dialect, has_state: bool) -> None:
    got = model.opset_imports.get("")
    if got not in OPSETS[dialect]:
        raise StageError(f"{component}: opset {got} came out where {OPSETS[dialect][0]} was asked for")
    flow = next((node.op_type for node in model.graph if node.op_type in ("If", "Loop", "Scan")), None)
    if flow is not None:
        raise StageError(f"{component}: control flow in the graph ({flow}), which TensorRT refuses")
    there = {str(size) for value in model.graph.inputs for size in value.shape or () if not isinstance(size, int)}
    there = {name for text in there for name in text.replace("+", " ").replace("*", " ").split()}
    for name in VARYING.get(component, ()):
        if name not in there and (has_state or name != "past_sequence_length"):
            raise ShapeSpecialised(f"{component}: {name} has one value only in the exported graph ({dialect})")
