"""Encoders whose inputs depend on a picture are held against their graph on one."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kits
import numpy as np
import onnxruntime as ort

from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.kit import pack

PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
    "min_pixels": 64, "max_pixels": 48 * 64,
}  # fmt: skip


def ordered(source: Path, folder: Path, most: int) -> Path:
    """A copy of a deployment in which an L4 builds the encoder of pictures; `most` is the largest of what varies."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "deployment.json").read_text())
    module = next(one for one in content["modules"] if one["component"] == "vision_encoder")
    graph = next(one for one in module["graphs"] if one["dialect"] == "portable")
    inputs = []
    for tensor in graph["inputs"]:
        if any(isinstance(size, str) for size in tensor["shape"]):
            limits = {
                name: [size if isinstance(size, int) else length for size in tensor["shape"]]
                for name, length in (("min", 1), ("opt", 4), ("max", most))
            }
            inputs.append({"name": tensor["name"], **limits})
    engine: dict[str, Any] = kits.engine("vision_encoder", module=module["id"])
    engine["order"]["profiles"] = [{"name": "encode", "inputs": inputs}]
    content["engines"] = [engine]
    path = folder / "preprocessor" / "edge" / "preprocessor_config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(PROCESSOR))
    content["models"][0]["files"].append(kits.reference(folder, path))
    (folder / "deployment.json").write_text(json.dumps(content))
    return folder


def test_a_picture_stands_where_numbers_alone_cannot(built: Callable[[str], Path], tmp_path: Path) -> None:
    folder = ordered(built("qwen2_5_vl"), tmp_path / "copy", most=1000)
    packed = pack.pack(folder, read_manifest(folder), kits.TARGET)
    [about] = packed.content["modules"].values()
    assert [case["name"] for case in about["cases"]] == ["picture"], about["left_out"]
    held = {entry.path: entry.content for entry in packed.entries}[about["cases"][0]["file"]]
    assert isinstance(held, bytes)
    stored = np.load(io.BytesIO(held))
    options = ort.SessionOptions()
    options.use_per_session_threads = False  # the runtime made the process's pool
    path = next(entry.content for entry in packed.entries if entry.path.endswith("vision_encoder.onnx"))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name.removeprefix("in."): stored[name] for name in stored if name.startswith("in.")}
    [features] = session.run(["image_features"], feed)
    np.testing.assert_allclose(stored["out.image_features"], features, rtol=0, atol=1e-5)


def test_where_no_picture_fits_the_reason_is_told(built: Callable[[str], Path], tmp_path: Path) -> None:
    folder = ordered(built("qwen2_5_vl"), tmp_path / "copy", most=5)
    [about] = pack.pack(folder, read_manifest(folder), kits.TARGET).content["modules"].values()
    assert about["cases"] == []
    assert "whole numbers" in about["left_out"] and "gives shapes that its engine is built for" in about["left_out"]
