"""Time every route of a draft deployment with the code that ships: one request class, warm, five runs.

Stop tokens do not stop these answers, so that there is a time per token whatever the model says.
"""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from typing import Any

from msao_compile.made_up import SIDE, picture
from msao_compile.manifest.evidence import MeasureEvidence, ModuleTiming, RouteTiming, Spread
from msao_compile.manifest.schema import Route
from msao_compile.runtime import load
from msao_compile.runtime.answer import Answer
from msao_compile.runtime.api import Runtime

RUNS = 5
NEW_TOKENS = 16
PROMPT = "What is in this picture?"


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Measure the routes of the draft in `arguments["folder"]`."""
    folder = Path(arguments["folder"])
    runtime = load(folder)
    routes, modules = [], []
    for route in runtime.deployment.routes:
        on_progress({"route": route.name})
        answers = _answers(runtime, route)
        routes.append(_route(route.name, route.task, route.model, answers))
        if route.name in ("edge", "cloud"):
            modules += _modules(route.model, answers)
    threads = str(runtime.deployment.runtime.threads or "all")
    machine = {"platform": platform.platform(), "cpu": _cpu(), "threads": threads}
    return MeasureEvidence(machine=machine, modules=tuple(modules), routes=tuple(routes)).model_dump(mode="json")


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


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
