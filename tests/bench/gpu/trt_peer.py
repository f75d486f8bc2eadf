"""Peer: TensorRT or TensorRT-RTX: engines built here by the builder that ships, run by the classes that ship."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from msao_compile.manifest.schema import FileRef, Graph, RuntimeSettings, TensorSpec
from msao_compile.recipe.schema import DecoderShapes, Shapes, VisionShapes
from msao_compile.runtime.backends.base import EngineFile
from msao_compile.stages.profiles import GROWTH, profiles
from tests.bench.gpu.asking import measure
from tests.bench.gpu.engines_peer import EnginesPeer
from tests.bench.gpu.ort_peer import state_of
from tests.bench.gpu.work import CAPACITY, COMPONENTS, Result, Work, parser, say, work_of
from tests.bench.work import IMAGE_TOKENS, PROMPT_TOKENS

NAMES = {"trt": "TensorRT", "trt_rtx": "TensorRT-RTX"}
Records = list[dict[str, Any]]


def main() -> None:
    """Build each module, open it, measure."""
    made = parser(__doc__)
    made.add_argument("--variant", required=True)
    made.add_argument("--backend", choices=tuple(NAMES), required=True)
    chosen = made.parse_args()
    work, backend = work_of(chosen), chosen.backend
    variant = work.variant(chosen.variant)
    name = f"{NAMES[backend]}, {variant['dialect']}"
    result = Result(chosen.out, peer=name, precision=variant["precision"], builds=[])
    folder = work.folder / "engines" / f"{backend}-{chosen.variant}"
    built = {component: build(component, variant, backend, folder, result, work) for component in COMPONENTS}
    if work.device == "cpu":
        return say("engines are not opened without a GPU")
    measure(opened(built, variant, backend, work, result), work, result)
    return None


def build(component: str, variant: dict[str, Any], backend: str, folder: Path, result: Result, work: Work) -> Path:
    """One engine, with what building it cost; without a GPU ahead of time for SM 8.0."""
    from msao_compile.runtime.backends import trt_build

    graph, output = Path(variant["graphs"][component]), folder / f"{component}.engine"
    ahead = [80] if work.device == "cpu" else []
    order = {**order_of(component, variant, backend, work), "compute_capabilities": ahead}
    digest = hashlib.sha256(graph.read_bytes()).hexdigest()
    facts = {"module": digest, "component": component, "precision": variant["precision"], "graph_sha256": digest,
             "dialect": variant["dialect"], "key": digest}  # fmt: skip
    say(f"building {component}")
    found = trt_build.build(graph, order, output, facts)
    result.add(builds=[*result.facts["builds"], {"component": component, **found}])
    say(f"built {component}: {found['seconds']:.1f} s, {found['plan_bytes'] / 1e6:.0f} MB")
    return output


def order_of(component: str, variant: dict[str, Any], backend: str, work: Work) -> dict[str, Any]:
    """What the engine is built from: profiles for every batch of this check."""
    most = max(work.batches)
    batch = (1, 1, most)
    shapes = Shapes(
        decoder=DecoderShapes(batch=batch, sequence=(1, PROMPT_TOKENS, PROMPT_TOKENS), kv_capacity=CAPACITY),
        vision_encoder=VisionShapes(images=batch),
    )
    tokens = IMAGE_TOKENS * -(-most // GROWTH)  # of a typical request: the largest has GROWTH times as many
    found = profiles(component, graph_of(component, variant), shapes, tokens)
    return {"backend": backend, "profiles": [one.model_dump(mode="json") for one in found], "level": "release",
            "compute_capabilities": [], "timing_cache": None}  # fmt: skip


def graph_of(component: str, variant: dict[str, Any]) -> Graph:
    """The graph as a manifest tells of it; nothing here reads its digest."""
    states = tuple(map(state_of, variant["states"])) if component == "decoder" else ()
    file = FileRef(path=f"{component}.onnx", sha256="0" * 64, size_bytes=0)
    ends = {end: specs(variant[end][component]) for end in ("inputs", "outputs")}
    return Graph(dialect=variant["dialect"], precision=variant["precision"], opset=20, file=file, data=(),
                 states=states, **ends)  # fmt: skip


def specs(records: Records) -> tuple[TensorSpec, ...]:
    """Tensors as JSON tells of them."""
    return tuple(TensorSpec.model_validate({**one, "shape": tuple(one["shape"])}) for one in records)


def opened(built: dict[str, Path], variant: dict[str, Any], backend: str, work: Work, result: Result) -> EnginesPeer:
    """The engines, loaded; how long loading took and what they hold."""
    from msao_compile.runtime.backends.trt import TrtDecoder, TrtEngine

    settings = RuntimeSettings(threads=0, arena=True, warm_up=0)
    states = tuple(map(state_of, variant["states"]))
    engines: dict[str, Any] = {}
    loads: Records = []
    for component, path in built.items():
        start = time.perf_counter()
        if component == "decoder":
            engines[component] = TrtDecoder(EngineFile(path, variant["dialect"], settings, states), backend)
        else:
            engines[component] = TrtEngine(EngineFile(path, variant["dialect"], settings), backend)
        held = engines[component]
        loads.append({"component": component, "seconds": time.perf_counter() - start,
                      "resident_bytes": held.resident_bytes, "activation_bytes": held.activation_bytes})  # fmt: skip
        result.add(loads=loads)
        say(f"loaded {component}: {loads[-1]}")
    return EnginesPeer(engines, engines["decoder"], work)


if __name__ == "__main__":
    main()
