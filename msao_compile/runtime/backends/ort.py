"""ONNX Runtime: sessions with the recipe's settings, and decoders whose KV buffer is past and present at once."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidProtobuf,
    NoSuchFile,
    RuntimeException,
)

from msao_compile.errors import CapacityExceeded, DeploymentError, StageError
from msao_compile.manifest.schema import GROWS, StateSpec
from msao_compile.runtime.backends.base import Arrays, EngineFile, KVCache

# Bindings raise a plain RuntimeError for some faults, such as wrong shapes.
_FAULTS = (Fail, InvalidArgument, InvalidProtobuf, NoSuchFile, RuntimeException, RuntimeError)
_POOL: list[int | None] = []  # ONNX Runtime makes the shared pool once in the life of a process
_POOL_LOCK = threading.Lock()
logger = logging.getLogger(__name__)
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
          "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}  # fmt: skip
_QUIET = 3  # ONNX Runtime's log level for errors only


def open_engine(backend: str, file: EngineFile) -> OrtEngine:
    """Load a stateless module; raises as `OrtEngine`."""
    return OrtEngine(file)


def open_decoder(backend: str, file: EngineFile) -> OrtDecoder:
    """Load a decoder; raises as `OrtEngine`."""
    return OrtDecoder(file)


class OrtEngine:
    """One ONNX Runtime session.

    Raises:
        DeploymentError: the library refuses the file.
    """

    def __init__(self, file: EngineFile) -> None:
        options = ort.SessionOptions()
        _give_threads(options, file.settings.threads)
        options.enable_cpu_mem_arena = file.settings.arena
        options.enable_mem_pattern = False  # sequence lengths change with every request
        options.log_severity_level = _QUIET
        try:
            self.session = ort.InferenceSession(str(file.path), options, providers=["CPUExecutionProvider"])
        except _FAULTS as error:
            raise DeploymentError(
                f"{file.path}: ONNX Runtime {ort.__version__} refuses it: {_first_line(error)}"
            ) from error
        self.path = file.path
        shapes: dict[str, tuple[int | str, ...]] = {
            value.name: tuple(value.shape) for value in self.session.get_inputs()
        }
        self.inputs = shapes
        self.types = {value.name: _TYPES[value.type] for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        """Every output by name; inputs the graph does not have are left out.

        Raises:
            StageError: the library failed; names the operator.
        """
        try:
            found = self.session.run(self.outputs, {name: feed[name] for name in self.inputs})
        except _FAULTS as error:
            raise StageError(f"{self.path}: {_first_line(error)}") from error
        return dict(zip(self.outputs, found, strict=True))


def _give_threads(options: ort.SessionOptions, threads: int) -> None:
    """The pool that all sessions of this process share; one of its own only where another library made the pool.

    ONNX Runtime refuses sessions with threads of their own once it has a shared pool: the first number asked for stays.
    After a run the threads of a pool spin for a while, and where every session has its own they take the processors
    from the module that runs next: 155 ms instead of 118 for a prompt of 94 tokens on 2 cores.
    """
    shared = _shared_threads(threads)
    if shared not in (None, threads):
        logger.warning("this process runs its modules on %d threads already; %d are not made", shared, threads)
    if shared is not None:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")


def _shared_threads(wanted: int) -> int | None:
    """How many threads the shared pool has: what the first session asked for. None: another library made the pool."""
    with _POOL_LOCK:
        if not _POOL:
            try:
                ort.set_global_thread_pool_sizes(wanted, 1)
                _POOL.append(wanted)
            except Fail:
                _POOL.append(None)
        return _POOL[0]


class StateCache:
    """The state tensors of `batch` sequences, each as its graph wants it.

    `in_place`: one buffer of `capacity` positions, bound as past and present at once. `concat`: grows inside the graph.
    `replace`: another tensor of the same size comes out.
    """

    def __init__(self, session: ort.InferenceSession, states: tuple[StateSpec, ...], capacity: int, batch: int) -> None:
        self.length, self.capacity, self.states = 0, capacity, states
        self.binding = session.io_binding()
        self.moving = [state for state in states if state.update != "in_place"]
        self.values = {}
        for state in states:
            rows = capacity if state.update == "in_place" else 0
            shape = [rows if size == GROWS else batch if isinstance(size, str) else size for size in state.shape]
            value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.dtype(state.dtype)))
            self.values[state.name] = value
            if state.update == "in_place":
                self.binding.bind_ortvalue_input(state.name, value)
                self.binding.bind_ortvalue_output(state.output, value)

    def rollback(self, length: int) -> None:
        """Forget positions from `length` on: of a buffer they are overwritten before they are ever read.

        Raises:
            StageError: the decoder has state that holds nothing of earlier positions.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a KV cache of {self.length} positions cannot roll back to {length}")
        fixed = next((state.name for state in self.states if not state.rollback), None)
        if length < self.length and fixed is not None:
            raise StageError(f"state {fixed} cannot be rolled back from {self.length} positions to {length}")
        for state in self.moving if length < self.length else ():
            axis = state.shape.index(GROWS)
            kept = np.take(self.values[state.name].numpy(), range(length), axis)
            self.values[state.name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(kept))
        self.length = length

    def bind(self) -> None:
        """Bind what moves: presents first and logits last, so that outputs come back in that order."""
        if not self.moving:
            return
        self.binding.clear_binding_outputs()
        for state in self.states:
            value = self.values[state.name]
            if state.update == "in_place":
                self.binding.bind_ortvalue_output(state.output, value)
            else:
                self.binding.bind_ortvalue_input(state.name, value)
        for state in self.moving:
            self.binding.bind_output(state.output, "cpu")

    def take(self, count: int) -> None:
        """After a run: `count` more positions are known."""
        self.length += count
        if self.moving:
            outputs = self.binding.get_outputs()[len(self.states) - len(self.moving) :]
            self.values |= {state.name: value for state, value in zip(self.moving, outputs, strict=False)}


class OrtDecoder(OrtEngine):
    """A decoder session; `step` runs prefill, decode and verification alike, for all sequences of a cache."""

    def __init__(self, file: EngineFile) -> None:
        super().__init__(file)
        self.states = file.states
        self.vocabulary = next(int(value.shape[2]) for value in self.session.get_outputs() if value.name == "logits")

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """An empty cache for sequences that go on together.

        Raises:
            DeploymentError: this machine has no memory for it.
        """
        try:
            return StateCache(self.session, self.states, capacity, batch)
        except (MemoryError, ValueError, *_FAULTS) as error:  # NumPy says ValueError of more than it can count
            width = sum(math.prod(size for size in state.shape if isinstance(size, int)) for state in self.states)
            raise DeploymentError(
                f"kv_capacity is {capacity}, for which this machine has not the {4 * width * capacity * batch} bytes: "
                "lower shapes.decoder.kv_capacity in the recipe and build again"
            ) from error

    def step(self, feed: Mapping[str, np.ndarray], cache: KVCache) -> np.ndarray:
        """Append `feed` to the cache; logits [batch, num_logits, vocabulary], float32.

        Raises:
            CapacityExceeded: the cache has no room for it; nothing ran and the cache keeps its length.
            StageError: the library failed; the cache keeps its length.
        """
        assert isinstance(cache, StateCache)  # made by new_cache of this very class
        binding, (batch, count) = cache.binding, feed["inputs_embeds"].shape[:2]
        _check_room(cache, count)
        logits = np.empty((batch, len(feed["logits_positions"]), self.vocabulary), np.float32)
        try:
            for name, value in feed.items():
                binding.bind_cpu_input(name, value)
            cache.bind()
            binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
            self.session.run_with_iobinding(binding)
        except _FAULTS as error:
            raise StageError(f"{self.path}: {_first_line(error)}") from error
        cache.take(count)
        return logits


def _check_room(cache: KVCache, count: int) -> None:
    if cache.length + count > cache.capacity:
        raise CapacityExceeded(
            f"{count} more positions do not fit a KV cache that holds {cache.length} of {cache.capacity}: roll it "
            "back, or raise shapes.decoder.kv_capacity in the recipe and build again"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
