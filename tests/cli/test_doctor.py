"""`doctor`: what can run here, and what to install."""

from __future__ import annotations

from typing import Any

import pytest

from msao_compile.cli import doctor

from .conftest import Cli

NO_GPU = {"usable": False, "reason": "no NVIDIA driver"}
GPU = {"usable": True, "cuda": "12.6", "gpus": [{"name": "Orin", "compute_capability": "8.7", "memory_bytes": 8e9}]}
ORT = {"version": "1.31.1", "providers": ["CPUExecutionProvider"]}


def answers(monkeypatch: pytest.MonkeyPatch, given: dict[str, dict[str, Any]]) -> list[str]:
    """Let the probes answer so; gives the list of what was asked."""
    asked: list[str] = []

    def ask(name: str) -> dict[str, Any]:
        asked.append(name)
        return given.get(name, {"error": f"No module named {name!r}"})

    monkeypatch.setattr("msao_compile.cli.machine.ask", ask)
    return asked


def test_tensorrt_is_never_imported_where_the_driver_does_not_start(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, {"cuda": NO_GPU, "onnxruntime": ORT})
    ran = cli("doctor", "--json")
    assert asked == ["cuda", "onnxruntime", "tensorrt_rtx"]
    assert ran.code == 0
    tensorrt = ran.json["backends"][1]
    assert (tensorrt["present"], tensorrt["detail"]) == (False, "not asked: no NVIDIA driver")
    assert "msao-compile[tensorrt]" in tensorrt["advice"]


def test_with_a_gpu_every_backend_is_asked(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, {"cuda": GPU, "onnxruntime": ORT, "tensorrt": {"version": "10.3.0"}})
    ran = cli("doctor")
    assert asked == ["cuda", "onnxruntime", "tensorrt", "tensorrt_rtx"]
    assert ran.code == 0
    assert "Orin (8.7, 8.00 GB); driver for CUDA 12.6" in ran.out


def test_tensorrt_and_a_gpu_are_enough_to_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, {"cuda": GPU, "tensorrt": {"version": "10.3.0"}})
    ran = cli("doctor", "--json")
    assert (ran.code, ran.json["can_run"]) == (0, True)
    assert ran.json["backends"][1]["advice"] == ""


def test_tensorrt_rtx_without_a_gpu_builds_and_runs_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, {"cuda": NO_GPU, "tensorrt_rtx": {"version": "1.7.1"}})
    ran = cli("doctor", "--json")
    assert (ran.code, ran.json["can_run"]) == (4, False)
    assert ran.json["backends"][2]["advice"] == "builds engines for other machines; runs none here: no NVIDIA driver"
    builds = {one["target"]: (one["build"], one["runs"]) for one in ran.json["targets"]}
    assert builds["nvidia-l4"] == ("ahead of time", False)
    assert builds["jetson-orin-nano-8gb"] == ("on the device", False)


def test_the_targets_are_one_short_table(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, {"cuda": NO_GPU, "onnxruntime": ORT})
    table = cli("doctor").out.rpartition("\n\n")[2].splitlines()
    assert [line.split("  ")[0] for line in table] == ["build", "here", "here", "on the device", "no"]
    assert "pip install 'msao-compile[rtx]'" in table[-1]


def test_without_any_backend_it_exits_4_and_names_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, {"cuda": NO_GPU})
    ran = cli("doctor", "--json")
    assert (ran.code, ran.json["error"]["class"], ran.json["can_run"]) == (4, "MissingTool", False)
    assert "pip install 'msao-compile[ort]'" in ran.err


def test_absent_compile_packages_are_no_fault_but_have_advice() -> None:
    torch, numpy = doctor.package_findings({"torch": None, "numpy": "2.4"})
    assert (torch.present, torch.advice) == (False, "to compile: pip install 'msao-compile[compile]'")
    assert (numpy.present, numpy.advice) == (True, "")


def test_a_jetson_shows_its_power_mode() -> None:
    finding = doctor._jetson_finding({"l4t": "36.4.3", "jetpack": "6.2", "power_mode": "15W"})
    assert finding.detail == "JetPack 6.2, L4T 36.4.3, power mode 15W"


def test_the_real_probes_answer(cli: Cli) -> None:
    facts = cli("doctor", "--json").json
    assert {"usable", "reason"} <= facts["gpu"].keys()
    assert facts["backends"][0]["present"] == ("CPUExecutionProvider" in facts["backends"][0]["detail"])
