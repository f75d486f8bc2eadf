"""The child's side: observe the device, build one module, run its cases, compare them, or measure it.

Called as `python -m msao_compile.runtime.kit.worker JOB ANSWER`; both are JSON files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msao_compile.errors import MissingTool, MsaoError
from msao_compile.runtime.kit import child, device, files, judge, runners
from msao_compile.runtime.kit.journal import Entry
from msao_compile.runtime.kit.plan import Module, Plan, read_plan

TELL_SECONDS = 5.0


def main(asked: Path, answer: Path) -> int:
    """Do the job and write how it ended; what this project raises on purpose is an answer too."""
    job = files.read_json(asked)
    plan = read_plan(Path.cwd())
    try:
        entry = JOBS[job["do"]](plan, job)
    except MissingTool as error:
        entry = Entry("not run", str(error), exit_code=error.exit_code)
    except MsaoError as error:
        entry = Entry("failed", str(error), exit_code=error.exit_code)
    except OSError as error:
        if error.errno not in files.FULL:
            raise
        full = f"no space is left in {Path.cwd()}: free some and run kit.py again, it continues"
        entry = Entry("failed", full, exit_code=3)
    files.write_json(answer, asdict(entry))
    return 0


def _observe(plan: Plan, job: Mapping[str, Any]) -> Entry:
    """The device's tuple, and why there is no driver where there is none."""
    from msao_compile.runtime.backends import cuda

    found = {**device.system(), "tensorrt": _version(plan.modules[0].backend)}
    driver = cuda.probe()
    if isinstance(driver, str):
        return Entry("done", None, {"device": found, "no_driver": driver})
    gpu = driver.device
    found |= {
        "gpu_architecture": f"sm{gpu.sm}", "gpu_name": gpu.name, "gpu_memory_mib": gpu.memory_bytes >> 20,
        "driver": gpu.driver, "cuda": gpu.cuda,
    }  # fmt: skip
    return Entry("done", None, {"device": found, "no_driver": None})


def _version(backend: str) -> str | None:
    from msao_compile.runtime.backends import trt_build

    try:
        return str(trt_build.library(backend).__version__)
    except MissingTool:
        return None


def _build(plan: Plan, job: Mapping[str, Any]) -> Entry:
    from msao_compile.runtime.backends import trt_build

    module = _module(plan, job)
    facts = {
        "module": module.module, "component": module.component, "precision": module.precision,
        "dialect": module.dialect, "graph_sha256": module.graph.sha256, "order": dict(module.order), "key": job["key"],
        "target": plan.target, "kit": plan.id, **_gpu(module, job["device"]),
    }  # fmt: skip
    told = trt_build.build(
        Path(module.graph.path), module.order, Path(job["output"]), facts, _teller(), Path(job["timing_cache"])
    )
    return Entry("done", None, {"builder": {name: value for name, value in told.items() if _is_plain(value)}})


def _gpu(module: Module, found: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine's header says of where it was built and of the GPUs that it is for."""
    ahead = [f"sm{sm}" for sm in module.order["compute_capabilities"]]
    here = [found["gpu_architecture"]] if "gpu_architecture" in found else []
    names = ("os", "architecture", "cuda", "driver", "gpu_name")
    return {"gpu_architectures": ahead or here, **{name: found.get(name) for name in names}}


def _teller() -> Callable[[Mapping[str, Any]], None]:
    """Tells how far a build is, now and then."""
    told = [time.monotonic()]

    def tell(record: Mapping[str, Any]) -> None:
        if time.monotonic() - told[0] >= TELL_SECONDS:
            told[0] = time.monotonic()
            counts = "{phases_done} of {phases} phases, {steps} of {steps_known} steps so far known".format(**record)
            sys.stdout.write(f"{child.PROGRESS.decode()}{counts}: {record['phase']}\n")
            sys.stdout.flush()

    return tell


def _run(plan: Plan, job: Mapping[str, Any]) -> Entry:
    module = _module(plan, job)
    runner = runners.opened(job["runner"], module, Path(job["engine"]))
    place = Path(job["outputs"])
    place.mkdir(parents=True, exist_ok=True)
    for case in module.cases:
        runners.run_case(runner, module, case, place / Path(case.file).name)
    return Entry("done", None, {"cases": [case.name for case in module.cases]})


def _parity(plan: Plan, job: Mapping[str, Any]) -> Entry:
    module, place = _module(plan, job), Path(job["outputs"])
    cases = {case.name: (Path(case.file), place / Path(case.file).name) for case in module.cases}
    return judge.parity(cases, module.bounds)


def _measure(plan: Plan, job: Mapping[str, Any]) -> Entry:
    module = _module(plan, job)
    runner = runners.opened(job["runner"], module, Path(job["engine"]))
    return Entry("done", None, {"times": {case.name: runners.timed(runner, module, case) for case in module.cases}})


def _module(plan: Plan, job: Mapping[str, Any]) -> Module:
    return next(module for module in plan.modules if module.name == job["module"])


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


JOBS: Mapping[str, Callable[[Plan, Mapping[str, Any]], Entry]] = {
    "observe": _observe, "build": _build, "run": _run, "parity": _parity, "measure": _measure,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
