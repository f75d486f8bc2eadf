"""A deployment folder that is not whole is refused: in Python by the error, on the command line by exit code 2."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import manifests
import pytest

from msao_compile.cli.app import main
from msao_compile.errors import DamagedFile, DeploymentError
from msao_compile.manifest.schema import SCHEMA_MAJOR, SCHEMA_MINOR
from msao_compile.manifest.signature import make_key, sign
from msao_compile.runtime import load
from msao_compile.runtime.loader import locate, read_manifest, verify

DATA = "modules/edge/decoder.onnx.data"


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "deployment.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def data_path(path: str) -> Callable[[Path], None]:
    def change(content: dict) -> None:
        content["modules"][0]["graphs"][0]["data"][0]["path"] = path

    return lambda folder: edit(folder, change)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def escape(folder: Path) -> None:
    outside = folder.parent / "outside.data"
    shutil.copy(folder / DATA, outside)
    (folder / DATA).unlink()
    (folder / DATA).symlink_to(outside)


def escape_by_folder(folder: Path) -> None:
    shutil.move(folder / "modules", folder.parent / "elsewhere")
    (folder / "modules").symlink_to(folder.parent / "elsewhere")


FAULTS: dict[str, tuple[Callable[[Path], None], type[DeploymentError], str]] = {
    "no manifest": (
        lambda folder: (folder / "deployment.json").unlink(),
        DeploymentError,
        "no deployment.json; point at",
    ),
    "not JSON": (lambda folder: (folder / "deployment.json").write_text("{"), DeploymentError, "not valid JSON"),
    "deeply nested": (
        lambda folder: (folder / "deployment.json").write_text("[" * 200_000),
        DeploymentError,
        "not valid JSON (maximum recursion depth",
    ),
    "not UTF-8": (
        lambda folder: (folder / "deployment.json").write_bytes(b"\xff\xfe"),
        DeploymentError,
        "not valid JSON",
    ),
    "a list": (
        lambda folder: (folder / "deployment.json").write_text("[]"),
        DeploymentError,
        "schema_version is missing",
    ),
    "no version": (lambda f: edit(f, lambda c: c.pop("schema_version")), DeploymentError, "schema_version is missing"),
    "odd version": (lambda f: edit(f, lambda c: c.update(schema_version="2.x")), DeploymentError, "not of the form"),
    "newer major": (
        lambda folder: edit(folder, lambda content: content.update(schema_version="3.0")),
        DeploymentError,
        "schema_version 3.0 where this runtime reads 2.x; install a matching msao-compile",
    ),
    "a version in other digits": (
        lambda f: edit(f, lambda c: c.update(schema_version="2.²")),
        DeploymentError,
        "not of the form",
    ),
    "unknown field": (lambda f: edit(f, lambda c: c.update(surprise=1)), DeploymentError, "surprise: Extra inputs"),
    "nested unknown field": (lambda f: edit(f, add_unknown_fields), DeploymentError, "surprise: Extra inputs"),
    "number as text": (
        lambda f: edit(f, lambda c: c["runtime"].update(threads="2")),
        DeploymentError,
        "runtime.threads: Input should be a valid integer",
    ),
    "missing file": (
        lambda folder: (folder / DATA).unlink(),
        DeploymentError,
        "decoder.onnx.data: named by deployment.json",
    ),
    "a folder": (lambda f: [(f / DATA).unlink(), (f / DATA).mkdir()], DeploymentError, "decoder.onnx.data: named by"),
    "flipped byte": (lambda folder: flip(folder / DATA), DamagedFile, "decoder.onnx.data: its SHA-256 is"),
    "truncated": (lambda folder: truncate(folder / DATA), DamagedFile, "63 bytes where 64 were recorded"),
    "absolute path": (data_path("/etc/hostname"), DeploymentError, "'/etc/hostname' leaves the deployment folder"),
    "path upwards": (data_path("modules/../../x"), DeploymentError, "leaves the deployment folder"),
    "link outside": (escape, DeploymentError, "a symbolic link that leads out of the deployment folder"),
    "linked folder": (escape_by_folder, DeploymentError, "a symbolic link that leads out of the deployment folder"),
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "deployment").mkdir()
    return manifests.write(tmp_path / "deployment")


def test_a_whole_deployment_verifies(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(small, read_manifest(small))
    assert main(["inspect", str(small)]) == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_with_its_place(small: Path, fault: str) -> None:
    damage, error, said = FAULTS[fault]
    damage(small)
    with pytest.raises(error) as caught:
        verify(small, read_manifest(small))
    assert said in str(caught.value)
    assert str(small) in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_inspect_exits_2_with_the_same_sentence(small: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, _, said = FAULTS[fault]
    damage(small)
    assert main(["inspect", str(small)]) == 2
    if fault != "no manifest":  # without one it is no deployment, and `inspect` looks for other things in it
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["no manifest", "newer major", "missing file", "flipped byte", "link outside"])
def test_run_exits_2_before_any_engine_opens(small: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, _, said = FAULTS[fault]
    damage(small)
    assert main(["run", str(small), "--prompt", "what?"]) == 2
    assert said in capsys.readouterr().err


def add_unknown_fields(content: dict) -> None:
    for place in (content, content["models"][0], content["modules"][0]["graphs"][0]["file"], content["runtime"]):
        place["surprise"] = {"deep": 1}


def test_a_newer_minor_is_read_with_a_warning_and_without_what_is_new(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = read_manifest(small)
    edit(small, add_unknown_fields)
    edit(small, lambda content: content.update(schema_version="2.7"))
    with caplog.at_level(logging.WARNING):
        assert read_manifest(small) == known.model_copy(update={"schema_version": "2.7"})
    here = f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}"
    assert f"schema_version 2.7 is newer than {here}; fields that are unknown here are left out" in caplog.text


def test_a_newer_minor_must_still_be_right_in_what_is_known(small: Path) -> None:
    edit(small, lambda content: content.update(schema_version="2.7", routes="none"))
    with pytest.raises(DeploymentError, match="routes: Input should be a valid tuple"):
        read_manifest(small)


def test_a_link_that_stays_inside_is_followed(small: Path) -> None:
    (small / DATA).rename(small / "held")
    (small / DATA).symlink_to(small / "held")
    verify(small, read_manifest(small))


def test_without_digests_only_sizes_are_compared(small: Path) -> None:
    flip(small / DATA)
    reference = read_manifest(small).modules[0].graphs[0].data[0]
    assert locate(small, reference, digest=False) == small / DATA
    with pytest.raises(DamagedFile):
        locate(small, reference)


def test_a_deployment_is_loaded_through_a_linked_folder(small: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(small)
    verify(tmp_path / "current", load(tmp_path / "current").deployment)


def test_where_keys_are_trusted_only_what_they_signed_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    folder = manifests.write(tmp_path / "deployment")
    public, _ = make_key(tmp_path / "key.pem")
    with pytest.raises(DeploymentError, match="is not signed"):
        load(folder, trusted_keys=public)
    sign(folder / "deployment.json", tmp_path / "key.pem")
    assert load(folder, trusted_keys=public).deployment.name == "small"
    edit(folder, lambda content: content.update(name="other"))
    assert load(folder).deployment.name == "other"
    with pytest.raises(DamagedFile, match="is of other bytes"):
        load(folder, trusted_keys=public)
    with pytest.raises(DeploymentError, match=r"no deployment\.json"):
        load(tmp_path, trusted_keys=public)
