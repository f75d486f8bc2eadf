"""ONNX Runtime: sessions with the recipe's settings, and decoders whose KV buffer is past and present at once."""

from __future__ import annotations

import logging
import threading
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
from msao_compile.manifest.schema import DecoderFacts
from msao_compile.runtime.backends.base import Arrays, EngineFile, KVCache

# Bindings raise a plain RuntimeError for some faults, such as wrong shapes.
_FAULTS = (Fail, InvalidArgument, InvalidProtobuf, NoSuchFile, RuntimeException, RuntimeError)
_POOL: list[int | None] = []  # ONNX Runtime makes the shared pool once in the life of a process
_POOL_LOCK = threading.Lock()
logger = logging.getLogger(__name__)
_QUIET = 3  # ONNX Runtime's log level for errors only


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


class InPlaceCache:
    """One buffer of `capacity` positions per layer; the fused dialect writes new positions into it."""

    def __init__(self, session: ort.InferenceSession, facts: DecoderFacts) -> None:
        self.length, self.capacity = 0, facts.kv_capacity
        self.binding = session.io_binding()
        shape = (1, facts.num_key_value_heads, facts.kv_capacity, facts.head_dim)
        self.buffers = {}
        for layer in range(facts.num_layers):
            for kind in ("key", "value"):
                buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self.buffers[f"{layer}.{kind}"] = buffer
                self.binding.bind_ortvalue_input(f"past_key_values.{layer}.{kind}", buffer)
                self.binding.bind_ortvalue_output(f"present.{layer}.{kind}", buffer)

    def rollback(self, length: int) -> None:
        """Forget positions from `length` on: they are overwritten before they are ever read."""
        _check_backwards(self.length, length)
        self.length = length


class ConcatCache:
    """Past values that grow by concatenation inside the graph: what the portable dialect offers."""

    def __init__(self, session: ort.InferenceSession, facts: DecoderFacts) -> None:
        self.length, self.capacity = 0, facts.kv_capacity
        self.binding = session.io_binding()
        self.names = [f"{layer}.{kind}" for layer in range(facts.num_layers) for kind in ("key", "value")]
        empty = np.zeros((1, facts.num_key_value_heads, 0, facts.head_dim), np.float32)
        self.values = {name: ort.OrtValue.ortvalue_from_numpy(empty) for name in self.names}

    def rollback(self, length: int) -> None:
        """Copy the positions that stay."""
        _check_backwards(self.length, length)
        if length < self.length:
            self.values = {
                name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value.numpy()[:, :, :length]))
                for name, value in self.values.items()
            }
        self.length = length


class OrtDecoder(OrtEngine):
    """A decoder session; `step` runs prefill, decode and verification alike, one sequence per cache."""

    def __init__(self, file: EngineFile) -> None:
        super().__init__(file)
        self.fused = file.dialect == "fused"
        self.vocabulary = next(int(value.shape[2]) for value in self.session.get_outputs() if value.name == "logits")

    def new_cache(self, facts: DecoderFacts) -> KVCache:
        """An empty cache for one sequence.

        Raises:
            DeploymentError: this machine has no memory for it.
        """
        try:
            return InPlaceCache(self.session, facts) if self.fused else ConcatCache(self.session, facts)
        except (MemoryError, ValueError, *_FAULTS) as error:  # NumPy says ValueError of more than it can count
            size = 8 * facts.num_layers * facts.num_key_value_heads * facts.head_dim * facts.kv_capacity
            raise DeploymentError(
                f"kv_capacity is {facts.kv_capacity}, for which this machine has not the {size} bytes: lower "
                "shapes.decoder.kv_capacity in the recipe and build again"
            ) from error

    def step(self, feed: Mapping[str, np.ndarray], cache: KVCache) -> np.ndarray:
        """Append `feed` to the cache; logits [1, num_logits, vocabulary], float32.

        Raises:
            CapacityExceeded: the cache has no room for it; nothing ran and the cache keeps its length.
            StageError: the library failed; the cache keeps its length.
        """
        assert isinstance(cache, InPlaceCache | ConcatCache)  # made by new_cache of this very class
        binding, count = cache.binding, feed["inputs_embeds"].shape[1]
        _check_room(cache, count)
        logits = np.empty((1, len(feed["logits_positions"]), self.vocabulary), np.float32)
        try:
            for name, value in feed.items():
                binding.bind_cpu_input(name, value)
            if isinstance(cache, ConcatCache):
                _bind_concat(binding, cache)
            binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
            self.session.run_with_iobinding(binding)
        except _FAULTS as error:
            raise StageError(f"{self.path}: {_first_line(error)}") from error
        cache.length += count
        if isinstance(cache, ConcatCache):
            cache.values = dict(zip(cache.names, binding.get_outputs(), strict=False))
        return logits


def _bind_concat(binding: Any, cache: ConcatCache) -> None:
    """Bind presents first and logits last, so that outputs come back in that order."""
    binding.clear_binding_outputs()
    for name, value in cache.values.items():
        binding.bind_ortvalue_input(f"past_key_values.{name}", value)
    for name in cache.names:
        binding.bind_output(f"present.{name}", "cpu")


def _check_room(cache: KVCache, count: int) -> None:
    if cache.length + count > cache.capacity:
        raise CapacityExceeded(
            f"{count} more positions do not fit a KV cache that holds {cache.length} of {cache.capacity}: roll it "
            "back, or raise shapes.decoder.kv_capacity in the recipe and build again"
        )


def _check_backwards(now: int, wanted: int) -> None:
    if not 0 <= wanted <= now:
        raise ValueError(f"a KV cache of {now} positions cannot roll back to {wanted}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
