"""The script for a machine with a GPU: it goes on after every fault, and its checks tell right from wrong."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_runner
import pytest

from msao_compile.runtime.backends import cuda, engine_file, trt

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime" / "backends"))
import trt_stand_in as stand_in

CPU_ONLY = pytest.mark.skipif(not isinstance(cuda.probe(), str), reason="says what happens without a GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    script = Path(gpu_runner.__file__)
    subprocess.run([sys.executable, script, "make", folder], check=True)  # this process's threads are another's
    return folder


@pytest.fixture
def bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_runner.Bench:
    """A bench whose engines the stand-in runs."""
    driver = stand_in.Driver()
    lib = stand_in.library(driver)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(trt, "library", lambda backend: lib)
    bench = gpu_runner.Bench(folder, "trt_rtx")

    def build(name: str, sms: tuple[int, ...] = (), output: str = "") -> tuple[Path, dict[str, Any]]:
        order = json.loads((folder / "orders.json").read_text())[name]
        path = folder / f"{name}.stand-in"
        facts = dict.fromkeys(engine_file.FACTS, "") | {"backend": "trt_rtx", "library_version": "1.7.1.116"}
        facts |= {**engine_file.machine(), "gpu_architectures": ["sm89"]}
        dims = {"attention_mask": ["batch_size", "total_sequence_length"]} if "decoder" in name else {}
        content = stand_in.plan(folder / f"{name}.onnx", order["profiles"])
        engine_file.write(path, {**facts, "inputs": dims}, content)
        return path, {}

    monkeypatch.setattr(bench, "build", build)
    return bench


@pytest.mark.parametrize("name", ["primitives", "encoder", *(f"decoder_{d}_{k}" for d, k in gpu_runner.DECODERS)])
def test_a_runner_that_is_right_passes(bench: gpu_runner.Bench, name: str) -> None:
    found = gpu_runner.child(name, bench)
    assert (found["ok"], found["right"]) == (True, True), found
    if "scatter" in name:
        assert found["times"]["captured"]["graphs"] >= 1
        assert found["times"]["one by one"]["graphs"] == 0


def test_a_runner_that_is_wrong_does_not(bench: gpu_runner.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt.DeviceCache, "rollback", lambda self, length: setattr(self, "length", length))
    assert gpu_runner.child("decoder_portable_float", bench)["right"] is False


@pytest.mark.parametrize("name", ["threads", "memory", "too_large"])
def test_the_other_steps_run_through(bench: gpu_runner.Bench, name: str) -> None:
    found = gpu_runner.child(name, bench)
    assert (found["ok"], found["right"]) == (True, True), found


@CPU_ONLY
def test_without_a_gpu_every_step_says_so_and_none_ends_it(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "found.json"
    command = [
        sys.executable,
        gpu_runner.__file__,
        "run",
        folder,
        "--out",
        out,
        "--only",
        "probe,encoder,nothing,library",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    found = {one["step"]: one for one in json.loads(out.read_text())}
    assert [one["ok"] for one in found.values()] == [False, False, False, True]
    assert "there is no NVIDIA driver" in found["probe"]["said"]
    assert found["encoder"]["error"] == "MissingTool"
    assert json.loads(ran.stdout.splitlines()[-1]) == {"steps": 4, "ok": 1}
