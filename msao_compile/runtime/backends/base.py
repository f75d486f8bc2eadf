"""What a backend gives the runtime: engines that run named arrays, and decoders with a KV cache of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from msao_compile.errors import MissingTool
from msao_compile.manifest.schema import Dialect, RuntimeSettings, StateSpec

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class EngineFile:
    """A module's graph on disk, how it is to be loaded, and the state that it has."""

    path: Path
    dialect: Dialect
    settings: RuntimeSettings
    states: tuple[StateSpec, ...] = ()


class Engine(Protocol):
    """A loaded module without state."""

    @property
    def inputs(self) -> Mapping[str, tuple[int | str, ...]]:
        """The shapes it takes by name, with names for dimensions that may vary."""

    @property
    def types(self) -> Mapping[str, str]:
        """The NumPy types it takes by name."""

    def run(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        """Every output by name."""


class KVCache(Protocol):
    """The state of one conversation, or of a batch of them: keys and values have layout `bhsd/v1`."""

    length: int
    capacity: int

    def rollback(self, length: int) -> None:
        """Forget every position from `length` on; only ever backwards.

        Raises:
            StageError: the decoder has state that holds nothing of earlier positions.
        """


class Slab(Protocol):
    """State of many sequences side by side, whose rows can be run together or apart."""

    rows: int
    capacity: int

    def view(self, first: int, end: int) -> KVCache:
        """The rows from `first` up to `end` as a cache over the same memory; a step writes at its `length`."""

    def gather(self, row: int, kept: np.ndarray) -> None:
        """Move the positions `kept` [n] of a row, which rise, to its front."""

    def clear(self, row: int) -> None:
        """Leave nothing in a row: what is not finite would spoil sums even where a mask hides it."""


class DecoderEngine(Engine, Protocol):
    """A loaded decoder: one graph for prefill and decode."""

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """An empty cache of `capacity` positions for sequences that go on together."""

    def new_slab(self, capacity: int, rows: int) -> Slab | None:
        """Room for `rows` sequences that do not go on together; None where the graph or the device has no such state.

        A graph has it that takes a mask over all positions and is told where to write.
        """

    def step(self, feed: Mapping[str, np.ndarray], cache: KVCache) -> np.ndarray:
        """Append the fed positions to the cache and give logits [batch, num_logits, vocabulary].

        Raises:
            CapacityExceeded: they do not fit, and nothing ran.
        """


# backend -> (module that may import the library, extra that installs it)
BACKENDS: dict[str, tuple[str, str]] = {
    "ort": ("msao_compile.runtime.backends.ort", "ort"),
    "trt": ("msao_compile.runtime.backends.trt", "tensorrt"),
    "trt_rtx": ("msao_compile.runtime.backends.trt", "rtx"),
}
PACKAGES = {"ort": "onnxruntime", "trt": "tensorrt", "trt_rtx": "tensorrt_rtx"}
NEEDS_GPU = ("trt", "trt_rtx")


def fault(backend: str, capabilities: Sequence[int] = (), on_gpu: bool = False) -> str | None:
    """Why a backend's engines do not run here, in a few words; None where they do.

    `capabilities` are those that an engine was built for, none where that is told elsewhere; `on_gpu` is for what a
    backend of CPUs runs on a GPU. A GPU's driver is asked before any library is touched.
    """
    if backend not in BACKENDS:
        return "not known to this runtime"
    if on_gpu or backend in NEEDS_GPU:
        from msao_compile.runtime.backends.cuda import probe

        driver = probe()
        if isinstance(driver, str):
            return driver
        if capabilities and driver.device.sm not in capabilities:
            built = ", ".join(f"sm{sm}" for sm in capabilities)
            return f"built for {built}, and this GPU is sm{driver.device.sm}"
    package, extra = PACKAGES[backend], BACKENDS[backend][1]
    return None if find_spec(package) is not None else f"pip install 'msao-compile[{extra}]'"


def open_engine(backend: str, file: EngineFile) -> Engine:
    """Load a stateless module.

    Raises:
        MissingTool: the backend is unknown here or its library is not installed; names the extra.
    """
    engine: Engine = _module(backend).open_engine(backend, file)
    return engine


def open_decoder(backend: str, file: EngineFile) -> DecoderEngine:
    """Load a decoder; raises as `open_engine`."""
    decoder: DecoderEngine = _module(backend).open_decoder(backend, file)
    return decoder


def _module(backend: str) -> Any:
    import importlib

    if backend not in BACKENDS:
        raise MissingTool(f"backend {backend!r} is not known to this runtime; known: {', '.join(BACKENDS)}")
    module, extra = BACKENDS[backend]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingTool(
            f"backend {backend!r} needs a library that is not installed ({error.name}): "
            f"pip install 'msao-compile[{extra}]'"
        ) from error
