"""A kit as a device runs it: TensorRT-RTX builds for an L4 that is not here, and a stand-in runs the graphs."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import kits
import pytest

from .conftest import change, receipt

STAND_IN = ("--runner", "onnxruntime")
MODULES = ("edge/embed_tokens", "edge/decoder")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds the engines of these kits")


def states(kit: Path) -> dict[str, str]:
    return {module["name"]: module["status"] for module in receipt(kit)["modules"]}


def test_without_a_driver_engines_are_built_and_nothing_else_is_claimed(kit: Path) -> None:
    done = kits.run(kit, "--keep-going")
    assert done.returncode == 4, done.stdout + done.stderr
    assert states(kit) == dict.fromkeys(MODULES, "built")
    for module in receipt(kit)["modules"]:
        verdicts = {name: phase["verdict"] for name, phase in module["phases"].items()}
        assert verdicts == {"build": "done", "run": "not run", "parity": "not run", "measure": "not run"}
        assert "driver" in module["phases"]["run"]["reason"]
        assert "driver" in done.stdout.splitlines()[-1] and module["name"] in done.stdout.splitlines()[-1]
        assert (kit / module["engine"]["path"]).read_bytes().startswith(b"MSAOENG")
        assert module["phases"]["build"]["facts"]["peak_rss_bytes"] > 50e6


def test_whatever_the_stand_in_finds_an_engine_is_no_more_than_built(kit: Path) -> None:
    done = kits.run(kit, *STAND_IN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert receipt(kit)["runner"] == "onnxruntime"
    assert states(kit) == dict.fromkeys(MODULES, "built")
    phases = {module["name"]: module["phases"] for module in receipt(kit)["modules"]}
    assert {phase["verdict"] for module in phases.values() for phase in module.values()} == {"done"}
    cases = phases["edge/decoder"]["parity"]["facts"]["cases"]
    assert set(cases) == {"prefill-opt", "prefill-min"}
    assert all(case["min_cosine"] > 0.999999 and case["compared"] == 6 for case in cases.values())
    times = phases["edge/decoder"]["measure"]["facts"]["times"]["prefill-opt"]
    assert set(times) == {"prefill", "step"} and times["step"]["runs"] >= 5 and times["step"]["median_ms"] > 0


MARKS = [
    "begin unpack", "begin device", "begin power", "begin build edge/embed_tokens", "begin run edge/embed_tokens",
    "begin parity edge/embed_tokens", "begin measure edge/embed_tokens", "begin build edge/decoder",
    "begin measure edge/decoder", "begin receipt",
]  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
def test_a_kit_that_is_killed_goes_on_and_rebuilds_nothing_that_is_whole(kit: Path, mark: str) -> None:
    told = killed_at(kit, mark)
    finished = {line for line in told if line.startswith("done ")}
    before = {path: path.stat().st_mtime_ns for path in kit.glob("engines/**/*.engine")}
    done = kits.run(kit, *STAND_IN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(kit) == dict.fromkeys(MODULES, "built")
    assert len(list(kit.glob("engines/**/*"))) == 3, "an engine of each module, and no leftovers"
    again = done.stdout.splitlines()
    for module in MODULES:
        for phase in ("build", "run", "parity", "measure"):
            was_done = any(line.startswith(f"done {phase} {module}") for line in finished)
            assert not was_done or f"reuse {phase} {module}" in again
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())


def killed_at(kit: Path, mark: str) -> list[str]:
    """Run a kit and kill it when it says so; what it had said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", str(kit / "kit.py"), *STAND_IN]
    told, stuck = [], kit / ".receipt.json.partial"
    if mark == "begin receipt":
        os.mkfifo(stuck)  # opening it to write waits for a reader, who never comes
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            told.append(line.strip())
            if line.startswith(mark):
                time.sleep(0.05 if "edge" in mark else 0)  # a child's phase is killed in the middle
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    assert process.returncode == -signal.SIGKILL, f"{mark} was never said: {told}"
    stuck.unlink(missing_ok=True)
    return told


def test_a_finished_kit_has_nothing_to_do(kit: Path) -> None:
    assert kits.run(kit, *STAND_IN).returncode == 0
    again = kits.run(kit, *STAND_IN)
    assert again.returncode == 0
    assert [line for line in again.stdout.splitlines() if line.startswith("begin")] == [
        line for line in again.stdout.splitlines() if line.startswith(("begin unpack", "begin device", "begin power",
                                                                       "begin receipt"))
    ]  # fmt: skip


def test_an_engine_whose_bytes_changed_is_built_again(kit: Path) -> None:
    assert kits.run(kit, *STAND_IN).returncode == 0
    engine = next(kit.glob("engines/**/decoder*.engine"))
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    again = kits.run(kit, *STAND_IN)
    assert "begin build edge/decoder" in again.stdout and "reuse build edge/embed_tokens" in again.stdout


@pytest.mark.parametrize(
    "path", ["modules/edge/decoder.onnx.data", "checks/edge/decoder/prefill-opt.npz", "msao_compile/runtime/compare.py"]
)
def test_a_changed_byte_is_found_before_anything_is_built_and_named(kit: Path, path: str) -> None:
    content = bytearray((kit / path).read_bytes())
    content[-1] ^= 1
    (kit / path).write_bytes(content)
    done = kits.run(kit)
    assert done.returncode == 2
    assert f"{kit / path}: its SHA-256 is" in done.stdout
    assert not (kit / "engines").exists()


def test_a_missing_file_is_named(kit: Path) -> None:
    (kit / "modules/edge/decoder.onnx").unlink()
    done = kits.run(kit)
    assert done.returncode == 2 and "decoder.onnx: belongs to this kit and is missing" in done.stdout


def test_an_order_that_was_changed_is_refused(kit: Path) -> None:
    path = kit / "kit.json"
    content = json.loads(path.read_text())
    content["contract"]["modules"][0]["order"]["level"] = "release"
    path.write_text(json.dumps(content))
    done = kits.run(kit)
    assert done.returncode == 2 and "what it orders was changed" in done.stdout


def test_a_kit_on_another_device_is_refused_with_both_tuples(tmp_path: Path) -> None:
    from msao_compile.runtime.loader import read_manifest
    from msao_compile.stages.kit import archive, pack

    orin = {"target_id": "jetson-orin-nano-8gb", "platform_kind": "jetson", "architecture": "aarch64",
            "gpu_architecture": "sm87"}  # fmt: skip
    folder = kits.write(tmp_path / "deployment", compatibility=orin)
    kit = archive.write(tmp_path / "kit", pack.pack(folder, read_manifest(folder), kits.TARGET).entries)
    done = kits.run(kit)
    assert done.returncode == 2
    error = done.stdout.splitlines()[-1]
    assert "differs from the kit's target in architecture, platform_kind" in error
    assert "wanted (architecture aarch64" in error and "found (os linux, architecture x86_64" in error
    assert not (kit / "engines").exists() and not (kit / "receipt.json").exists()


def test_a_full_disk_is_one_sentence_and_the_next_run_continues(kit: Path) -> None:
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))  # below any engine, above what is noted

    done = kits.run(kit, *STAND_IN, preexec_fn=little)
    assert done.returncode == 3, done.stdout + done.stderr
    failed = next(line for line in done.stdout.splitlines() if line.startswith("failed build edge/embed_tokens"))
    assert "File too large" in failed or "no space is left" in failed
    assert states(kit) == {"edge/embed_tokens": "deferred"}
    assert kits.run(kit, *STAND_IN).returncode == 0


def test_a_build_that_needs_more_memory_than_there_is_is_refused_with_both_numbers(kit: Path) -> None:
    change(kit, "edge/decoder", memory_bytes=10**15)
    done = kits.run(kit)
    assert done.returncode == 5
    assert "building needs about 1000000000 MB of memory and" in done.stdout
    assert not (kit / "engines").exists()


def test_an_engine_outside_its_bound_is_not_measured(kit: Path) -> None:
    change(kit, "edge/decoder", bounds={"min_cosine": 1.1})
    done = kits.run(kit, *STAND_IN)
    assert done.returncode == 5
    decoder = receipt(kit)["modules"][1]["phases"]
    assert decoder["parity"]["verdict"] == "failed" and "bound min_cosine 1.1" in decoder["parity"]["reason"]
    assert decoder["measure"]["verdict"] == "not run"


def test_a_module_without_stored_inputs_is_built_and_never_run(kit: Path) -> None:
    change(kit, "edge/decoder", cases=[], left_out="its input depends on a picture")
    done = kits.run(kit, *STAND_IN)
    assert done.returncode == 4
    run = receipt(kit)["modules"][1]["phases"]["run"]
    assert run["verdict"] == "not run" and "depends on a picture" in run["reason"]


def test_a_failure_stops_unless_it_is_told_to_keep_going(kit: Path) -> None:
    order = ("--only", "embed_tokens")
    change(kit, "edge/embed_tokens", bounds={"min_cosine": 1.1})
    assert kits.run(kit, *STAND_IN).returncode == 5
    assert list(states(kit)) == ["edge/embed_tokens"]
    assert kits.run(kit, *STAND_IN, "--keep-going").returncode == 5
    assert list(states(kit)) == list(MODULES)
    assert kits.run(kit, *STAND_IN, *order).returncode == 5
    assert list(states(kit)) == list(MODULES), "the receipt is of the kit and not of the last run"


def test_a_receipt_has_every_module_that_was_built_whatever_the_last_run_was_asked_for(kit: Path) -> None:
    assert kits.run(kit, *STAND_IN, "--only", "embed_tokens").returncode == 0
    (kit / "receipt.json.sig").write_text("{}")
    assert list(states(kit)) == ["edge/embed_tokens"]
    done = kits.run(kit, *STAND_IN, "--only", "decoder")
    assert done.returncode == 0 and "embed_tokens" not in done.stdout.partition("begin receipt")[0]
    assert not (kit / "receipt.json.sig").exists(), "it signs other bytes"
    assert states(kit) == dict.fromkeys(MODULES, "built")
    assert all(phase["verdict"] == "done" for module in receipt(kit)["modules"] for phase in module["phases"].values())
    next(kit.glob("engines/**/embed_tokens*")).unlink()
    assert kits.run(kit, *STAND_IN, "--only", "decoder").returncode == 0
    assert list(states(kit)) == ["edge/decoder"]


def test_a_check_builds_nothing_and_an_unknown_module_is_refused(kit: Path) -> None:
    assert kits.run(kit, "--check").returncode == 0
    assert not (kit / "engines").exists()
    done = kits.run(kit, "--only", "encoder")
    assert done.returncode == 2 and "this kit has edge/embed_tokens, edge/decoder" in done.stdout


def test_two_of_them_never_run_in_one_folder(kit: Path) -> None:
    (kit / "state").mkdir()
    with (kit / "state" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = kits.run(kit)
    assert done.returncode == 3 and "another kit.py runs here" in done.stdout
