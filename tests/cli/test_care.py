"""`gc`: what deployments name stays."""

from __future__ import annotations

import json
from pathlib import Path

from msao_compile.manifest.schema import MANIFEST_NAME
from msao_compile.store.key import Key
from msao_compile.store.store import Store

from .conftest import Cli


def filled(root: Path, deployment: Path) -> tuple[Store, Path, Path]:
    """A store with one object that the deployment names, and one that nobody names."""
    store = Store(root / "store")
    paths = []
    for name, data in (("kept", (deployment / "modules/edge/decoder.onnx.data").read_bytes()), ("lost", bytes(5000))):
        source = root / name
        source.write_bytes(data)
        key = Key(kind="stage", stage="export", version=1, fields={"subject": name, "module": name})
        paths.append(store.path(store.commit(key, {"graph": source}, {}).outputs["graph"]))
    return store, paths[0], paths[1]


def test_only_what_no_deployment_names_is_removed(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    store, kept, lost = filled(tmp_path, deployment)
    ran = cli("gc", "--out", deployment.parent, "--store", store.root, "--json")
    assert ran.code == 0
    assert (kept.exists(), lost.exists()) == (True, False)
    assert ran.json["deployments"] == ["pictures-and-questions"]
    assert ran.json["removed"] == 2
    assert ran.json["kept_objects"] == cli("inspect", store.root, "--json").json["objects"] == 1
    assert ran.json["freed_bytes"] >= 5000


def test_a_folder_that_a_killed_build_left_half_written_counts_for_nothing(
    cli: Cli, deployment: Path, tmp_path: Path
) -> None:
    store, kept, lost = filled(tmp_path, deployment)
    (deployment.parent / ".left.new").mkdir()
    (deployment.parent / ".left.new" / MANIFEST_NAME).write_text("{")
    ran = cli("gc", "--out", deployment.parent, "--store", store.root, "--json")
    assert (ran.code, ran.json["deployments"]) == (0, ["pictures-and-questions"])
    assert (kept.exists(), lost.exists()) == (True, False)


def test_a_wrong_out_folder_removes_nothing(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    store, kept, lost = filled(tmp_path, deployment)
    ran = cli("gc", "--out", tmp_path / "elsewhere", "--store", store.root)
    assert ran.code == 2
    assert "everything would be removed" in ran.err
    assert (kept.exists(), lost.exists()) == (True, True)


def test_a_deployment_that_cannot_be_read_removes_nothing(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    store, kept, lost = filled(tmp_path, deployment)
    manifest = json.loads((deployment / MANIFEST_NAME).read_text())
    (deployment / MANIFEST_NAME).write_text(json.dumps({**manifest, "schema_version": "9.0"}))
    assert cli("gc", "--out", deployment.parent, "--store", store.root).code == 2
    assert (kept.exists(), lost.exists()) == (True, True)


def test_a_folder_that_is_no_store_is_wrong_input(cli: Cli, tmp_path: Path) -> None:
    ran = cli("gc", "--store", tmp_path)
    assert ran.code == 2
    assert "is not a store" in ran.err
