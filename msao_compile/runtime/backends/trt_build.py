"""One builder for TensorRT 10.3 to 11 and TensorRT-RTX: what they share, probed, strongly typed, enums by name.

Precision lives in the graph, never in builder flags. Engines of TensorRT-RTX are built without a GPU; those of TensorRT
need the GPU that they are for, and building them was not run on one unless a file under docs/gpu says so.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msao_compile.errors import InputError, StageError
from msao_compile.runtime.backends import cuda, engine_file
from msao_compile.runtime.backends.trt_library import (
    Messages,
    NodeVerdict,
    builds_ahead_of_time,
    library,
    needed_driver,
    open_parser,
    refusals,
    verdicts,
)

__all__ = ["NodeVerdict", "build", "library", "refuse_types", "supported", "verdicts"]

LEVELS = {"draft": 1, "release": 3}  # of 0 to 5; 3 is what the libraries take by themselves
POLL_S = 0.25
SHOWN_VERDICTS = 3
# The lowest SM that computes in a type (design notes, "Types by SM"); what is not here every SM can.
FLOORS = {"trt_rtx": {"fp32": 80, "bf16": 80, "int4": 86, "fp8": 89}, "trt": {"bf16": 80, "fp8": 89}}
Report = Callable[[Mapping[str, Any]], None]


def supported(precision: str, sm: int, backend: str = "trt_rtx") -> str | None:
    """Why GPUs of this SM (89 for 8.9) do not compute in a precision; None where they do."""
    floor = FLOORS[backend].get(precision, 0)
    if sm >= floor:
        return None
    return f"{precision} needs SM {floor} or newer with {engine_file.NAMES[backend]}, and this is SM {sm}"


def refuse_types(precision: str, order: Mapping[str, Any], here: int | None = None) -> None:
    """Refuse, before anything is built, a precision that a GPU of the order lacks, or the one `here` if it names none.

    Raises:
        InputError: names precision and SM.
    """
    for sm in order["compute_capabilities"] or ([] if here is None else [here]):
        reason = supported(precision, int(sm), order["backend"])
        if reason is not None:
            raise InputError(f"{reason}: choose fp16, or leave this target out")


class Progress:
    """How far a build is, counted from whichever thread tells it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.phases = self.phases_done = self.steps = self.steps_known = 0
        self.phase, self.stop = "", False

    def started(self, phase: str, steps: int) -> None:
        """A phase of so many steps."""
        with self._lock:
            self.phases, self.steps_known, self.phase = self.phases + 1, self.steps_known + steps, phase

    def add(self, phases: int = 0, steps: int = 0) -> None:
        """Phases and steps that are done."""
        with self._lock:
            self.phases_done, self.steps = self.phases_done + phases, self.steps + steps

    def record(self) -> dict[str, Any]:
        """The counts as they are now."""
        with self._lock:
            names = ("phase", "phases", "phases_done", "steps", "steps_known")
            return {name: getattr(self, name) for name in names}


def _monitor(lib: Any, progress: Progress) -> Any:
    """A monitor that only counts: one that drew made builds slower and engines worse in another tool."""

    class Counter(lib.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            lib.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.started(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            progress.add(phases=1)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.add(steps=1)
            return not progress.stop

    return Counter()


@contextmanager
def _told(progress: Progress, on_progress: Report | None) -> Iterator[None]:
    """Tell the counts at most 4 times a second, from a thread of its own, and once at the end.

    What `on_progress` raises stops the build and is raised here.
    """
    if on_progress is None:
        yield
        return
    tell, done = on_progress, threading.Event()

    def poll() -> None:
        while not done.wait(POLL_S):
            tell(progress.record())
        tell(progress.record())

    def stop(finished: Any) -> None:
        progress.stop = finished.exception() is not None

    with ThreadPoolExecutor(1, "engine-progress") as pool:
        polling = pool.submit(poll)
        polling.add_done_callback(stop)
        try:
            yield
        finally:
            done.set()
            polling.result()


def build(
    graph: Path,
    order: Mapping[str, Any],
    output: Path,
    facts: Mapping[str, Any],
    on_progress: Report | None = None,
    timing_cache: Path | None = None,
) -> dict[str, Any]:
    """Build the engine of a graph and write it with its facts; `order` is a BuildOrder as JSON has it.

    Gives seconds, plan_bytes, peak_rss_bytes (of this process so far), layers, library_version, steps and phases that
    the library told, and the names of the profiles. `on_progress` is called from another thread; what it raises stops
    the build. A timing cache that is not pinned is written back.

    Raises:
        InputError: the order does not fit graph or library; names the input, SM or cache.
        MissingTool: the library or a GPU that it needs is absent.
        StageError: the library refuses the graph or fails; with its own reason.
    """
    started, backend = time.perf_counter(), str(order["backend"])
    refuse_types(str(facts["precision"]), order)
    pinned = _pinned(order, timing_cache)
    lib = library(backend)
    ahead = builds_ahead_of_time(lib) and bool(order["compute_capabilities"])
    driver = None if ahead else needed_driver(backend)
    refuse_types(str(facts["precision"]), order, None if driver is None else driver.device.sm)
    messages, progress = Messages(), Progress()
    builder, network, parser = open_parser(lib, messages)
    _parse(graph, parser, messages)
    decompose(lib, network)
    config = builder.create_builder_config()
    sms = _set_gpus(lib, config, order, driver)
    _set_up(builder, network, config, order)
    timings_file = None if backend == "trt_rtx" else timing_cache  # TensorRT-RTX says that there they do nothing
    if timings_file is not None:
        _load_timings(lib, config, timings_file, pinned, messages)
    config.progress_monitor = _monitor(lib, progress)
    with _told(progress, on_progress):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = messages.reason()
        advice = "; give its lengths a smaller range in the recipe's [shapes]" if "shape constraints" in reason else ""
        raise StageError(f"{graph}: {engine_file.NAMES[backend]} builds no engine of it: {reason}{advice}")
    if timings_file is not None and not pinned:
        _save_timings(config, timings_file)
    known = {"library_version": lib.__version__, "order": dict(order), "backend": backend, "inputs": _inputs(network)}
    engine_file.write(output, {**_place(sms, driver), **facts, **known}, plan)
    counts = progress.record()
    return {
        "seconds": time.perf_counter() - started,
        "plan_bytes": plan.nbytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "layers": network.num_layers,
        "library_version": lib.__version__,
        "steps": counts["steps"],
        "phases": counts["phases"],
        "profiles": [profile["name"] for profile in order["profiles"]],
    }


def _place(sms: list[int], driver: cuda.Driver | None) -> dict[str, Any]:
    """Where the engine is made and for which GPUs; `facts` may say it better."""
    ahead = {"gpu_architectures": [f"sm{sm}" for sm in sms], "cuda": None, "driver": None, "gpu_name": None}
    return {**engine_file.machine(), **(ahead if driver is None else driver.device.facts())}


def _parse(graph: Path, parser: Any, messages: Messages) -> None:
    """Fill the network; by path, so that the weights beside the graph are found."""
    if parser.parse_from_file(str(graph)):
        return
    found = refusals(parser)
    shown = [f"{one.operator} {one.node}: {one.reason}" for one in found[:SHOWN_VERDICTS] if one.operator]
    more = f"; and {len(found) - SHOWN_VERDICTS} more" if len(found) > SHOWN_VERDICTS else ""
    advice = next((f": use {one.advice}" for one in found if one.advice), "")
    raise StageError(f"{graph}: the parser refuses {'; '.join(shown) or 'it: ' + messages.reason()}{more}{advice}")


def decompose(lib: Any, network: Any) -> None:
    """Let attention be built of simpler layers where no kernel serves its types: as it is, fp32 fails to build."""
    if not (hasattr(lib, "IAttentionInputLayer") and hasattr(lib.LayerType, "ATTENTION_INPUT")):
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == lib.LayerType.ATTENTION_INPUT:
            layer.__class__ = lib.IAttentionInputLayer
            attention: Any = layer.attention if hasattr(layer, "attention") else None
            if hasattr(attention, "decomposable"):
                attention.decomposable = True


def _set_gpus(lib: Any, config: Any, order: Mapping[str, Any], driver: cuda.Driver | None) -> list[int]:
    """Which GPUs the engine is for, as SMs: those of the order, else the one here."""
    wanted = [int(sm) for sm in order["compute_capabilities"]]
    here = [] if driver is None else [driver.device.sm]
    if not hasattr(config, "set_compute_capability"):
        if not set(wanted) <= set(here):
            raise InputError(
                f"TensorRT builds only for the GPU here, SM {here[0]}, not for SM {', '.join(map(str, wanted))}: build "
                "on the machine that has it, or name no compute capability"
            )
        return here
    # A library that does not know the SM of this GPU may still run here what it makes for Ampere and newer.
    set_here = [sm for sm in here if hasattr(lib.ComputeCapability, f"SM{sm}")]
    for index, sm in enumerate(wanted or set_here):
        if not hasattr(lib.ComputeCapability, f"SM{sm}"):
            known = ", ".join(name for name in dir(lib.ComputeCapability) if re.fullmatch(r"SM\d+", name))
            raise InputError(f"TensorRT-RTX {lib.__version__} builds for {known}, not for SM{sm}: leave it out")
        config.num_compute_capabilities = max(config.num_compute_capabilities, len(wanted), 1)
        config.set_compute_capability(getattr(lib.ComputeCapability, f"SM{sm}"), index)
    return wanted or here


def _set_up(builder: Any, network: Any, config: Any, order: Mapping[str, Any]) -> None:
    """The profiles of the order, and how hard the builder tries."""
    for profile in order["profiles"]:
        _add_profile(builder, network, config, profile)
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = LEVELS[order["level"]]


def _add_profile(builder: Any, network: Any, config: Any, wanted: Mapping[str, Any]) -> None:
    """One optimisation profile, every varying input of the network in it.

    Raises:
        InputError: an input is missing, unknown, or its range does not fit; names it.
    """
    ranges, where = {one["name"]: one for one in wanted["inputs"]}, f"profile {wanted['name']}"
    shapes = {tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    strange = next((name for name in ranges if name not in shapes), None)
    if strange is not None:
        raise InputError(f"{where}: the graph has no input {strange}; it has {', '.join(shapes)}")
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        if name in ranges:
            low, best, high = (tuple(int(size) for size in ranges[name][key]) for key in ("min", "opt", "max"))
            _check_range(f"{where}: input {name}", shape, low, best, high)
            profile.set_shape(name, low, best, high)
        elif -1 in shape:
            raise InputError(f"{where}: input {name} varies in shape {shape} and has no range: add min, opt and max")
    if config.add_optimization_profile(profile) < 0:
        raise InputError(f"{where}: the library refuses it: compare its ranges with the graph's inputs")


def _check_range(where: str, shape: tuple[int, ...], *ranges: tuple[int, ...]) -> None:
    low, best, high = ranges
    if {len(low), len(best), len(high)} != {len(shape)}:
        raise InputError(f"{where} has {len(shape)} dimensions {shape}, its range {low} {best} {high} has others")
    for axis, size in enumerate(shape):
        if not 0 <= low[axis] <= best[axis] <= high[axis]:
            raise InputError(
                f"{where}: min <= opt <= max does not hold on axis {axis}: {low[axis]}, {best[axis]}, {high[axis]}"
            )
        if size != -1 and (low[axis], high[axis]) != (size, size):
            raise InputError(
                f"{where} is {size} on axis {axis} in the graph, its range is {low[axis]} to {high[axis]}: "
                "give the graph's size"
            )


def _inputs(network: Any) -> dict[str, list[int | str]]:
    """The shape of every input, with the graph's names for what varies: engines keep none."""
    found: dict[str, list[int | str]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = enumerate(tuple(tensor.shape))
        found[tensor.name] = [
            size if size != -1 else tensor.get_dimension_name(axis) or f"{tensor.name}_{axis}" for axis, size in sizes
        ]
    return found


def _pinned(order: Mapping[str, Any], timing_cache: Path | None) -> bool:
    """Whether the order names the timing cache by digest, which then is the one given.

    Raises:
        InputError: it is another one, or none is given.
    """
    wanted = order.get("timing_cache")
    if wanted is None:
        return False
    if timing_cache is None or not timing_cache.is_file():
        raise InputError(f"the recipe pins the timing cache {wanted}, and {timing_cache or 'none'} is there: add it")
    found = hashlib.sha256(timing_cache.read_bytes()).hexdigest()
    if found != wanted:
        raise InputError(f"{timing_cache} has the SHA-256 {found}, but {wanted} is pinned: give that one, or pin this")
    return True


def _load_timings(lib: Any, config: Any, path: Path, pinned: bool, messages: Messages) -> None:
    """Give the timing cache to the builder, an empty one where there is none yet.

    Raises:
        InputError: the library refuses it.
    """
    content = path.read_bytes() if path.exists() else b""
    messages.warnings.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        timings = config.create_timing_cache(content)
        fits = timings is not None and config.set_timing_cache(timings, False)
    # A cache that does not fit becomes an empty one, which only the log says.
    told = next((text for text in messages.warnings if content and "timing cache" in text), None)
    if not fits or told is not None:
        raise InputError(
            f"{path}: this timing cache does not fit {lib.__name__} {lib.__version__} on this GPU "
            f"({told or messages.reason()}): remove it, or use one that was made by this library on such a GPU"
        )
    if pinned and hasattr(lib.BuilderFlag, "ERROR_ON_TIMING_CACHE_MISS"):
        config.set_flag(lib.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)


def _save_timings(config: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        timings = config.get_timing_cache()
        content = None if timings is None else bytes(timings.serialize())
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        engine_file.replace(path, (content,))


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held so far; None where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found.group(1)) * 1024 if found else None
