"""Whether an engine of TensorRT-RTX that was built ahead of time for another GPU, or for none, runs on this card.

`make` builds the vision encoder's plan where no GPU is seen (CUDA_VISIBLE_DEVICES is empty), for an SM or with no
target set. `load` opens it here through the runtime's own class, past the header that would refuse it, and runs it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.manifest.schema import RuntimeSettings
from msao_compile.runtime.backends import cuda, engine_file, trt_build, trt_library
from msao_compile.runtime.backends.base import EngineFile
from tests.bench.gpu.asking import likeness
from tests.bench.gpu.trt_peer import order_of
from tests.bench.gpu.work import Result, Work, parser, say, work_of

COMPONENT, BACKEND = "vision_encoder", "trt_rtx"


def main() -> None:
    """Make or load one plan."""
    made = parser(__doc__)
    made.add_argument("what", choices=("make", "load"))
    made.add_argument("--capability", type=int, default=0, help="SM to build for; 0 sets no target")
    made.add_argument("--variant", default="portable-fp16")
    chosen = made.parse_args()
    work = work_of(chosen)
    variant = work.variant(chosen.variant)
    plan = work.folder / "engines" / f"ahead-{chosen.capability or 'no-target'}.plan"
    result = Result(chosen.out, capability=chosen.capability, plan=plan.name)
    if chosen.what == "make":
        make(work, variant, chosen.capability, plan, result)
    elif work.device == "cpu":
        say("plans are not loaded without a GPU")
    else:
        load(work, variant, plan, result)


def make(work: Work, variant: dict[str, Any], capability: int, plan: Path, result: Result) -> None:
    """Build without a GPU.

    Raises:
        RuntimeError: the library gives nothing; with its reason.
    """
    lib, messages = trt_library.library(BACKEND), trt_library.Messages()
    result.add(library_version=lib.__version__, gpu_seen=not isinstance(cuda.probe(), str))
    start = time.perf_counter()
    builder, network, parsing = trt_library.open_parser(lib, messages)
    if not parsing.parse_from_file(variant["graphs"][COMPONENT]):
        raise RuntimeError(f"the parser refuses the graph: {messages.reason()}")
    config = builder.create_builder_config()
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(lib.ComputeCapability, f"SM{capability}"), 0)
    for profile in order_of(COMPONENT, variant, BACKEND, work)["profiles"]:
        trt_build._add_profile(builder, network, config, profile)
    built = builder.build_serialized_network(network, config)
    result.add(warnings=list(messages.warnings)[-8:], faults=list(messages.faults)[-8:])
    if built is None:
        raise RuntimeError(f"the builder gives nothing: {messages.reason()}")
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(memoryview(built))
    result.add(seconds=time.perf_counter() - start, plan_bytes=built.nbytes)
    say(f"made {plan.name}: {built.nbytes / 1e6:.0f} MB in {time.perf_counter() - start:.1f} s")


def load(work: Work, variant: dict[str, Any], plan: Path, result: Result) -> None:
    """Say in our header that the plan is for this card, so that the library itself decides; run it, compare it.

    Raises:
        RuntimeError: there is no GPU.
    """
    from msao_compile.runtime.backends.trt import TrtEngine

    driver = cuda.probe()
    if isinstance(driver, str):
        raise RuntimeError(driver)
    lib = trt_library.library(BACKEND)
    engine = plan.with_suffix(".engine")
    rest = dict.fromkeys(engine_file.FACTS, "")
    facts = {**rest, **engine_file.machine(), **driver.device.facts(), "backend": BACKEND,
             "library_version": lib.__version__, "precision": variant["precision"], "inputs": {}}  # fmt: skip
    engine_file.write(engine, facts, plan.read_bytes())
    result.add(library_version=lib.__version__, gpu=driver.device.name, sm=driver.device.sm)
    start = time.perf_counter()
    opened = TrtEngine(
        EngineFile(engine, variant["dialect"], RuntimeSettings(threads=0, arena=True, warm_up=0)), BACKEND
    )
    result.add(loaded=True, load_seconds=time.perf_counter() - start)
    say(f"{plan.name} loaded")
    pixels = np.load(work.layout.inputs)["pixel_values"]
    mask = np.ones((*pixels.shape[:2], *pixels.shape[3:]), bool)
    start = time.perf_counter()
    features = opened.run({"pixel_values": pixels, "pixel_attention_mask": mask})["image_features"]
    result.add(ran=True, run_seconds=time.perf_counter() - start, finite=bool(np.isfinite(features).all()))
    if work.features.is_file():
        result.add(likeness=likeness(features, np.load(work.features)["image_features"]))
    say(f"{plan.name} ran: {result.facts}")


if __name__ == "__main__":
    main()
