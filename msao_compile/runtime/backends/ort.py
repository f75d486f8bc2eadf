"""ONNX Runtime: sessions with the recipe's settings, and decoders whose KV buffer is past and present at once."""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

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
from msao_compile.manifest.schema import GROWS
from msao_compile.runtime.backends import ort_cuda
from msao_compile.runtime.backends.base import Arrays, EngineFile, KVCache

# Bindings raise a plain RuntimeError for some faults, such as wrong shapes.
_FAULTS = (Fail, InvalidArgument, InvalidProtobuf, NoSuchFile, RuntimeException, RuntimeError)
_POOL: list[int | None] = []  # ONNX Runtime makes the shared pool once in the life of a process
_POOL_LOCK = threading.Lock()
logger = logging.getLogger(__name__)
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
          "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}  # fmt: skip
WRITE_INDICES = "write_indices"  # of graphs that write their state: the first new position of each sequence
_QUIET = 3  # ONNX Runtime's log level for errors only


def open_engine(backend: str, file: EngineFile) -> OrtEngine:
    """Load a stateless module; raises as `OrtEngine`."""
    return OrtEngine(file)


def open_decoder(backend: str, file: EngineFile) -> OrtDecoder:
    """Load a decoder; raises as `OrtEngine`."""
    return OrtDecoder(file)


class OrtEngine:
    """One ONNX Runtime session, on the CPU or on the GPU as the settings say.

    Raises:
        DeploymentError: the library refuses the file. MissingTool: there is no GPU that it can use.
    """

    def __init__(self, file: EngineFile) -> None:
        self.device, self.session = file.settings.provider, _opened(file)
        self.path = file.path
        shapes: dict[str, tuple[int | str, ...]] = {
            value.name: tuple(value.shape) for value in self.session.get_inputs()
        }
        self.inputs = shapes
        self.types = {value.name: self._type(value) for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def _type(self, value: Any) -> str:
        if value.type not in _TYPES:
            raise DeploymentError(
                f"{self.path}: its input {value.name} is {value.type}, which NumPy does not have: build it in fp16"
            )
        return _TYPES[value.type]

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


def _opened(file: EngineFile, sizes: Mapping[str, int] | None = None) -> ort.InferenceSession:
    """A session; with the `sizes` of lengths by name for runs of those alone, which a GPU may capture."""
    providers = ort_cuda.providers(file.settings, sizes is not None)
    options = ort.SessionOptions()
    _give_threads(options, file.settings.threads)
    options.enable_cpu_mem_arena = file.settings.arena
    options.enable_mem_pattern = False  # sequence lengths change with every request
    options.log_severity_level = _QUIET
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        session = ort.InferenceSession(str(file.path), options, providers=providers, enable_fallback=0)
    except _FAULTS as error:
        raise DeploymentError(
            f"{file.path}: ONNX Runtime {ort.__version__} refuses it: {_first_line(error)}"
        ) from error
    ort_cuda.check_provider(session, file.settings)
    return session


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
    """The state tensors of `batch` sequences, each as its graph wants it, in the memory of the decoder's device.

    `in_place`: one buffer of `capacity` positions, bound as past and present at once. `concat`: grows inside the graph.
    `replace`: another tensor of the same size comes out.
    """

    def __init__(
        self,
        decoder: OrtDecoder,
        capacity: int,
        batch: int,
        steps: ort_cuda.FixedSteps | None = None,
        shared: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.length, self.capacity, self.states, self.device = 0, capacity, decoder.states, decoder.device
        self.binding = decoder.session.io_binding()
        self.moving = [state for state in self.states if state.update != "in_place"]
        self.values = {}
        self.steps = steps
        for state in self.states:
            rows = capacity if state.update == "in_place" else 0
            shape = [rows if size == GROWS else batch if isinstance(size, str) else size for size in state.shape]
            empty = np.zeros(shape, np.dtype(state.dtype)) if shared is None else shared[state.name]
            if steps is None:
                value = ort_cuda.device_value(empty, self.device)
            else:
                value = steps.values[state.name]
                value.update_inplace(empty)  # what is not finite would spoil sums even where a mask hides it
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
            self.values[state.name] = ort_cuda.device_value(kept, self.device)
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
            self.binding.bind_output(state.output, self.device)

    def take(self, count: int) -> None:
        """After a run: `count` more positions are known."""
        self.length += count
        if self.moving:
            outputs = self.binding.get_outputs()[len(self.states) - len(self.moving) :]
            self.values |= {state.name: value for state, value in zip(self.moving, outputs, strict=False)}


class StateSlab:
    """State of many sequences in one buffer per tensor [rows, ...], of which any run of rows is a cache of its own."""

    def __init__(self, decoder: OrtDecoder, capacity: int, rows: int) -> None:
        self.decoder, self.capacity, self.rows = decoder, capacity, rows
        self.arrays: dict[str, np.ndarray] = {}
        self._axes: dict[str, int] = {}
        for state in decoder.states:
            axis = state.shape.index(capacity)
            self._axes[state.name] = axis
            shape = [rows if isinstance(size, str) else size for size in state.shape]
            self.arrays[state.name] = np.zeros(shape, np.dtype(state.dtype))
        self._views: dict[tuple[int, int], StateCache] = {}

    def view(self, first: int, end: int) -> StateCache:
        """The rows from `first` up to `end` as a cache over the same memory; its `length` is where a step writes."""
        if (first, end) not in self._views:
            shared = {name: array[first:end] for name, array in self.arrays.items()}
            self._views[first, end] = StateCache(self.decoder, self.capacity, end - first, shared=shared)
        return self._views[first, end]

    def gather(self, row: int, kept: np.ndarray) -> None:
        """Move the positions `kept` [n] of a row, which rise, to its front."""
        for name, array in self.arrays.items():
            along = np.moveaxis(array[row], self._axes[name] - 1, 0)
            along[: len(kept)] = along[kept]

    def clear(self, row: int) -> None:
        """Leave nothing in a row."""
        for array in self.arrays.values():
            array[row] = 0


class OrtDecoder(OrtEngine):
    """A decoder session; `step` runs prefill, decode and verification alike, for all sequences of a cache.

    Raises:
        DeploymentError: as OrtEngine, or its steps are to be captured and cannot be.
    """

    def __init__(self, file: EngineFile) -> None:
        super().__init__(file)
        self.file, self.states = file, file.states
        self.places = self.types.get(WRITE_INDICES)
        if self.places is not None:  # this decoder's own, like the mask beyond what is known
            del self.inputs[WRITE_INDICES]
            self.inputs["attention_mask"] = (self.inputs["attention_mask"][0], "total_sequence_length")
        self.vocabulary = next(int(value.shape[2]) for value in self.session.get_outputs() if value.name == "logits")
        if file.settings.cuda_graphs:
            ort_cuda.check_captured(self.types, self.states)
        self._fixed: dict[int, ort.InferenceSession] = {}
        self._graphs = 0
        self._idle: defaultdict[tuple[int, int], list[ort_cuda.FixedSteps]] = defaultdict(list)

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """An empty cache for sequences that go on together.

        Raises:
            DeploymentError: this machine has no memory for it, or its steps cannot be captured.
        """
        try:
            captured = self.file.settings.cuda_graphs
            return self._captured(capacity, batch) if captured else StateCache(self, capacity, batch)
        except (MemoryError, ValueError, *_FAULTS) as error:  # NumPy says ValueError of more than it can count
            raise DeploymentError(
                f"kv_capacity is {capacity}, for which this machine has not the {self._bytes(capacity, batch)} bytes: "
                "lower shapes.decoder.kv_capacity in the recipe and build again"
            ) from error

    def new_slab(self, capacity: int, rows: int) -> StateSlab | None:
        """Room for sequences that do not go on together, where this graph writes its state itself, on a CPU."""
        grown = [state.update == "in_place" and capacity in state.shape[1:] for state in self.states]
        return StateSlab(self, capacity, rows) if self.places and all(grown) and self.device == "cpu" else None

    def _captured(self, capacity: int, batch: int) -> StateCache:
        """A cache at addresses whose steps are captured, of one that nobody has any more where there is one."""
        idle = self._idle[capacity, batch]
        cache = StateCache(self, capacity, batch, idle.pop() if idle else None)
        if cache.steps is None:
            self._graphs += 1
            outputs = {state.output: cache.values[state.name] for state in self.states}
            outputs["logits"] = ort_cuda.device_value(np.zeros((batch, 1, self.vocabulary), np.float32), self.device)
            cache.steps = ort_cuda.FixedSteps(
                self._fixed_session(batch), self._graphs, cache.values, outputs, self.device
            )
        weakref.finalize(cache, idle.append, cache.steps)
        return cache

    def _fixed_session(self, batch: int) -> ort.InferenceSession:
        """A session for single tokens of so many sequences: with lengths known, no shape is left to compute on a CPU,
        which ONNX Runtime would not capture. It has weights of its own.
        """
        if batch not in self._fixed:
            lengths = (*self.inputs["inputs_embeds"][:2], *self.inputs["logits_positions"])
            sizes = {str(name): size for name, size in zip(lengths, (batch, 1, 1), strict=True)}
            self._fixed[batch] = _opened(self.file, sizes)
        return self._fixed[batch]

    def _bytes(self, capacity: int, batch: int) -> int:
        sizes = (
            math.prod(size for size in state.shape if isinstance(size, int)) * np.dtype(state.dtype).itemsize
            for state in self.states
        )
        return sum(sizes) * capacity * batch

    def step(self, feed: Mapping[str, np.ndarray], cache: KVCache) -> np.ndarray:
        """Append `feed` to the cache; logits [batch, num_logits, vocabulary], float32.

        Raises:
            CapacityExceeded: the cache has no room for it; nothing ran and the cache keeps its length.
            StageError: the library failed; the cache keeps its length.
        """
        assert isinstance(cache, StateCache)  # made by new_cache of this very class
        count = feed["inputs_embeds"].shape[1]
        _check_room(cache, count)
        feed = self._placed(feed, cache)
        try:
            steps = cache.steps if ort_cuda.fixed(feed) else None
            logits = self._run(feed, cache) if steps is None else steps.run(feed)
        except _FAULTS as error:
            raise StageError(f"{self.path}: {_first_line(error)}") from error
        cache.take(count)
        return logits

    def _placed(self, feed: Mapping[str, np.ndarray], cache: StateCache) -> Mapping[str, np.ndarray]:
        """For a graph that writes its state itself: where the new positions go, and a mask over the whole buffer."""
        if self.places is None:
            return feed
        mask, (batch, _) = feed["attention_mask"], feed["inputs_embeds"].shape[:2]
        behind = ((0, 0), (0, cache.capacity - mask.shape[1]))
        places = np.full(batch, cache.length, np.dtype(self.places))
        return {**feed, WRITE_INDICES: places, "attention_mask": np.pad(mask, behind)}

    def _run(self, feed: Mapping[str, np.ndarray], cache: StateCache) -> np.ndarray:
        binding = cache.binding
        logits = np.empty((len(feed["inputs_embeds"]), len(feed["logits_positions"]), self.vocabulary), np.float32)
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        cache.bind()
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self.session.run_with_iobinding(binding)
        return logits


def _check_room(cache: KVCache, count: int) -> None:
    if cache.length + count > cache.capacity:
        raise CapacityExceeded(
            f"{count} more positions do not fit a KV cache that holds {cache.length} of {cache.capacity}: roll it "
            "back, or raise shapes.decoder.kv_capacity in the recipe and build again"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
