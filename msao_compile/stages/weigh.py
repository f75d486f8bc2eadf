"""Time a quantised module beside its unquantised sibling on this CPU: fewer bits are not always faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.manifest.schema import RuntimeSettings, StateSpec
from msao_compile.runtime.backends.base import DecoderEngine, Engine, EngineFile, open_decoder, open_engine
from msao_compile.runtime.feed import feed

WARM_UPS, RUNS = 3, 15


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Median milliseconds of each of `paths` (by precision) in turn; `arguments`: paths, component, dialect, settings,
    states, capacity, and for other modules than decoders `shapes` by input.

    A decoder is timed at one token after a short prompt, another module at the shapes that it is to be fastest at.
    """
    settings = RuntimeSettings(**arguments["settings"])
    once: dict[str, Callable[[], Any]] = {}
    for precision, path in arguments["paths"].items():
        states = tuple(StateSpec.model_validate(state) for state in arguments["states"][precision])
        file = EngineFile(Path(path), arguments["dialect"], settings, states)
        if arguments["component"] == "decoder":
            once[precision] = _step(open_decoder("ort", file), arguments["capacity"])
        else:
            once[precision] = _whole(open_engine("ort", file), arguments["shapes"])
    times: dict[str, list[float]] = {precision: [] for precision in once}
    for number in range(WARM_UPS + RUNS):  # in turn, so that what else the machine does meets both alike
        for precision, call in once.items():
            start = time.perf_counter()
            call()
            if number >= WARM_UPS:
                times[precision].append(1e3 * (time.perf_counter() - start))
    return {
        "median_ms": {precision: statistics.median(found) for precision, found in times.items()},
        "runs": RUNS,
        "what": "a step of one token" if arguments["component"] == "decoder" else "one run",
    }


def _whole(engine: Engine, shapes: dict[str, list[int]]) -> Callable[[], Any]:
    chance = np.random.default_rng(0)
    given = {}
    for name, shape in engine.inputs.items():
        sizes = shapes.get(name, [size if isinstance(size, int) else 1 for size in shape])
        kind = np.dtype(engine.types[name])
        given[name] = chance.standard_normal(sizes).astype(kind) if kind.kind == "f" else np.ones(sizes, kind)
    return lambda: engine.run(given)


def _step(decoder: DecoderEngine, capacity: int) -> Callable[[], Any]:
    width = int(decoder.inputs["inputs_embeds"][-1])
    cache = decoder.new_cache(capacity)
    prompt = max(1, min(32, capacity - 1))

    def append(count: int) -> None:
        held = cache.length
        chance = np.random.default_rng(held)
        known: dict[str, np.ndarray] = {
            "inputs_embeds": chance.standard_normal((1, count, width)).astype(np.float32),
            "attention_mask": np.ones((1, held + count), np.int64),
            "logits_positions": np.array([count - 1]),
        }
        where = decoder.inputs.get("position_ids")
        if where is not None:
            places = np.arange(held, held + count, dtype=decoder.types["position_ids"])
            known["position_ids"] = np.broadcast_to(places, (*[3] * (len(where) - 2), 1, count))
        decoder.step(feed(decoder, known, (1, count)), cache)
        cache.rollback(prompt)

    append(prompt)
    return lambda: append(1)
