"""`inspect` and `schema`."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import kits
import pytest

from msao_compile.runtime.backends import engine_file
from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.kit import contract
from msao_compile.store.key import Key
from msao_compile.store.record import Record
from msao_compile.store.store import Store

from .conftest import Cli


def test_every_digest_of_a_deployment_is_verified(cli: Cli, deployment: Path) -> None:
    ran = cli("inspect", deployment)
    assert ran.code == 0
    assert re.fullmatch(r"20 files, 50\.\d kB: every digest is as recorded\n", ran.err)
    assert "vision_encoder  edge, cloud" in ran.out


def test_a_changed_byte_is_found_and_exits_2(cli: Cli, deployment: Path) -> None:
    damaged = deployment / "modules/edge/decoder.onnx.data"
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    ran = cli("inspect", deployment, "--json")
    assert (ran.code, ran.json["error"]["class"]) == (2, "DamagedFile")
    assert [file["path"] for file in ran.json["files"] if not file["intact"]] == ["modules/edge/decoder.onnx.data"]
    assert "decoder.onnx.data" in ran.err


def test_all_damage_is_counted_in_the_one_sentence(cli: Cli, deployment: Path) -> None:
    for name in ("modules/edge/decoder.onnx.data", "tokenizer/edge/tokenizer.json"):
        (deployment / name).unlink()
    ran = cli("inspect", deployment)
    assert "(1 more file damaged too)" in ran.err
    assert ran.out.count("DAMAGED") == 2


def test_a_checkpoint_is_told_by_its_tensors(cli: Cli, tmp_path: Path) -> None:
    header = json.dumps({"model.vision.w": {"dtype": "F16", "shape": [3, 4], "data_offsets": [0, 24]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    (tmp_path / "config.json").write_text('{"model_type": "idefics3", "architectures": ["X"]}')
    facts = cli("inspect", tmp_path, "--json").json
    assert (facts["kind"], facts["model_type"], facts["params"], facts["size_bytes"]) == (
        "checkpoint",
        "idefics3",
        12,
        24,
    )
    assert facts["groups"] == [{"name": "model.vision", "tensors": 1, "params": 12, "bytes": 24}]


def test_a_recipe_is_read_and_a_faulty_one_refused(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    (tmp_path / "c").mkdir()
    text = (
        'recipe = 1\nname = "x"\n[models.edge]\ncheckpoint = "c"\nrole = "draft"\n'
        '[tasks.vqa]\nmodels = ["edge"]\n[targets.here]\ndevice = "local-cpu"\nprecision = "fp32"\n'
    )
    recipe.write_text(text)
    ran = cli("inspect", recipe)
    assert (ran.code, ran.out.splitlines()[0]) == (0, "recipe x")
    recipe.write_text(text + "colour = 1\n")
    assert cli("inspect", recipe, "--json").json["error"]["class"] == "RecipeError"


def test_a_store_is_told_by_its_records(cli: Cli, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    source = tmp_path / "weights"
    source.write_bytes(bytes(1000))
    store.commit(Key(kind="stage", stage="export", version=1, fields={}), {"graph": source}, {})
    alone = tmp_path / "alone"
    alone.write_bytes(bytes(300))
    store.put_file(alone)
    facts = cli("inspect", tmp_path / "store", "--json").json
    assert facts["records"] == [{"kind": "stage", "records": 1, "objects": 1, "bytes": 1000}]
    assert (facts["objects"], facts["unnamed_objects"], facts["missing_objects"]) == (2, 1, 0)
    shown = cli("inspect", tmp_path / "store").out
    assert shown.startswith("store of 2 objects, 1.30 kB")
    assert "checkpoints' files and evidence                 1    300 B" in shown
    assert cli("inspect", tmp_path / "store").err.endswith("--out DIR, where DIR holds every deployment to keep\n")


def test_an_object_that_two_kinds_of_stages_made_is_counted_once(cli: Cli, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for kind in ("load", "export"):
        (tmp_path / kind).write_bytes(bytes(1000))
        store.commit(Key(kind=kind, stage=kind, version=1, fields={}), {"x": tmp_path / kind}, {})
    facts = cli("inspect", tmp_path / "store", "--json").json
    assert facts["objects"] == sum(row["objects"] for row in facts["records"]) == 1


def test_a_byte_that_changed_in_a_store_is_named_and_stays_until_gc_removes_it(
    cli: Cli, deployment: Path, tmp_path: Path
) -> None:
    store, key = Store(tmp_path / "s 1 é"), Key(kind="stage", stage="export", version=1, fields={"subject": "edge/x"})
    (tmp_path / "weights").write_bytes(bytes(1000))
    held = store.path(store.commit(key, {"graph": tmp_path / "weights"}, {}).outputs["graph"])
    times = held.stat()
    held.chmod(0o644)
    held.write_bytes(b"X" + bytes(999))
    os.utime(held, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk leaves it
    assert isinstance(store.peek(key, "digest"), Record)
    ran = cli("inspect", store.root, "--json")
    assert (ran.code, ran.json["error"]["class"]) == (2, "DamagedFile")
    assert [damage["sha256"] for damage in ran.json["damaged"]] == [held.name]
    assert f"output 'graph' of stage edge/x, object {held.name} has changed" in ran.err
    assert f"remove it with msao-compile gc --store '{store.root}' --out DIR, where" in ran.err
    assert isinstance(store.peek(key, "digest"), Record)
    assert cli("gc", "--store", store.root, "--out", deployment.parent).code == 0
    assert not isinstance(store.peek(key), Record)
    assert cli("inspect", store.root).code == 0


def test_an_onnx_file_is_told_with_its_weights(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(bytes(10))
    (tmp_path / "decoder.onnx.data").write_bytes(bytes(2000))
    facts = cli("inspect", tmp_path / "decoder.onnx", "--json").json
    assert facts["files"] == {"decoder.onnx": 10, "decoder.onnx.data": 2000}


@pytest.mark.parametrize("name", ["gone", "."])
def test_what_is_not_known_is_wrong_input_and_the_known_kinds_are_named(cli: Cli, tmp_path: Path, name: str) -> None:
    ran = cli("inspect", tmp_path / name)
    assert ran.code == 2
    assert all(kind in ran.err for kind in ("deployment", "recipe", "checkpoint", "store", ".onnx"))


@pytest.mark.parametrize(("name", "field"), [("recipe", "targets"), ("deployment", "partition_points")])
def test_a_schema_is_json_with_or_without_the_option(cli: Cli, name: str, field: str) -> None:
    ran = cli("schema", name)
    assert field in ran.json["properties"]
    assert ran.json == cli("schema", name, "--json").json


def engine_of(folder: Path, content: bytes | None = None, **changed: object) -> Path:
    """A deployment with one engine file, whose header has the manifest's facts but for those that are changed."""
    written = kits.write(folder, ("decoder",))
    path, manifest = written / "engines/decoder.engine", read_manifest(written)
    facts = contract.header_facts(manifest, manifest.engines[0])
    here = {"library_version": "1.7", "cuda": None, "driver": None, "gpu_name": None, "key": "k"}
    engine_file.write(path, {**engine_file.machine(), **here, **facts, **changed}, b"ftrt and what follows")
    if content is not None:
        path.write_bytes(content)
    said = json.loads((written / "deployment.json").read_text())
    said["engines"][0] |= {"file": kits.reference(written, path), "status": "built"}
    (written / "deployment.json").write_text(json.dumps(said))
    return written


def test_an_engine_alone_says_what_it_is_for_and_is_read_through(cli: Cli, tmp_path: Path) -> None:
    path = engine_of(tmp_path / "right") / "engines/decoder.engine"
    ran = cli("inspect", path)
    assert ran.code == 0 and "engine of decoder for sm89" in ran.out and "as written" in ran.err
    assert "library version" in ran.out and "prefill" in ran.out
    facts = cli("inspect", path, "--json").json
    assert (facts["kind"], facts["intact"], facts["header"]["precision"]) == ("engine", True, "fp32")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    ran = cli("inspect", path, "--json")
    assert (ran.code, ran.json["intact"], ran.json["header"]["component"]) == (2, False, "decoder")
    assert "the plan's SHA-256 is" in ran.err
    for content, said in ((b"ftrt and more", "is a bare plan of TensorRT"), (b"text", "is not an engine")):
        path.write_bytes(content)
        ran = cli("inspect", path)
        assert ran.code == 2 and said in ran.err


def test_an_engine_is_the_one_that_the_manifest_says_or_is_named(cli: Cli, tmp_path: Path) -> None:
    assert cli("inspect", engine_of(tmp_path / "right")).code == 0
    ran = cli("inspect", engine_of(tmp_path / "other", module="e" * 64))
    assert ran.code == 2 and f"says module {'e' * 64} where the manifest has {'c' * 64}" in ran.err
    ran = cli("inspect", engine_of(tmp_path / "graph", graph_sha256="e" * 64), "--json")
    assert [file["path"] for file in ran.json["files"] if not file["intact"]] == ["engines/decoder.engine"]
    ran = cli("inspect", engine_of(tmp_path / "bare", b"vtrt"))
    assert ran.code == 2 and "is a bare plan of TensorRT-RTX" in ran.err
    whole = (tmp_path / "right/engines/decoder.engine").read_bytes()
    ran = cli("inspect", engine_of(tmp_path / "plan", whole[:-1] + b"?"))
    assert ran.code == 2 and "the plan's SHA-256 is" in ran.err
