"""Writing a deployment folder over another: whoever looks, whenever the writer dies, sees all of one of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import manifests
import pytest

from msao_compile.manifest.schema import Deployment
from msao_compile.runtime.loader import read_manifest, verify
from msao_compile.stages import emit
from msao_compile.store.record import Blob
from msao_compile.store.store import Store

FORK = multiprocessing.get_context("fork")
CHANGES = ("os.", "open", "ctypes.dlsym")
Stocked = tuple[Deployment, Store, list[Blob]]


def stocked(root: Path, graph: bytes) -> Stocked:
    """A small deployment with this graph, its files in a store."""
    source, store = root / graph.decode(), Store(root / "store")
    content = manifests.content(source)
    content["modules"][0]["graphs"][0]["file"] = manifests.reference(source, "modules/edge/decoder.onnx", graph)
    deployment = Deployment.model_validate_json(json.dumps(content))
    return deployment, store, [store.put_file(source / path, move=False) for path in deployment.all_files()]


def whole(folder: Path) -> Deployment:
    """What the folder is, every file as its manifest says and nothing half-written beside it."""
    found = read_manifest(folder)
    verify(folder, found)
    assert {path.relative_to(folder).as_posix() for path in (folder / "modules").rglob("*.*")} <= {*found.all_files()}
    assert (folder / "notes" / "mine.txt").read_text() == "mine"
    return found


def write_and_die_at_step(folder: Path, what: Stocked, step: int, exchanges: bool) -> None:
    """Write, killed on entering the step-th call that may change something on disk."""
    left = iter(range(step))

    def hook(event: str, _: object) -> None:
        if event.startswith(CHANGES) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    if not exchanges:
        emit._exchanged = lambda one, other: False
    sys.addaudithook(hook)
    emit.write(folder, *what)
    os._exit(0)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_writer_killed_at_any_step_leaves_the_old_deployment_or_the_new_one(tmp_path: Path, exchanges: bool) -> None:
    old, new, folder = stocked(tmp_path, b"old"), stocked(tmp_path, b"new"), tmp_path / "out" / "small"
    emit.write(folder, *old)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    seen = []
    for step in range(1000):
        writer = FORK.Process(target=write_and_die_at_step, args=(folder, new, step, exchanges))
        writer.start()
        writer.join()
        if exchanges or folder.exists():
            seen.append(whole(folder).module(manifests.MODULE).graphs[0].file)
        if writer.exitcode == 0:
            break
        emit.write(folder, *old)
        assert whole(folder) == old[0]
        assert os.listdir(tmp_path / "out") == ["small"]
    assert writer.exitcode == 0 and len(seen) > 30
    assert {file.size_bytes for file in seen} == {3} and len({file.sha256 for file in seen}) == 2


def test_a_deployment_that_is_right_is_left_as_it_is(tmp_path: Path) -> None:
    what, folder = stocked(tmp_path, b"old"), tmp_path / "out" / "small"
    emit.write(folder, *what)
    before = folder.stat().st_ino
    emit.write(folder, *what)
    assert folder.stat().st_ino == before


def test_a_folder_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "small").symlink_to(tmp_path / "disk" / "small")
    for graph in (b"old", b"new"):
        what = stocked(tmp_path, graph)
        emit.write(tmp_path / "out" / "small", *what)
        verify(tmp_path / "disk" / "small", what[0])
    assert (tmp_path / "out" / "small").is_symlink()


def test_a_signature_of_other_bytes_is_removed_and_told_and_one_that_still_fits_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, old = tmp_path / "out" / "small", stocked(tmp_path, b"old")
    emit.write(folder, *old)
    signature = folder / "deployment.json.sig"
    signature.write_text("{}")
    (folder / "engines").mkdir()
    (folder / "engines" / "left").write_text("")  # so that the folder is written again
    emit.write(folder, *old)
    assert signature.exists() and not caplog.text
    emit.write(folder, *stocked(tmp_path, b"new"))
    assert not signature.exists() and "removed, because it signs the deployment.json before" in caplog.text
