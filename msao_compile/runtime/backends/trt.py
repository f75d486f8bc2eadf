"""TensorRT and TensorRT-RTX: engines with one context a profile over one activation buffer, and decoders on the device.

The driver is probed and our header checked before the library sees a file. Nothing here was run on a GPU unless a file
under docs/gpu says so.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import CapacityExceeded, DeploymentError, InputError, MissingTool, StageError
from msao_compile.runtime.backends import cuda, engine_file
from msao_compile.runtime.backends.trt_library import Messages, library, listen
from msao_compile.runtime.backends.trt_state import GROWS, DeviceCache, device_states

if TYPE_CHECKING:
    from msao_compile.runtime.backends.base import Arrays, EngineFile, KVCache

REBUILD = "msao-compile build RECIPE"
RUNTIME_CACHE = ".runtime-cache"
MASK, WRITE_INDICES, LOGITS = "attention_mask", "write_indices", "logits"
KEPT_GRAPHS = 8
# NumPy has no bfloat16: its bit patterns are what is carried.
TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT64": "int64", "INT32": "int32", "BOOL": "bool",
         "INT8": "int8", "UINT8": "uint8"}  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]
logger = logging.getLogger(__name__)


def open_engine(backend: str, file: EngineFile) -> TrtEngine:
    """Load a stateless module; raises as `TrtEngine`."""
    return TrtEngine(file, backend)


def open_decoder(backend: str, file: EngineFile) -> TrtDecoder:
    """Load a decoder; raises as `TrtEngine`."""
    return TrtDecoder(file, backend)


class TrtEngine:
    """An engine file, loaded; one run at a time, from any thread.

    Raises:
        MissingTool: there is no driver, or the library is not installed.
        DeploymentError: the file is damaged, or for another library, version or GPU, or refused.
    """

    def __init__(self, file: EngineFile, backend: str | None = None) -> None:
        self.path, self._lock, self._messages = file.path, threading.RLock(), Messages()
        driver = cuda.probe()
        if isinstance(driver, str):
            raise MissingTool(f"{file.path.name} needs an NVIDIA GPU: {driver}")
        self.driver, header = driver, engine_file.read_header(file.path)
        backend = backend or str(header["backend"])
        lib = library(backend)
        here = {
            **engine_file.machine(),
            **driver.device.facts(),
            "backend": backend,
            "library_version": lib.__version__,
        }
        engine_file.refuse_mismatch(file.path, header, here, REBUILD)
        driver.use()
        before = driver.memory()[0]
        self._engine = self._load(lib)
        self._weights = self._weights_bytes(lib, before - driver.memory()[0])
        self.stream = cuda.Stream(driver)
        self._describe(header)
        self._open_contexts(lib)

    def _load(self, lib: Any) -> Any:
        runtime = self._runtime = lib.Runtime(listen(lib, self._messages))
        engine = runtime.deserialize_cuda_engine(engine_file.read_plan(self.path))
        if engine is None:
            raise DeploymentError(
                f"{self.path}: {lib.__name__} {lib.__version__} refuses it ({self._messages.reason()}): run: {REBUILD}"
            )
        return engine

    def _weights_bytes(self, lib: Any, grown: int) -> int:
        engine = self._engine
        told = engine.get_engine_stat(lib.EngineStat.TOTAL_WEIGHTS_SIZE) if hasattr(engine, "get_engine_stat") else 0
        return int(told) if told > 0 else max(grown, 0)

    def _describe(self, header: Mapping[str, Any]) -> None:
        """Names, shapes and types of what goes in and out, and the range of every input in every profile."""
        engine, named = self._engine, header.get("inputs", {})
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        kinds = {name: engine.get_tensor_dtype(name).name for name in names}
        strange = next((name for name, kind in kinds.items() if kind not in TYPES), None)
        if strange is not None:
            raise DeploymentError(f"{self.path}: {strange} has type {kinds[strange]}, which no array here has")
        self._kinds = {name: TYPES[kind] for name, kind in kinds.items()}
        self._halves = {name for name, kind in kinds.items() if kind == "BF16"}
        self._taken = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        self.outputs = [name for name in names if name not in self._taken]
        self.inputs: dict[str, tuple[int | str, ...]] = {
            name: tuple(named.get(name) or engine.get_tensor_shape(name)) for name in self._taken
        }
        self.types = {name: self._kinds[name] for name in self._taken}
        self._ranges = [
            {name: tuple(map(tuple, engine.get_tensor_profile_shape(name, profile))) for name in self._taken}
            for profile in range(engine.num_optimization_profiles)
        ]
        self._slots: dict[str, cuda.Slot] = {}

    def _open_contexts(self, lib: Any) -> None:
        """One context a profile; all compute in the same memory, which is right because they take turns."""
        sizes = [self._activation(profile) for profile in range(len(self._ranges))]
        self._memory = cuda.DeviceBuffer(self.driver, max(sizes))
        self._runtime_cache: Any = None
        self._contexts = []
        for profile in range(len(self._ranges)):
            context = self._context(lib)
            if context is None:
                raise StageError(f"{self.path}: no execution context: {self._messages.reason()}")
            context.set_optimization_profile_async(profile, self.stream.handle)
            if hasattr(context, "set_device_memory"):
                context.set_device_memory(self._memory.address, self._memory.size_bytes)
            else:
                context.device_memory = self._memory.address
            self._contexts.append(context)
        self.stream.synchronize()

    def _context(self, lib: Any) -> Any:
        engine, strategy = self._engine, lib.ExecutionContextAllocationStrategy.USER_MANAGED
        if not (hasattr(lib, "IRuntimeCache") and hasattr(engine, "create_runtime_config")):
            return engine.create_execution_context(strategy)
        runtime_config = engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(strategy)
        if self._runtime_cache is None:
            runtime_cache, kept = runtime_config.create_runtime_cache(), self.runtime_cache_file()
            if kept.is_file() and not runtime_cache.deserialize(kept.read_bytes()):
                logger.warning("%s does not fit and is made anew: %s", kept, self._messages.reason())
            self._runtime_cache = runtime_cache
        runtime_config.set_runtime_cache(self._runtime_cache)
        return engine.create_execution_context(runtime_config)

    def _activation(self, profile: int) -> int:
        engine = self._engine
        if hasattr(engine, "get_device_memory_size_for_profile_v2"):
            return int(engine.get_device_memory_size_for_profile_v2(profile))
        return int(engine.device_memory_size)

    @property
    def resident_bytes(self) -> int:
        """Device memory of the weights, held once for all profiles: what the library says, else what loading took."""
        return self._weights

    @property
    def activation_bytes(self) -> int:
        """Device memory that all contexts compute in: the most that a profile needs."""
        return self._memory.size_bytes

    def runtime_cache_file(self, folder: Path | None = None) -> Path:
        """Where the kernels that TensorRT-RTX compiled are kept: beside the engine, or in `folder`."""
        return (folder or self.path.parent) / (self.path.name + RUNTIME_CACHE)

    def save_runtime_cache(self, folder: Path | None = None) -> Path | None:
        """Keep the kernels that were compiled so far, so that the next load need not; None where the library has none.

        Raises:
            OSError: it cannot be written.
        """
        runtime_cache = self._runtime_cache
        if runtime_cache is None:
            return None
        file = self.runtime_cache_file(folder)
        engine_file.replace(file, (bytes(runtime_cache.serialize()),))
        return file

    def run(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        """Every output by name; inputs the graph does not have are left out.

        Raises:
            InputError: a shape is outside every profile; names input and range.
            StageError: the library failed; with its own reason.
        """
        with self._lock:
            self.driver.use()
            values = {name: np.ascontiguousarray(feed[name], self.types[name]) for name in self.inputs}
            shapes = {name: value.shape for name, value in values.items()}
            context = self._contexts[self._choose(shapes, range(len(self._ranges)))]
            found = self._shape(context, shapes)
            self._address(context, self._room({**shapes, **found}))
            for name, value in values.items():
                self._slots[name].put(value, self.stream)
            self._queue(context)
            return self._fetch(found)

    def _choose(self, shapes: Shapes, order: range) -> int:
        """The first profile that has all of these shapes."""
        for profile in order:
            if all(_within(shape, self._ranges[profile][name]) for name, shape in shapes.items()):
                return profile
        meant = self._ranges[order[0]]
        name = next(name for name, shape in shapes.items() if not _within(shape, meant[name]))
        low, _, high = meant[name]
        raise InputError(
            f"{name} has shape {shapes[name]}, and {self.path.name} was built for {low} to {high}: give another size, "
            "or widen the shapes of this module in the recipe and build again"
        )

    def _shape(self, context: Any, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Set the shapes that go in; those that come out."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise StageError(f"{self.path}: input {name} cannot be {shape}: {self._messages.reason()}")
        found = {name: tuple(context.get_tensor_shape(name)) for name in self.outputs}
        unknown = next((name for name, shape in found.items() if any(size < 0 for size in shape)), None)
        if unknown is not None:
            raise StageError(f"{self.path}: the shape of {unknown} depends on values, which this runtime does not take")
        return found

    def _slot(self, name: str) -> cuda.Slot:
        if name not in self._slots:
            self._slots[name] = cuda.Slot(self.driver)
        return self._slots[name]

    def _room(self, shapes: Shapes) -> dict[str, int]:
        """An address for each tensor."""
        return {
            name: self._slot(name).room(math.prod(shape) * np.dtype(self._kinds[name]).itemsize)
            for name, shape in shapes.items()
        }

    def _address(self, context: Any, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise StageError(f"{self.path}: {name} cannot be bound: {self._messages.reason()}")

    def _queue(self, context: Any) -> None:
        self._messages.faults.clear()
        if not context.execute_async_v3(self.stream.handle):
            raise StageError(f"{self.path}: running it failed: {self._messages.reason()}")

    def _fetch(self, shapes: Shapes) -> Arrays:
        """These outputs as arrays of the caller's own, bfloat16 as float32."""
        views = {name: self._slots[name].get(shape, self._kinds[name], self.stream) for name, shape in shapes.items()}
        self.stream.synchronize()
        return {
            name: (view.astype(np.uint32) << 16).view(np.float32) if name in self._halves else view.copy()
            for name, view in views.items()
        }


class TrtDecoder(TrtEngine):
    """A decoder engine: profile 0 for prompts, profile 1 for what follows; `step` takes the first that fits.

    Where shapes and addresses stay the same from step to step, the second such step is captured and later ones replay
    it. `uncaptured` says why not, where the library or the driver refused.
    """

    def __init__(self, file: EngineFile, backend: str | None = None) -> None:
        super().__init__(file, backend)
        self.states, self.scatter = file.states, file.dialect == "scatter"
        self.uncaptured: str | None = None
        # By profile, shapes and addresses: the shapes that come out, and the graph once there is one.
        self._graphs: dict[Any, tuple[dict[str, tuple[int, ...]], cuda.Graph | None]] = {}
        self._last: dict[int, Shapes] = {}
        self._aliases = self._shared()
        self._state_names = {name for state in self.states for name in (state.name, state.output)}
        self._fed = [name for name in self.inputs if name not in self._state_names]
        if self.scatter:
            self.inputs.pop(WRITE_INDICES, None)  # this runner's own, like the mask beyond what is known
            self.inputs[MASK] = (*self.inputs[MASK][:-1], "total_sequence_length")

    def _shared(self) -> dict[str, str]:
        """For each state output the input whose memory it shares, "" for none; an old library shares none."""
        engine = self._engine
        if not hasattr(engine, "get_aliased_input_tensor"):
            return {state.output: "" for state in self.states}
        return {state.output: engine.get_aliased_input_tensor(state.output) or "" for state in self.states}

    def new_slab(self, capacity: int, rows: int) -> None:
        """None: rows on a device go on together only."""

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """An empty cache on the device for sequences that go on together.

        Raises:
            DeploymentError: the engine was built for fewer positions, or the GPU has no memory for them.
        """
        rows = self._rows(capacity)
        itemsizes = {state.name: np.dtype(self._kinds[state.name]).itemsize for state in self.states}
        states = device_states(self.states, itemsizes, batch, rows, self._aliases)
        try:
            return DeviceCache(self.driver, states, capacity)
        except StageError as error:
            raise DeploymentError(
                f"kv_capacity is {capacity}, for which this GPU has no memory ({error}): lower "
                "shapes.decoder.kv_capacity in the recipe and build again"
            ) from error

    def _rows(self, capacity: int) -> int:
        """How many positions a buffer has that is written in place: as many as the engine's profiles want."""
        axes = {state.name: state.shape.index(GROWS) for state in self.states if GROWS in state.shape}
        if self.scatter:
            axes[MASK] = -1
        least, most = 0, capacity
        for name, axis in axes.items():
            lows, highs = zip(*((one[name][0][axis], one[name][2][axis]) for one in self._ranges))
            # What grows has all positions but the last before the last step.
            least, most = max(least, *lows), min(highs) if self.scatter else max(highs) + 1
            if capacity > most:
                raise DeploymentError(
                    f"kv_capacity is {capacity}, and {self.path.name} was built for {most} positions: build it again"
                )
        return max(capacity, least) if self.scatter else capacity

    def step(self, feed: Mapping[str, np.ndarray], cache: KVCache) -> np.ndarray:
        """Append `feed` to the cache; logits [batch, num_logits, vocabulary], float32.

        Raises:
            CapacityExceeded: the cache has no room for it; nothing ran and the cache keeps its length.
            InputError: a shape is outside every profile; nothing ran.
            StageError: the library failed; the cache keeps its length.
        """
        assert isinstance(cache, DeviceCache)  # made by new_cache of this very class
        count = feed["inputs_embeds"].shape[1]
        if cache.length + count > cache.capacity:
            raise CapacityExceeded(
                f"{count} more positions do not fit a KV cache that holds {cache.length} of {cache.capacity}: roll it "
                "back, or raise shapes.decoder.kv_capacity in the recipe and build again"
            )
        with self._lock:
            self.driver.use()
            values = self._values(feed, cache)
            shapes = {**{name: value.shape for name, value in values.items()}, **cache.shapes()}
            profiles = range(len(self._ranges))
            profile = self._choose(shapes, profiles if count > 1 else profiles[::-1])
            logits = self._append(profile, shapes, values, (cache, count))
            cache.take(count)
        return logits.astype(np.float32, copy=False)

    def _values(self, feed: Mapping[str, np.ndarray], cache: DeviceCache) -> Arrays:
        """What is copied to the device, with what only a buffer of fixed size needs."""
        found = dict(feed)
        if self.scatter:
            found[MASK] = np.pad(feed[MASK], ((0, 0), (0, cache.rows - feed[MASK].shape[-1])))
            found[WRITE_INDICES] = np.full(feed["inputs_embeds"].shape[0], cache.length, np.int64)
        return {name: np.ascontiguousarray(found[name], self.types[name]) for name in self._fed}

    def _append(self, profile: int, shapes: Shapes, values: Arrays, where: tuple[DeviceCache, int]) -> np.ndarray:
        cache, count = where
        context, bound = self._contexts[profile], cache.addresses(count)
        key = (profile, *shapes.items(), *bound.items(), *(self._slots[name].device.address for name in self._slots))
        found, graph = self._graphs.get(key, ({}, None))
        if graph is None:
            if self._last.get(profile) != shapes:  # graphs were captured of a context that ran these shapes only
                self._graphs = {other: kept for other, kept in self._graphs.items() if other[0] != profile}
            self._last[profile] = dict(shapes)
            found = self._shape(context, shapes)
            own = {name: shape for name, shape in (*shapes.items(), *found.items()) if name not in self._state_names}
            self._address(context, {**self._room(own), **bound})
        for name, value in values.items():
            self._slots[name].put(value, self.stream)
        if graph is None and cache.stays:
            graph = self._captured(context, key, found)
        if graph is None:
            self._queue(context)
        else:
            graph.launch(self.stream)
        return self._fetch({LOGITS: found[LOGITS]})[LOGITS]

    def _captured(self, context: Any, key: Any, found: dict[str, tuple[int, ...]]) -> cuda.Graph | None:
        """The work of this step, recorded the second time that it comes; the first time readies the context for it."""
        if self.uncaptured is not None:
            return None
        if key not in self._graphs:
            if len(self._graphs) >= KEPT_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = (found, None)
            return None
        try:
            if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self.stream.handle):
                raise StageError("the library says that this stream cannot be captured")
            graph = self.stream.capture(lambda: self._queue(context))
        except StageError as error:
            self.uncaptured = str(error)
            logger.info("%s: decode steps run one by one: %s", self.path, error)
            return None
        self._graphs[key] = (found, graph)
        return graph


def _within(shape: tuple[int, ...], ranges: tuple[tuple[int, ...], ...]) -> bool:
    low, _, high = ranges
    return len(shape) == len(low) and all(
        least <= size <= most for least, size, most in zip(low, shape, high, strict=True)
    )
