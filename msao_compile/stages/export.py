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
from msao_compile.manifest.schema import Dialect, RuntimeSettings
from msao_compile.runtime.backends.base import EngineFile

if TYPE_CHECKING:
    import onnx_ir as ir

# GroupQueryAttention on CPUs appends several tokens to a non-empty cache for one sequence at a time.
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
    for sizes in CHECK_SIZES:
        chance = np.random.default_rng(1)
        feed = piece.example(sizes, chance) | kv_example(piece, sizes, dialect, chance)
        try:
            found = engine.run(feed)
        except StageError as error:
            shapes = {name: list(value.shape) for name, value in piece.example(sizes, chance).items()}
            raise ShapeSpecialised(
                f"{piece.component} ({dialect}): a dimension was frozen at export; with {shapes} "
                f"the graph fails: {error}"
            ) from error
        for spec in piece.outputs:
            _check_shape(piece.component, spec.shape, found[spec.name].shape)
            if not np.isfinite(found[spec.name]).all():
                raise StageError(
                    f"{piece.component} ({dialect}): output {spec.name!r} holds values that are not finite"
                )


def _check_shape(component: str, promised: tuple[int | str, ...], found: tuple[int, ...]) -> None:
    fixed = [size for size in promised if isinstance(size, int)]
    if len(promised) != len(found) or any(
        isinstance(size, int) and size != got for size, got in zip(promised, found, strict=True)
    ):
        raise ShapeSpecialised(f"{component}: an output of shape {found} came where {promised} was promised ({fixed})")


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
