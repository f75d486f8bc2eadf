"""A runner for tests: the graph by ONNX Runtime's CPU. It proves the phases and says nothing of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from msao_compile.errors import CapacityExceeded, MissingTool, StageError
from msao_compile.runtime.kit.plan import Module

_QUIET = 3
_KINDS = {"float32": np.float32, "float16": np.float16, "int64": np.int64}


@dataclass
class Held:
    """A state that grows: what the graph gave last."""

    values: dict[str, np.ndarray]
    capacity: int
    length: int = 0


class Graph:
    """One graph, with or without state."""

    def __init__(self, module: Module, session: Any) -> None:
        self.module, self.session = module, session
        self.inputs = [value.name for value in session.get_inputs()]
        self.outputs = [value.name for value in session.get_outputs()]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name."""
        found = self.session.run(self.outputs, {name: feed[name] for name in self.inputs})
        return dict(zip(self.outputs, found))

    def new_cache(self, capacity: int, batch: int = 1) -> Held:
        """An empty state."""
        values = {}
        for state in self.module.states:
            rows = 0 if state.update == "concat" else capacity
            shape = [rows if size == "past_sequence_length" else batch if isinstance(size, str) else size
                     for size in state.shape]  # fmt: skip
            values[state.name] = np.zeros(shape, _KINDS[state.dtype])
        return Held(values, capacity)

    def step(self, feed: Mapping[str, np.ndarray], cache: Held) -> np.ndarray:
        """Logits of the fed positions; the state keeps them."""
        count = feed["inputs_embeds"].shape[1]
        if cache.length + count > cache.capacity:
            raise CapacityExceeded(f"{count} more positions do not fit a state of {cache.capacity}")
        found = self.run({**feed, **cache.values})
        cache.values = {state.name: found[state.output] for state in self.module.states}
        cache.length += count
        return found["logits"]


def opened(module: Module) -> Graph:
    """The module's graph.

    Raises:
        MissingTool: ONNX Runtime is not installed. StageError: it refuses the graph.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingTool("the stand-in runner needs onnxruntime") from error
    if any(state.update == "in_place" for state in module.states):
        raise StageError(f"{module.name}: the stand-in runs no {module.dialect} decoder, whose state is one buffer")
    from onnxruntime.capi import onnxruntime_pybind11_state as faults

    refusals = (faults.Fail, faults.InvalidGraph, faults.InvalidArgument, faults.NotImplemented, faults.NoSuchFile)
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    try:
        session = ort.InferenceSession(module.graph.path, options, providers=["CPUExecutionProvider"])
    except refusals as error:
        raise StageError(f"{module.graph.path}: ONNX Runtime refuses it: {str(error).splitlines()[0]}") from error
    return Graph(module, session)
