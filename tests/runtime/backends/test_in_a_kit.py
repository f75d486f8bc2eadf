"""A kit's own phases over the engine runner, with a stand-in for driver and library: stored cases in both dialects."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import kits
import pytest
import trt_graphs as graphs
import trt_stand_in as stand_in

from msao_compile.runtime.backends import engine_file, trt
from msao_compile.runtime.kit import judge, runners
from msao_compile.runtime.kit.plan import Module, read_plan
from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.kit import archive, pack

DIALECTS = ("portable", "scatter")
HERE = {
    "backend": "trt_rtx", "library_version": "1.7.1.116", "gpu_architectures": ["sm89"], "cuda": None, "driver": None,
    "gpu_name": None, "order": {}, **engine_file.machine(),
}  # fmt: skip


def _specs(values: Any) -> list[dict[str, Any]]:
    kinds = {1: "float32", 7: "int64"}
    return [
        {"name": value.name, "dtype": kinds[value.type.tensor_type.elem_type],
         "shape": [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]}
        for value in values
    ]  # fmt: skip


def described(folder: Path, dialect: str) -> dict[str, Any]:
    """A decoder's graph in a dialect as a manifest has it."""
    import onnx

    place = folder / "modules" / "edge"
    place.mkdir(parents=True, exist_ok=True)
    path = graphs.write_decoder(place, dialect)
    graph = onnx.load(path).graph
    inputs, update = _specs(graph.input), "in_place" if dialect == "scatter" else "concat"
    states = [
        {"name": entry["name"], "output": entry["name"].replace("past_key_values", "present"), "dtype": "float32",
         "shape": entry["shape"], "update": update}
        for entry in inputs if entry["name"].startswith("past_key_values")
    ]  # fmt: skip
    return {
        "dialect": dialect, "precision": "fp32", "opset": 24 if dialect == "scatter" else 20,
        "file": kits.reference(folder, path), "data": [], "inputs": inputs, "outputs": _specs(graph.output),
        "states": states,
    }  # fmt: skip


def kit_of(folder: Path, dialect: str) -> Path:
    """The kit of one decoder whose engine is ordered in a dialect."""
    deployment = kits.write(folder / "deployment", ("decoder",), dialect=dialect)
    path = deployment / "deployment.json"
    content = json.loads(path.read_text())
    content["modules"] = [content["modules"][2] | {"graphs": [described(deployment, one) for one in DIALECTS]}]
    content["engines"][0]["order"] |= {"profiles": graphs.decoder_profiles(dialect, batch=1)}
    model = content["models"][0]
    model |= {"components": {"decoder": kits.IDS["decoder"]}, "encoders": []}
    model["decoder"] |= {"hidden_size": graphs.HIDDEN, "vocab_size": 16, "kv_capacity": graphs.CAPACITY}
    path.write_text(json.dumps(content))
    return archive.write(folder / "kit", pack.pack(deployment, read_manifest(deployment), kits.TARGET).entries)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = stand_in.Driver()
    lib = stand_in.library(driver)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(trt, "library", lambda backend: lib)


def engine_of(kit: Path, module: Module) -> Path:
    path = kit / "decoder.engine"
    dims = {"inputs": {"attention_mask": ["batch_size", "total_sequence_length"]}}
    content = stand_in.plan(kit / module.graph.path, list(module.order["profiles"]))
    engine_file.write(path, {**HERE, **graphs.facts(dialect=module.dialect), **dims}, content)
    return path


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_engine_in_each_dialect_gives_what_the_portable_graph_gave(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    kit = kit_of(tmp_path, dialect)
    monkeypatch.chdir(kit)
    [module] = read_plan(kit).modules
    assert [(case.name, case.steps) for case in module.cases] == [("prefill-opt", 6), ("prefill-min", 6)]
    runner = runners.opened("engine", module, engine_of(kit, module))
    cases = {}
    for case in module.cases:
        runners.run_case(runner, module, case, tmp_path / f"{case.name}.npz")
        cases[case.name] = (Path(case.file), tmp_path / f"{case.name}.npz")
    entry = judge.parity(cases, module.bounds)
    assert entry.verdict == "done", entry.reason
    assert {case["compared"] for case in entry.facts["cases"].values()} == {6}
    assert set(runners.timed(runner, module, module.cases[0])) == {"prefill", "step"}
