"""Time every route of a draft deployment, and what its models' work costs, with the code that ships: warm, five runs.

Stop tokens do not stop these answers, so that there is a time per token whatever the model says.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.made_up import SIDE, picture
from msao_compile.manifest.evidence import MeasureEvidence, ModuleTiming, RouteTiming, Spread
from msao_compile.manifest.offload import Line, Primitives
from msao_compile.manifest.schema import Route
from msao_compile.runtime import load
from msao_compile.runtime.answer import Answer, Clock
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.cloud.rows import Apart, Row
from msao_compile.runtime.session import ModelSession, Request

RUNS = 5
NEW_TOKENS = 16
PROMPT = "What is in this picture?"
MOST_PREFILL, WIDE = 512, 8
"""Tokens of the long prompt at most, and of the wide round."""


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Measure the routes of the draft in `arguments["folder"]`."""
    folder = Path(arguments["folder"])
    runtime = load(folder)
    routes, modules = [], []
    for route in [route for route in runtime.deployment.routes if route.name != "speculate"]:
        on_progress({"route": route.name})
        answers = _answers(runtime, route)
        routes.append(_route(route.name, route.task, route.model, answers))
        if route.name in ("edge", "cloud"):
            modules += _modules(route.model, answers)
    threads = str(runtime.deployment.runtime.threads or "all")
    machine = {"platform": platform.platform(), "cpu": _cpu(), "threads": threads}
    names = dict.fromkeys(route.model for route in runtime.deployment.routes if route.name in ("edge", "cloud"))
    primitives = tuple(_primitives(runtime.session(name)) for name in names)
    found = MeasureEvidence(machine=machine, modules=tuple(modules), routes=tuple(routes), primitives=primitives)
    return found.model_dump(mode="json")


def _answers(runtime: Runtime, route: Route) -> list[Answer]:
    options: dict[str, Any] = {"route": route.name, "task": route.task, "max_new_tokens": NEW_TOKENS}
    options["ignore_eos"] = True
    content = picture() if "vision_encoder" in route.hosts else None
    answers = [runtime.generate(PROMPT, image=content, **options) for _ in range(RUNS + 1)]
    return answers[1:]


def _spread(values: list[float]) -> Spread:
    return Spread(median_ms=statistics.median(values), min_ms=min(values), max_ms=max(values), runs=len(values))


def _route(name: str, task: str, model: str, answers: list[Answer]) -> RouteTiming:
    timings = [answer.timing for answer in answers]
    modules = {key: statistics.median(timing.modules_ms[key] for timing in timings) for key in timings[0].modules_ms}
    return RouteTiming(
        route=name,
        task=task,
        model=model,
        request=f"one {SIDE} px picture, a short question",
        ttft=_spread([timing.ttft_ms for timing in timings]),
        tpot=_spread([timing.tpot_ms for timing in timings if timing.tpot_ms is not None]),
        modules_ms=modules,
        bytes_up=timings[0].bytes_up,
        bytes_down=timings[0].bytes_down,
        tokens=len(answers[0].token_ids),
    )


def _modules(model: str, answers: list[Answer]) -> list[ModuleTiming]:
    keys = [key for key in answers[0].timing.modules_ms if key.removeprefix("cloud/") != "preprocess"]
    return [
        ModuleTiming(
            model=model,
            component=key.removeprefix("cloud/"),
            target="local-cpu",
            time=_spread([answer.timing.modules_ms[key] for answer in answers]),
            shape="one request, prefill",
        )
        for key in keys
    ]


def _primitives(session: ModelSession) -> Primitives:
    """Times of a model's work by how much of it there is: lines through two sizes each."""
    clock, content = Clock(), picture() if "vision_encoder" in session.model.components else None
    shown = () if content is None else (content,)
    request = session.prepare(PROMPT, shown)
    encode_ms = _median(lambda: session.encode(request.tensors, clock)) if shown else 0.0
    prepare_ms = _median(lambda: session.prepare(PROMPT, shown))
    rows = Apart(session, 1)
    plain = session.prepare(PROMPT, ()).ids
    room = session.facts.kv_capacity
    long = np.tile(plain, max(min(room // 2, MOST_PREFILL) // len(plain), 1))[: room - WIDE]

    def prefill(ids: np.ndarray) -> float:
        return _median(lambda: rows.prefill(Row(), Request(ids, {}), {}, clock))

    row = Row()
    rows.prefill(row, Request(plain[: room - WIDE], {}), {}, clock)
    held = row.length

    def step(count: int) -> float:
        def work() -> None:
            rows.step([(row, plain[:1].repeat(count))])
            rows.rollback(row, held)

        return _median(work)

    one_ms = step(1)
    return Primitives(
        model=session.model.name,
        prepare=Line(fixed_ms=prepare_ms, each_ms=0.0),
        encode=Line(fixed_ms=0.0, each_ms=encode_ms),
        prefill=_line(len(plain), prefill(plain), len(long), prefill(long)),
        decode=Line(fixed_ms=0.0, each_ms=one_ms),
        verify=_line(1, one_ms, WIDE, step(WIDE)),
    )


def _median(work: Callable[[], object]) -> float:
    """Milliseconds, the median of some runs after one to warm up."""
    work()
    found = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(found)


def _line(low: int, low_ms: float, high: int, high_ms: float) -> Line:
    """The line through two times, which neither falls nor begins below nothing."""
    each_ms = max((high_ms - low_ms) / max(high - low, 1), 0.0)
    return Line(fixed_ms=max(low_ms - each_ms * low, 0.0), each_ms=each_ms)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
