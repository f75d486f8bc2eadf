"""Makes the standard model's graphs: the build's own, in half precision, and with state that is written in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msao_compile.graph.passes.scatter import scatter_state
from msao_compile.graph.precision import weights
from msao_compile.graph.precision.convert import Conversion, convert
from msao_compile.manifest.schema import GROWS
from tests.bench.gpu.asking import FAULTS
from tests.bench.gpu.work import CAPACITY, COMPONENTS, Result, Work, parser, say, work_of

Variant = dict[str, Any]


def make(work: Work, result: Result) -> None:
    """Write every variant that can be made, and what became of the others."""
    found = {"portable-fp32": portable(work.layout.portable_deployment)}
    makers: dict[str, Callable[[], Variant]] = {
        "portable-fp16": lambda: half(found["portable-fp32"], work.folder / "graphs" / "portable-fp16"),
        "scatter-fp32": lambda: scatter(found["portable-fp32"], work.folder / "graphs" / "scatter-fp32"),
        "scatter-fp16": lambda: half(found["scatter-fp32"], work.folder / "graphs" / "scatter-fp16"),
    }
    missing: dict[str, str] = {}
    for name, maker in makers.items():
        try:
            found[name] = maker()
            say(f"{name} made")
        except (*FAULTS, KeyError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
            say(f"{name} is missing: {missing[name]}")
        work.variants.write_text(json.dumps(found, indent=1))
        result.add(made=sorted(found), missing=missing)


def portable(deployment: Path) -> Variant:
    """The graphs of the build, as its manifest tells of them."""
    manifest = json.loads((deployment / "deployment.json").read_text())
    graphs = {module["component"]: module["graphs"][0] for module in manifest["modules"]}
    return {
        "dialect": "portable",
        "precision": "fp32",
        "graphs": {name: str(deployment / graphs[name]["file"]["path"]) for name in COMPONENTS},
        "inputs": {name: graphs[name]["inputs"] for name in COMPONENTS},
        "outputs": {name: graphs[name]["outputs"] for name in COMPONENTS},
        "states": graphs["decoder"]["states"],
    }


def half(source: Variant, folder: Path) -> Variant:
    """The same graphs in fp16, state too."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {**source, "precision": "fp16", "graphs": {}, "inputs": {}, "outputs": {}}
    for name in COMPONENTS:
        states = source["states"] if name == "decoder" else []
        ends = tuple(end for state in states for end in (state["name"], state["output"]))
        output = folder / f"{name}.onnx"
        facts = convert(Path(source["graphs"][name]), output, Conversion("fp16", source["dialect"], states=ends))
        found["graphs"][name] = str(output)
        found["inputs"][name], found["outputs"][name] = facts["inputs"], facts["outputs"]
    types = {spec["name"]: spec["dtype"] for spec in found["inputs"]["decoder"]}
    found["states"] = [{**state, "dtype": types[state["name"]]} for state in source["states"]]
    return found


def scatter(source: Variant, folder: Path) -> Variant:
    """The same graphs with a decoder that writes one buffer in place.

    Raises:
        ValueError: the pass leaves it as it is; says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = weights.opened(Path(source["graphs"]["decoder"]))
    states, growing = scatter_state(model, source["states"], CAPACITY)
    if growing is not None:
        raise ValueError(growing)
    ends = {str(value.name): value for value in (*model.graph.inputs, *model.graph.outputs)}
    for state in states:
        ends[state["output"]].shape = ends[state["name"]].shape
    weights.write(model, folder / "decoder.onnx")
    inputs = [_spec(value) for value in model.graph.inputs]
    return {
        **source,
        "dialect": "scatter",
        "graphs": {**source["graphs"], "decoder": str(folder / "decoder.onnx")},
        "inputs": {**source["inputs"], "decoder": inputs},
        "outputs": {**source["outputs"], "decoder": [_spec(value) for value in model.graph.outputs]},
        "states": states,
        "grows": GROWS in str(states),
    }


def _spec(value: Any) -> dict[str, Any]:
    from msao_compile.graph.ends import spec

    found: dict[str, Any] = spec(value)
    return found


if __name__ == "__main__":
    chosen = parser(__doc__).parse_args()
    make(work_of(chosen), Result(chosen.out))
