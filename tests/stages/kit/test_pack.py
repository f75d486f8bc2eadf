"""What a kit holds, and that it depends on the deployment alone."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import kits
import numpy as np
import onnxruntime as ort
import pytest

from msao_compile.errors import DamagedFile, DeploymentError, InputError, MissingTool
from msao_compile.runtime.kit.plan import check_files, read_plan
from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.kit import archive, contract, pack


def test_every_file_is_packed_once_and_is_what_the_kit_says(packed: pack.Packed, tmp_path: Path) -> None:
    counts = Counter(entry.path for entry in packed.entries)
    assert set(counts.values()) == {1}
    assert {"kit.py", "kit.json", "modules/edge/decoder.onnx", "modules/edge/decoder.onnx.data"} <= set(counts)
    folder = archive.write(tmp_path / "kit", packed.entries)
    plan = read_plan(folder)
    assert check_files(folder, plan) == packed.size_bytes - (folder / "kit.json").stat().st_size
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(counts)


@pytest.mark.parametrize("ending", [".tar.zst", ".tar.gz", ".tar"])
def test_the_same_deployment_gives_the_same_bytes(orders: Path, tmp_path: Path, ending: str) -> None:
    if ending == ".tar.zst":
        pytest.importorskip("zstandard")
    moved = Path(shutil.copytree(orders, tmp_path / "moved"))
    written = []
    for number, folder in enumerate((orders, moved)):
        entries = pack.pack(folder, read_manifest(folder), kits.TARGET).entries
        written.append(archive.write(tmp_path / f"{number}{ending}", entries).read_bytes())
    assert written[0] == written[1]


def test_an_archive_holds_names_in_order_and_neither_times_nor_owners(packed: pack.Packed, tmp_path: Path) -> None:
    path = archive.write(tmp_path / "kit.tar.gz", packed.entries)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as opened:
        members = opened.getmembers()
    names = [member.name for member in members]
    assert names == ["kit.json", *sorted(names[1:])]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}


def test_expected_outputs_are_those_of_the_graph_step_by_step(packed: pack.Packed, orders: Path) -> None:
    held = {entry.path: entry.content for entry in packed.entries}
    content = held["checks/edge/decoder/prefill-opt.npz"]
    assert isinstance(content, bytes)
    stored = np.load(io.BytesIO(content))
    options = ort.SessionOptions()
    options.use_per_session_threads = False  # the runtime made the process's pool
    session = ort.InferenceSession(orders / "modules/edge/decoder.onnx", options, providers=["CPUExecutionProvider"])
    state = {f"past_key_values.0.{kind}": np.zeros((1, 1, 0, kits.HIDDEN), np.float32) for kind in ("key", "value")}
    steps = packed.content["modules"]["edge/decoder"]["cases"][0]["steps"]
    lengths = []
    for step in range(steps):
        feed = {name.partition(".in.")[2]: stored[name] for name in stored if name.startswith(f"{step}.in.")}
        logits, key, value = session.run(None, {**feed, **state})
        np.testing.assert_allclose(stored[f"{step}.out.logits"], logits, rtol=0, atol=1e-6)
        state = {"past_key_values.0.key": key, "past_key_values.0.value": value}
        lengths.append((feed["inputs_embeds"].shape[1], feed["attention_mask"].shape[1]))
    assert lengths == [(6, 6), (1, 7), (1, 8), (1, 9), (1, 10), (1, 11)]


def test_an_encoder_has_a_case_in_the_best_and_in_the_smallest_shape(packed: pack.Packed) -> None:
    held = {entry.path: entry.content for entry in packed.entries}
    sizes = {}
    for name in ("encode-opt", "encode-min"):
        content = held[f"checks/edge/vision_encoder/{name}.npz"]
        assert isinstance(content, bytes)
        sizes[name] = np.load(io.BytesIO(content))["in.pixel_values"].shape[0]
    assert sizes == {"encode-opt": 2, "encode-min": 1}


def test_a_module_without_an_fp32_graph_has_no_cases_and_says_why(orders: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(orders, tmp_path / "copy"))
    content = json.loads((folder / "deployment.json").read_text())
    for module in content["modules"]:
        module["graphs"][0]["precision"] = "fp16"
    content["engines"] = [engine | {"precision": "fp16"} for engine in content["engines"]]
    (folder / "deployment.json").write_text(json.dumps(content))
    about = pack.pack(folder, read_manifest(folder), kits.TARGET).content["modules"]["edge/decoder"]
    assert about["cases"] == [] and "no fp32 graph" in about["left_out"]


def test_an_input_that_depends_on_a_picture_leaves_its_module_without_cases(tmp_path: Path) -> None:
    folder = kits.write(tmp_path / "deployment")
    content = json.loads((folder / "deployment.json").read_text())
    content["modules"][1]["graphs"][0]["inputs"].append(
        {"name": "cu_seqlens", "dtype": "int64", "shape": ["num_windows"]}
    )
    (folder / "deployment.json").write_text(json.dumps(content))
    about = pack.pack(folder, read_manifest(folder), kits.TARGET).content["modules"]["edge/embed_tokens"]
    assert about["cases"] == [] and "cu_seqlens holds whole numbers" in about["left_out"]


def test_what_is_ordered_does_not_change_with_what_was_proven(orders: Path) -> None:
    deployment = read_manifest(orders)
    proven = deployment.model_copy(
        update={"engines": tuple(engine.model_copy(update={"status": "built"}) for engine in deployment.engines)}
    )
    before, after = (contract.kit_id(contract.contract(one, kits.TARGET)) for one in (deployment, proven))
    assert before == after
    other = kits.engine("decoder", precision="fp16")
    assert contract.kit_id({"modules": [other]}) != contract.kit_id({"modules": [kits.engine("decoder")]})


def test_a_target_that_is_not_there_or_needs_no_kit_is_refused(orders: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such target; this deployment has l4"):
        pack.pack(orders, read_manifest(orders), "orin")
    cpu = kits.write(tmp_path / "cpu", backend="ort", order=None)
    with pytest.raises(InputError, match="needs no kit"):
        pack.pack(cpu, read_manifest(cpu), kits.TARGET)
    old = kits.write(tmp_path / "old", order=None)
    with pytest.raises(DeploymentError, match="edge/embed_tokens for l4 has no build order"):
        pack.pack(old, read_manifest(old), kits.TARGET)
    other = kits.write(tmp_path / "other", precision="fp16")
    with pytest.raises(
        DeploymentError, match=r"no graph in dialect portable and precision fp16 \(there is portable fp32"
    ):
        pack.pack(other, read_manifest(other), kits.TARGET)


def test_a_damaged_weight_is_not_packed(tmp_path: Path) -> None:
    folder = kits.write(tmp_path / "deployment")
    data = folder / "modules/edge/decoder.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedFile, match="decoder.onnx.data"):
        pack.pack(folder, read_manifest(folder), kits.TARGET)


def test_endings_that_cannot_be_written_are_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"kits are written as .tar.zst, .tar.gz, .tar or into a folder"):
        archive.check_ending(tmp_path / "kit.zip")
    (tmp_path / "kit").mkdir()
    with pytest.raises(InputError, match="exists already"):
        archive.check_ending(tmp_path / "kit")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(MissingTool, match=r"pip install 'msao-compile\[kit\]'"):
        archive.check_ending(tmp_path / "kit.tar.zst")
