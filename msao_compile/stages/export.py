"""One module in one dialect to ONNX: traced without weights, then run beside its data file at three sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from msao_compile.errors import ShapeSpecialised, StageError
from msao_compile.families.base import SIZES, Piece, Sizes
from msao_compile.families.registry import open_model
from msao_compile.graph.assemble import Request, export
from msao_compile.graph.attention import OPSETS
from msao_compile.graph.external_data import reference_weights, save
from msao_compile.graph.passes.pipeline import optimise
from msao_compile.manifest.schema import Dialect, RuntimeSettings, TensorSpec
from msao_compile.runtime.backends.base import Arrays, Engine, EngineFile

if TYPE_CHECKING:
    import onnx_ir as ir

# GroupQueryAttention on CPUs appends several tokens to a non-empty cache for one sequence at a time.
INDEPENDENT = ("batch_size", "num_images")
CHECK_SIZES = (Sizes(1, 5, 3, 1, SIZES[1].grids), Sizes(2, 1, 7, 2, SIZES[0].grids), Sizes(3, 4, 0, 3, SIZES[2].grids))


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Export `component` of `checkpoint` in `dialect` to `output`; its data files lie beside it.

    Raises:
        StageError: it cannot be traced. ShapeSpecialised: a promised dynamic dimension is not; names the operator.
    """
    folder, output = Path(arguments["checkpoint"]), Path(arguments["output"])
    dialect = cast("Dialect", arguments["dialect"])
    family, model = open_model(folder)
    piece = next(piece for piece in family.pieces(model) if piece.component == arguments["component"])
    on_progress({"doing": "trace"})
    graph = export(_request(piece, dialect))
    reference_weights(graph, arguments["layout"])
    optimise(graph, dialect)
    _check_promises(graph, piece, dialect)
    save(graph, output)
    on_progress({"doing": "run at three sizes"})
    _run_at_sizes(output, piece, dialect, arguments["threads"])
    return {"opset": OPSETS[dialect], "nodes": len(graph.graph), **_specs(graph)}


def _request(piece: Piece, dialect: Dialect) -> Request:
    import torch

    def example(sizes: Sizes) -> dict[str, torch.Tensor]:
        arrays = piece.example(sizes, np.random.default_rng(0))
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}

    kv = (piece.kv.num_layers, piece.kv.num_key_value_heads, piece.kv.head_dim) if piece.kv else None
    examples = (example(SIZES[0]), example(SIZES[2]))
    return Request(piece.module, piece.inputs, piece.outputs, examples, piece.stacks, kv, SIZES[0].past, dialect)


def _check_promises(model: ir.Model, piece: Piece, dialect: Dialect) -> None:
    got = model.opset_imports.get("")
    if got != OPSETS[dialect]:
        raise StageError(f"{piece.component}: opset {got} came out where {OPSETS[dialect]} was asked for")
    if any(node.op_type in ("If", "Loop", "Scan") for node in model.graph):
        raise StageError(f"{piece.component}: control flow in the graph, which TensorRT refuses")
    names = {value.name for value in model.graph.inputs}
    for spec in piece.inputs:
        if spec.name not in names:
            raise ShapeSpecialised(f"{piece.component}: input {spec.name!r} has no effect on the exported graph")


def kv_example(piece: Piece, sizes: Sizes, dialect: Dialect, chance: np.random.Generator) -> dict[str, np.ndarray]:
    """Random past values for one run; the fused dialect gets a buffer with room for the new tokens."""
    if piece.kv is None:
        return {}
    room = sizes.past + (sizes.sequence if dialect == "fused" else 0)
    found = {}
    for layer in range(piece.kv.num_layers):
        for kind in ("key", "value"):
            value = np.zeros((sizes.batch, piece.kv.num_key_value_heads, room, piece.kv.head_dim), np.float32)
            value[:, :, : sizes.past] = chance.standard_normal(value[:, :, : sizes.past].shape)
            found[f"past_key_values.{layer}.{kind}"] = value
    return found


def _run_at_sizes(path: Path, piece: Piece, dialect: Dialect, threads: int) -> None:
    from msao_compile.runtime.backends.ort import OrtEngine

    engine = OrtEngine(EngineFile(path, dialect, RuntimeSettings(threads=threads, arena=True, warm_up=0)))
    label = f"{piece.component} ({dialect})"
    for sizes in CHECK_SIZES:
        chance = np.random.default_rng(1)
        feed = piece.example(sizes, chance) | kv_example(piece, sizes, dialect, chance)
        found = _run(engine, feed, label)
        bound: dict[str, int] = {}
        for spec in piece.inputs:
            _check_shape(label, spec, feed[spec.name].shape, bound)
        for spec in piece.outputs:
            _check_shape(label, spec, found[spec.name].shape, bound)
            if not np.isfinite(found[spec.name]).all():
                raise StageError(f"{label}: output {spec.name!r} holds values that are not finite")
        for axis in INDEPENDENT:
            if bound.get(axis, 1) > 1:
                _check_alone(engine, piece, (feed, found), axis, label)


def _run(engine: Engine, feed: Arrays, label: str) -> Arrays:
    try:
        return engine.run(feed)
    except StageError as error:
        shapes = {name: list(value.shape) for name, value in feed.items() if not name.startswith("past_key_values")}
        raise ShapeSpecialised(
            f"{label}: the graph does not run at every size it promises; with {shapes} it fails: {error}"
        ) from error


def _check_shape(label: str, spec: TensorSpec, shape: tuple[int, ...], bound: dict[str, int]) -> None:
    """Numbers as promised, and each named dimension one size wherever its name stands; `bound` remembers them."""
    sizes = [bound.setdefault(size, got) if isinstance(size, str) else size
             for size, got in zip(spec.shape, shape, strict=False)]  # fmt: skip
    if len(spec.shape) != len(shape) or sizes != list(shape):
        raise ShapeSpecialised(
            f"{label}: {spec.name!r} has shape {shape} where {spec.shape} was promised, with {bound}"
        )


def _check_alone(engine: Engine, piece: Piece, together: tuple[Arrays, Arrays], axis: str, label: str) -> None:
    """The first of several sequences or pictures gives the same alone: no axis was frozen into a broadcast."""
    feed, found = together
    alone = {
        name: value[:1] if name.startswith("past_key_values") and axis == "batch_size" else value
        for name, value in feed.items()
    }
    alone |= {spec.name: _first(feed[spec.name], spec, axis) for spec in piece.inputs}
    got = _run(engine, alone, label)
    for spec in piece.outputs:
        wanted = _first(found[spec.name], spec, axis)
        if axis in spec.shape and not np.allclose(got[spec.name], wanted, rtol=1e-3, atol=1e-4):
            raise ShapeSpecialised(f"{label}: {spec.name!r} of the first along {axis} changes with those beside it")


def _first(value: np.ndarray, spec: TensorSpec, axis: str) -> np.ndarray:
    return value if axis not in spec.shape else np.take(value, [0], spec.shape.index(axis))


def _specs(model: ir.Model) -> dict[str, Any]:
    def spec(value: ir.Value) -> dict[str, Any]:
        shape = value.shape or ()
        sizes = [size if isinstance(size, int) else str(size.value) for size in shape]
        dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
        return {"name": value.name, "dtype": dtype, "shape": sizes}

    return {
        "inputs": [spec(value) for value in model.graph.inputs],
        "outputs": [spec(value) for value in model.graph.outputs],
    }
