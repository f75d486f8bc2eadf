"""Small graphs as text, and what they compute."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from msao_compile.runtime.backends.ort import _give_threads

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def graph(text: str) -> ir.Model:
    """An ONNX model from its text form, without the head."""
    return ir.from_onnx_text(HEAD + text)


def operators(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator."""
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model, folder: Path, **feed: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime computes, unoptimised; data files are looked for in `folder`."""
    path = folder / "run.onnx"
    ir.save(model, path)
    options = ort.SessionOptions()
    _give_threads(options, 1)  # where this process has a pool that all sessions share, none may have its own
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feed)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
