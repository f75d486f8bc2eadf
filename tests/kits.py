"""A small deployment that a kit can be made of: three real graphs, and an L4 that builds their engines."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, VOCABULARY, CAPACITY = 8, 24, 32
IDS = {"vision_encoder": "a" * 64, "embed_tokens": "b" * 64, "decoder": "c" * 64}
TARGET = "l4"
KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
STATE = ["batch_size", 1, "past_sequence_length", HIDDEN]
ENDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vision_encoder": (
        {"pixel_values": ("float32", ["num_images", 3, 4, 4])}, {"image_features": ("float32", ["num_images", HIDDEN])}
    ),
    "embed_tokens": (
        {"input_ids": ("int64", ["batch_size", "sequence_length"])},
        {"inputs_embeds": ("float32", ["batch_size", "sequence_length", HIDDEN])},
    ),
    "decoder": (
        {"inputs_embeds": ("float32", ["batch_size", "sequence_length", HIDDEN]),
         "attention_mask": ("int64", ["batch_size", "total_sequence_length"]),
         "logits_positions": ("int64", ["num_logits"]),
         "past_key_values.0.key": ("float32", STATE), "past_key_values.0.value": ("float32", STATE)},
        {"logits": ("float32", ["batch_size", "num_logits", VOCABULARY]),
         "present.0.key": ("float32", ["batch_size", 1, "total_sequence_length", HIDDEN]),
         "present.0.value": ("float32", ["batch_size", 1, "total_sequence_length", HIDDEN])},
    ),
}  # fmt: skip
LIMITS = ("min", "opt", "max")
PROFILES: dict[str, list[dict[str, Any]]] = {
    "vision_encoder": [{"name": "encode", "inputs": [
        {"name": "pixel_values", "min": [1, 3, 4, 4], "opt": [2, 3, 4, 4], "max": [4, 3, 4, 4]}]}],
    "embed_tokens": [{"name": "encode", "inputs": [
        {"name": "input_ids", "min": [1, 1], "opt": [1, 6], "max": [1, 32]}]}],
    "decoder": [
        {"name": name, "inputs": [
            {"name": "inputs_embeds", **{key: [1, size, HIDDEN] for key, size in zip(LIMITS, new)}},
            {"name": "attention_mask", **{key: [1, size + past] for key, size, past in zip(LIMITS, new, held)}},
            {"name": "logits_positions", "min": [1], "opt": [1], "max": [1]},
            *({"name": f"past_key_values.0.{kind}",
               **{key: [1, 1, past, HIDDEN] for key, past in zip(LIMITS, held)}} for kind in ("key", "value")),
        ]}
        for name, new, held in (("prefill", (1, 6, 16), (0, 0, 0)), ("decode", (1, 1, 1), (1, 8, 31)))
    ],
}  # fmt: skip


def _nodes(component: str) -> tuple[list[Any], list[Any]]:
    chance = np.random.default_rng(len(component))

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((chance.standard_normal(shape) / 2).astype(np.float32), name)

    def whole(name: str, *values: int) -> Any:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    node = helper.make_node
    if component == "vision_encoder":
        return [
            node("Flatten", ["pixel_values"], ["flat"]), node("MatMul", ["flat", "w"], ["x"]),
            node("Tanh", ["x"], ["image_features"]),
        ], [weight("w", 48, HIDDEN)]  # fmt: skip
    if component == "embed_tokens":
        return [node("Gather", ["table", "input_ids"], ["inputs_embeds"])], [weight("table", VOCABULARY, HIDDEN)]
    nodes = []
    for kind in ("key", "value"):
        nodes += [
            node("MatMul", ["inputs_embeds", f"w_{kind}"], [f"{kind}_new"]),
            node("Unsqueeze", [f"{kind}_new", "one"], [f"{kind}_head"]),
            node("Concat", [f"past_key_values.0.{kind}", f"{kind}_head"], [f"present.0.{kind}"], axis=2),
        ]
    nodes += [
        node("Unsqueeze", ["inputs_embeds", "one"], ["query"]),
        node("Transpose", ["present.0.key"], ["keys"], perm=[0, 1, 3, 2]),
        node("MatMul", ["query", "keys"], ["scores"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Sub", ["mask", "unit"], ["less"]), node("Mul", ["less", "large"], ["bias2"]),
        node("Unsqueeze", ["bias2", "one_two"], ["bias"]), node("Add", ["scores", "bias"], ["masked"]),
        node("Softmax", ["masked"], ["shares"], axis=-1),
        node("MatMul", ["shares", "present.0.value"], ["mixed4"]), node("Squeeze", ["mixed4", "one"], ["mixed"]),
        node("Add", ["mixed", "inputs_embeds"], ["hidden"]),
        node("Gather", ["hidden", "logits_positions"], ["rows"], axis=1),
        node("MatMul", ["rows", "head"], ["logits"]),
    ]  # fmt: skip
    scalars = [numpy_helper.from_array(np.float32(value), name) for name, value in (("unit", 1), ("large", 1e4))]
    return nodes, [
        weight("w_key", HIDDEN, HIDDEN), weight("w_value", HIDDEN, HIDDEN), weight("head", HIDDEN, VOCABULARY),
        whole("one", 1), whole("one_two", 1, 2), *scalars,
    ]  # fmt: skip


def _graph(folder: Path, component: str) -> dict[str, Any]:
    """Write a graph with its weights beside it; what the manifest says of it."""
    path = folder / "modules" / "edge" / f"{component}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes, weights = _nodes(component)
    sides = [[helper.make_tensor_value_info(name, KINDS[kind], shape) for name, (kind, shape) in side.items()]
             for side in ENDS[component]]  # fmt: skip
    model = helper.make_model(
        helper.make_graph(nodes, component, *sides, weights), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    onnx.save_model(model, path, save_as_external_data=True, location=f"{component}.onnx.data", size_threshold=64)
    specs = [[{"name": name, "dtype": kind, "shape": shape} for name, (kind, shape) in side.items()]
             for side in ENDS[component]]  # fmt: skip
    states = [{"name": f"past_key_values.0.{kind}", "output": f"present.0.{kind}", "dtype": "float32", "shape": STATE,
               "update": "concat"} for kind in ("key", "value")]  # fmt: skip
    return {
        "dialect": "portable", "precision": "fp32", "opset": 20, "file": reference(folder, path),
        "data": [reference(folder, path.with_name(path.name + ".data"))], "inputs": specs[0], "outputs": specs[1],
        "states": states if component == "decoder" else [],
    }  # fmt: skip


def reference(folder: Path, path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    content = path.read_bytes()
    return {"path": path.relative_to(folder).as_posix(), "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content)}  # fmt: skip


def engine(component: str, **changed: Any) -> dict[str, Any]:
    """The entry of an engine that an L4's TensorRT-RTX builds ahead of time."""
    order = {"backend": "trt_rtx", "profiles": PROFILES[component], "level": "draft", "compute_capabilities": [89]}
    compatibility = {"target_id": "nvidia-l4", "platform_kind": "discrete", "architecture": "x86_64",
                     "gpu_architecture": "sm89"}  # fmt: skip
    return {
        "module": IDS[component], "target": TARGET, "backend": "trt_rtx", "precision": "fp32", "dialect": "portable",
        "order": order, "status": "deferred", "reason": "the device builds it", "compatibility": compatibility,
        **changed,
    }  # fmt: skip


def write(folder: Path, components: Sequence[str] = ("embed_tokens", "decoder"), **changed: Any) -> Path:
    """A deployment with engines of these components for an L4; fields of every engine replaced by `changed`."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {component: _graph(folder, component) for component in IDS}
    (folder / "tokenizer").mkdir(exist_ok=True)
    facts = {
        "hidden_size": HIDDEN,
        "vocab_size": VOCABULARY,
        "kv_capacity": CAPACITY,
        "tokens": "input_ids",
        "facts": {},
    }
    content = {
        "schema_version": "2.1", "name": "small", "created_by": "a test",
        "models": [{
            "name": "edge", "role": "draft", "family": "llava", "components": IDS, "decoder": facts,
            "encoders": [
                {"component": "vision_encoder", "modality": "image", "inputs": ["pixel_values"], "each": False}],
            "tokenizer": "tokenizer", "preprocessor": "tokenizer", "files": [],
        }],
        "modules": [{"id": IDS[name], "component": name, "params": 16, "weight_bytes": 64, "graphs": [graph]}
                    for name, graph in graphs.items()],
        "engines": [engine(component, **changed) for component in components],
        "tasks": [], "routes": [], "partition_points": [], "runtime": {"threads": 1, "arena": True, "warm_up": 0},
        "evidence": {},
    }  # fmt: skip
    (folder / "deployment.json").write_text(json.dumps(content))
    return folder


def run(kit: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a kit's own entry, as a device would: nothing of this repository is on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", str(kit / "kit.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=300, **more)


def profiles_of(graph: Mapping[str, Any], capacity: int, prompt: int = 16) -> list[dict[str, Any]]:
    """Profiles that fit a graph by the names of what varies in it: one of an encoder, two of a decoder."""
    runs = {"prefill": ((1, prompt, capacity), (0, 0, 0)), "decode": ((1, 1, 1), (1, prompt, capacity - 1))}
    if not graph["states"]:
        runs = {"encode": ((1, prompt, capacity), (0, 0, 0))}
    found = []
    for name, (new, held) in runs.items():
        inputs = []
        for tensor in graph["inputs"]:
            if any(isinstance(size, str) for size in tensor["shape"]):
                limits = {
                    limit: [_size(size, count, past, which) for size in tensor["shape"]]
                    for which, (limit, count, past) in enumerate(zip(LIMITS, new, held))
                }
                inputs.append({"name": tensor["name"], **limits})
        found.append({"name": name, "inputs": inputs})
    return found


def _size(size: int | str, new: int, past: int, which: int) -> int:
    known = {"batch_size": 1, "sequence_length": new, "past_sequence_length": past, "total_sequence_length": new + past,
             "num_logits": 1}  # fmt: skip
    if isinstance(size, int):
        return size
    factor, star, name = size.rpartition("*")
    return known.get(name, (1, 1, 2)[which]) * (int(factor) if star else 1)
