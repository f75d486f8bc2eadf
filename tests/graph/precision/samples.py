"""Small fp32 graphs on disk, what ONNX Runtime makes of a graph there, and input for whole modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from msao_compile.runtime.backends.ort import _give_threads

HEAD = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
LENGTHS = {"sequence_length": 5, "past_sequence_length": 3, "total_sequence_length": 8, "num_logits": 5,
           "past_sequence_length + sequence_length": 8, "sequence_length + past_sequence_length": 8}  # fmt: skip
PATCHES = 16


def saved(path: Path, text: str, opset: int = 20, **weights: np.ndarray) -> Path:
    """Write a graph from its text form; the inputs named in `weights` become weights in `<path>.data`.

    A dot of a weight's name is written as two underscores.
    """
    parsed = onnx.parser.parse_model(HEAD.format(opset=opset) + text)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(parsed))
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            numbers = weights[value.name]
            value.name = value.name.replace("__", ".")
            value.const_value = ir.tensor(numbers, name=value.name)
            model.graph.initializers[value.name] = value
    for name, value in model.graph.initializers.items():
        value.name = name
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=16)
    return path


def session(path: Path, optimised: bool = True) -> ort.InferenceSession:
    """A checked graph in ONNX Runtime, which refuses inputs of a node that differ in type."""
    files = {tensor.path for tensor in _tensors(path) if isinstance(tensor, ir.ExternalTensor)}
    if all(Path(file).stat().st_nlink == 1 for file in files):  # the checker takes a file with two names for an attack
        onnx.checker.check_model(str(path))
    options = ort.SessionOptions()
    _give_threads(options, 1)
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _tensors(path: Path) -> list[ir.TensorProtocol | None]:
    return [value.const_value for value in ir.load(path).graph.initializers.values()]


def run(path: Path, optimised: bool = True, **feed: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name; float32 input is rounded where the graph takes half."""
    made = session(path, optimised)
    given = {entry.name: feed[entry.name] for entry in made.get_inputs()}
    for entry in made.get_inputs():
        if entry.type == "tensor(float16)":
            given[entry.name] = given[entry.name].astype(np.float16)
    return dict(zip([entry.name for entry in made.get_outputs()], made.run(None, given)))


def input_for(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Something for each input of a module: random numbers, positions after the past, one picture of 4x4 patches."""
    chance, feed = np.random.default_rng(seed), {}
    for value in ir.load(path).graph.inputs:
        name = str(value.name)
        shape = [size if isinstance(size, int) else LENGTHS.get(str(size.value), 1) for size in value.shape or ()]
        if value.dtype == ir.DataType.FLOAT:
            if name == "pixel_values" and len(shape) == 2:
                shape[0] = PATCHES
            feed[name] = chance.standard_normal(shape).astype(np.float32)
        else:
            feed[name] = _integers(name, shape, chance).astype(value.dtype.numpy())
    return feed


def _integers(name: str, shape: list[int], chance: np.random.Generator) -> np.ndarray:
    if name.startswith("vision_window_index") and name.endswith(".0"):
        return np.arange(PATCHES // 4)[::-1]
    if name.startswith(("vision_window_index", "vision_attention_seqlens")):
        return np.array([0, PATCHES])
    if name.startswith("vision_position_ids"):
        return chance.integers(0, 4, (PATCHES, 2))
    if name == "attention_mask":
        return np.ones(shape)
    if name == "position_ids":
        return np.broadcast_to(np.arange(shape[-1]) + LENGTHS["past_sequence_length"], shape)
    return np.broadcast_to(np.arange(shape[-1]) if name == "logits_positions" else np.ones(1), shape)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of two arrays of any shape; 1 where both are zero."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else float(np.array_equal(a, b))


def states(path: Path) -> tuple[str, ...]:
    """Names of a decoder's caches, in and out."""
    graph = ir.load(path).graph
    return tuple(str(value.name) for value in (*graph.inputs, *graph.outputs)
                 if str(value.name).startswith(("past_key_values.", "present.")))  # fmt: skip


def kinds(path: Path, operator: str) -> list[str]:
    """The type that each node of an operator gives, in order: FLOAT, FLOAT16, ..."""
    return [node.outputs[0].dtype.name for node in ir.load(path).graph if node.op_type == operator]
