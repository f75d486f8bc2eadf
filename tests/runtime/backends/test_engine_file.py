"""Engine files: read back as written, and every file that is not one said to be what it is."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
import trt_graphs as graphs

from msao_compile.errors import DamagedFile, DeploymentError, StageError
from msao_compile.runtime.backends import engine_file

PLAN = b"vtrt" + bytes(range(256)) * 40
FACTS: dict[str, Any] = {
    **graphs.facts(), **engine_file.machine(), "backend": "trt_rtx", "library_version": "1.7.1.116", "order": {},
    "gpu_architectures": ["sm86", "sm89"], "cuda": None, "driver": None, "gpu_name": None,
}  # fmt: skip
HERE = {**FACTS, "gpu_architectures": ["sm89"], "gpu_name": "NVIDIA L4", "cuda": "13.0", "driver": "580.65.06"}
RUN = "msao-compile build shapes.toml"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "decoder.engine"
    engine_file.write(path, FACTS, PLAN)
    return path


def test_facts_and_plan_come_back_as_they_were_given(engine: Path) -> None:
    header = engine_file.read_header(engine, verify=True)
    assert {name: header[name] for name in FACTS} == FACTS
    assert header["plan_bytes"] == len(PLAN)
    assert bytes(engine_file.read_plan(engine)) == PLAN
    assert [path.name for path in engine.parent.iterdir()] == ["decoder.engine"]


def test_the_same_engine_is_the_same_bytes(engine: Path, tmp_path: Path) -> None:
    engine_file.write(tmp_path / "again", dict(reversed(FACTS.items())), memoryview(PLAN))
    assert (tmp_path / "again").read_bytes() == engine.read_bytes()


def test_a_fact_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the facts order, key"):
        engine_file.write(tmp_path / "x", {k: v for k, v in FACTS.items() if k not in ("order", "key")}, PLAN)


@pytest.mark.parametrize("kept", [0, 5, 20, 48, 60, 300, 4096, 4097, -1])
def test_a_file_cut_off_anywhere_is_damaged(engine: Path, kept: int) -> None:
    engine.write_bytes(engine.read_bytes()[:kept])
    with pytest.raises(DamagedFile):
        engine_file.read_header(engine)


def test_a_file_that_is_too_long_is_damaged(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes() + b"x")
    with pytest.raises(DamagedFile, match="has more than was written"):
        engine_file.read_plan(engine)


def test_a_changed_byte_of_the_header_is_found_at_once_and_one_of_the_plan_when_asked(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[-7] ^= 1
    engine.write_bytes(content)
    engine_file.read_header(engine)
    with pytest.raises(DamagedFile, match="the plan's SHA-256 is"):
        engine_file.read_header(engine, verify=True)
    content[60] ^= 1
    engine.write_bytes(content)
    with pytest.raises(DamagedFile, match="the header of this engine is damaged"):
        engine_file.read_header(engine)


@pytest.mark.parametrize(("start", "name"), [(b"vtrt", "TensorRT-RTX"), (b"ftrt", "TensorRT")])
def test_a_bare_plan_is_said_to_be_one(tmp_path: Path, start: bytes, name: str) -> None:
    (tmp_path / "x.engine").write_bytes(start + bytes(100))
    with pytest.raises(DamagedFile, match=f"x.engine is a bare plan of {name}, which does not say what it is for"):
        engine_file.read_header(tmp_path / "x.engine")


def test_another_file_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x08\x0a\x12\x07pytorch" * 20)
    with pytest.raises(DamagedFile, match="is not an engine"):
        engine_file.read_header(tmp_path / "x")
    with pytest.raises(DamagedFile, match="No such file"):
        engine_file.read_header(tmp_path / "absent")


def test_on_a_full_disk_nothing_is_left_and_the_old_engine_stays(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = engine.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match=r"an engine of 10244 bytes cannot be written here: No space left on device"):
        engine_file.write(engine, FACTS, PLAN)
    assert [path.name for path in engine.parent.iterdir()] == ["decoder.engine"]
    assert engine.read_bytes() == before


@pytest.mark.parametrize(
    ("backend", "header", "here", "fits"),
    [
        ("trt_rtx", {}, {}, True),
        ("trt_rtx", {}, {"library_version": "1.7.3.2", "os": "windows"}, True),
        ("trt_rtx", {}, {"library_version": "1.8.0.1"}, False),
        ("trt_rtx", {}, {"gpu_architectures": ["sm75"]}, False),
        ("trt_rtx", {}, {"backend": "trt"}, False),
        ("trt", {}, {}, True),
        ("trt", {}, {"library_version": "1.7.1.117"}, False),
        ("trt", {"gpu_architectures": ["sm87"]}, {"gpu_architectures": ["sm89"]}, False),
        ("trt", {"architecture": "aarch64"}, {}, False),
    ],
)
def test_an_engine_fits_by_library_version_platform_and_gpu(
    backend: str, header: dict[str, Any], here: dict[str, Any], fits: bool
) -> None:
    built, found = {**FACTS, "backend": backend, **header}, {**HERE, "backend": backend, **here}
    if fits:
        engine_file.refuse_mismatch(Path("x"), built, found, RUN)
        return
    with pytest.raises(DeploymentError, match=f"run: {RUN}$"):
        engine_file.refuse_mismatch(Path("x"), built, found, RUN)


def test_a_mismatch_prints_both_tuples(engine: Path) -> None:
    here = {**HERE, "library_version": "1.6.0", "os": "linux", "architecture": "x86_64"}
    header = {**FACTS, "os": "linux", "architecture": "x86_64", "gpu_architectures": ["sm89"]}
    said = (
        "decoder.engine was built by TensorRT-RTX 1.7.1.116 for sm89 on linux x86_64; here TensorRT-RTX 1.6.0, sm89 "
        "(NVIDIA L4) on linux x86_64, cuda 13.0, driver 580.65.06: run: msao-compile build shapes.toml"
    )
    with pytest.raises(DeploymentError, match=re.escape(said)):
        engine_file.refuse_mismatch(engine, header, here, RUN)
