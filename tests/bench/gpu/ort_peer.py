"""Peer: ONNX Runtime through the engines that ship, on the GPU, or on the CPU to see that everything works."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msao_compile.manifest.schema import RuntimeSettings, StateSpec
from msao_compile.runtime.backends.base import EngineFile, open_decoder, open_engine
from tests.bench.gpu.asking import measure
from tests.bench.gpu.engines_peer import EnginesPeer
from tests.bench.gpu.work import COMPONENTS, Result, Work, parser, say, work_of


def main() -> None:
    """Open and measure one variant."""
    made = parser(__doc__)
    made.add_argument("--variant", required=True)
    made.add_argument("--graphs", action="store_true", help="capture decode steps as CUDA graphs")
    chosen = made.parse_args()
    work = work_of(chosen)
    variant = work.variant(chosen.variant)
    name = f"ONNX Runtime {work.device.upper()}, {variant['dialect']}" + (", CUDA graphs" if chosen.graphs else "")
    result = Result(chosen.out, peer=name, precision=variant["precision"], versions=_versions())
    settings = RuntimeSettings(threads=0, arena=True, warm_up=0, provider=work.device, cuda_graphs=chosen.graphs)
    peer = opened(variant, settings, work)
    say(f"{name} opened: {peer.decoder.session.get_providers()}")  # type: ignore[attr-defined]
    measure(peer, work, result)


def opened(variant: dict[str, Any], settings: RuntimeSettings, work: Work) -> EnginesPeer:
    """The three engines of a variant."""
    files = {}
    for name in COMPONENTS:
        states = tuple(state_of(state) for state in variant["states"]) if name == "decoder" else ()
        files[name] = EngineFile(Path(variant["graphs"][name]), variant["dialect"], settings, states)
    engines = {name: open_engine("ort", files[name]) for name in COMPONENTS[:-1]}
    return EnginesPeer(engines, open_decoder("ort", files["decoder"]), work)


def state_of(record: dict[str, Any]) -> StateSpec:
    """A state tensor as JSON tells of it."""
    return StateSpec.model_validate({**record, "shape": tuple(record["shape"])})


def _versions() -> dict[str, str]:
    found = {}
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
