"""A deployment of two tiny models that speculate, written in an instant: no checkpoint is read and nothing is built."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import tiny

from msao_compile.manifest.offload import Acceptance, Line, Primitives, Speculation
from msao_compile.runtime.session import ModelSession

NONE = Line(fixed_ms=0.0, each_ms=0.0)
SPECULATION = Speculation(
    task="words", drafter="edge", verifier="cloud", rule="gumbel", draft_tokens=4, confidence=0.3, confidence_min=0.05,
    confidence_max=0.9, acceptance=Acceptance(from_confidence=(0.0, 0.5), chance=(0.5, 0.9)),
)  # fmt: skip


def times(model: str, decode_ms: float, verify_ms: float, prefill_ms: float = 10.0) -> Primitives:
    """Times of a model whose steps take so long however many rows or tokens they have."""
    lines = {
        "prefill": prefill_ms,
        "decode": decode_ms,
        "verify": verify_ms,
    }
    found = {name: Line(fixed_ms=value, each_ms=0.0) for name, value in lines.items()}
    return Primitives(model=model, prepare=NONE, encode=NONE, **found)


def sessions(folder: Path, shaken: float = 0.12, seed: int = 0) -> dict[str, ModelSession]:
    """Drafter `edge` and verifier `cloud`."""
    return {
        "edge": tiny.session(folder / "edge", "edge", seed, shaken),
        "cloud": tiny.session(folder / "cloud", "cloud", seed),
    }


def write(
    folder: Path, shaken: float = 0.12, fallback: tuple[str, ...] = ("edge",), seed: int = 0, **changed: Any
) -> Path:
    """The deployment's folder; top-level fields of its manifest can be replaced."""
    found = {name: session.model for name, session in sessions(folder, shaken, seed).items()}
    engine = {"backend": "ort", "precision": "fp32", "dialect": "scatter", "status": "parity", "target": "here",
              "compatibility": {"target_id": "local-cpu", "platform_kind": "cpu"}}  # fmt: skip
    modules = [_module(folder, name, part) for name in found for part in ("embed_tokens", "decoder")]
    hosts = ("embed_tokens", "decoder")
    routes = [{"name": "edge", "task": "words", "model": "edge", "hosts": dict.fromkeys(hosts, "edge"), "fallback": []}]
    routes += [
        {"name": name, "task": "words", "model": "cloud", "hosts": dict.fromkeys(hosts, "cloud"),
         "fallback": list(fallback)} for name in ("cloud", "speculate")
    ]  # fmt: skip
    content = {
        "schema_version": "2.1", "name": "words", "created_by": "a test",
        "models": [_model(name, model.model_dump(mode="json")) for name, model in found.items()],
        "modules": modules, "engines": [{**engine, "module": module["id"]} for module in modules],
        "tasks": [{"name": "words", "models": ["edge", "cloud"]}], "routes": routes, "partition_points": [],
        "runtime": {"threads": 1, "arena": False, "warm_up": 0}, "evidence": {},
        "primitives": [times(name, 1.0, 1.0).model_dump(mode="json") for name in found],
        "speculation": [SPECULATION.model_dump(mode="json")],
    }  # fmt: skip
    (folder / "deployment.json").write_text(json.dumps({**content, **changed}))
    return folder


def _model(name: str, told: dict[str, Any]) -> dict[str, Any]:
    files = [{**file, "path": f"{name}/{file['path']}"} for file in told["files"]]
    return {**told, "tokenizer": f"{name}/tokenizer", "preprocessor": f"{name}/tokenizer", "files": files}


def _module(folder: Path, name: str, part: str) -> dict[str, Any]:
    path = folder / name / f"{part}.onnx"
    graph, content = onnx.load(path).graph, path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    states = [state.model_dump(mode="json") for state in tiny.STATES] if part == "decoder" else []
    reference = {"path": f"{name}/{part}.onnx", "sha256": digest, "size_bytes": len(content)}
    ends = {"inputs": [_spec(value) for value in graph.input], "outputs": [_spec(value) for value in graph.output]}
    return {
        "id": digest, "component": part, "params": 1, "weight_bytes": 1, "kv_layout": "bhsd/v1" if states else None,
        "graphs": [{"dialect": "scatter", "opset": 24, "file": reference, "data": [], **ends, "states": states}],
    }  # fmt: skip


def _spec(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    dtype = "float32" if kind.elem_type == onnx.TensorProto.FLOAT else "int64"
    return {"name": value.name, "dtype": dtype, "shape": [one.dim_param or one.dim_value for one in kind.shape.dim]}
