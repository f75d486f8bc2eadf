"""A small deployment folder with every section, to damage and to read: no engine library ever opens it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MODULE = "a" * 64
OTHER = "b" * 64


def reference(folder: Path, path: str, content: bytes) -> dict[str, Any]:
    """Write a file and say what the manifest says of it."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    return {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def content(folder: Path) -> dict[str, Any]:
    """The manifest of the folder, whose files are written."""
    past, kinds = ["batch_size", 1, "past_sequence_length", 4], ("key", "value")
    taken = {"inputs_embeds": ["batch_size", 8], "position_ids": ["batch_size", 2],
             **{f"past_key_values.0.{kind}": past for kind in kinds}}  # fmt: skip
    given = {"logits": ["batch_size", 16], **{f"present.0.{kind}": past for kind in kinds}}
    ends = {
        side: [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]
        for side, shapes in (("inputs", taken), ("outputs", given))
    }
    graph = {
        "dialect": "fused", "opset": 23, "file": reference(folder, "modules/edge/decoder.onnx", b"graph"),
        "data": [reference(folder, "modules/edge/decoder.onnx.data", bytes(64))], **ends,
        "states": [
            {"name": f"past_key_values.0.{kind}", "output": f"present.0.{kind}", "dtype": "float32",
             "shape": past, "update": "in_place"} for kind in kinds
        ],
    }  # fmt: skip
    facts = {
        "hidden_size": 8, "vocab_size": 16, "kv_capacity": 32, "tokens": "input_ids", "position": "rope", "facts": {},
    }  # fmt: skip
    return {
        "schema_version": "2.1", "name": "small", "created_by": "a test",
        "models": [{
            "name": "edge", "role": "draft", "family": "llava", "components": {"decoder": MODULE}, "decoder": facts,
            "encoders": [], "tokenizer": "tokenizer/edge",
            "preprocessor": "preprocessor/edge", "files": [reference(folder, "tokenizer/edge/tokenizer.json", b"{}")],
        }],
        "modules": [{"id": MODULE, "component": "decoder", "params": 16, "weight_bytes": 64, "kv_layout": "bhsd/v1",
                     "graphs": [graph]}],
        "engines": [{"module": MODULE, "target": "edge", "backend": "ort", "precision": "fp32", "dialect": "fused",
                     "status": "parity", "compatibility": {"target_id": "local-cpu", "platform_kind": "cpu"}}],
        "tasks": [{"name": "vqa", "models": ["edge"]}],
        "routes": [{"name": "edge", "task": "vqa", "model": "edge", "hosts": {"decoder": "edge"}, "fallback": []}],
        "partition_points": [],
        "runtime": {"threads": 1, "arena": True, "warm_up": 0},
        "evidence": {"parity": reference(folder, "evidence/parity.json", b'{"rows": []}')},
    }  # fmt: skip


def write(folder: Path, **changed: Any) -> Path:
    """The folder with its deployment.json, top-level fields replaced."""
    (folder / "deployment.json").write_text(json.dumps({**content(folder), **changed}))
    return folder
