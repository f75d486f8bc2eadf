"""Reading what Linux says of a machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from msao_compile.cli import machine, probe

X86 = "processor\t: 0\nmodel name\t: Some Processor\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"
JETSON = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8"


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [(X86, ["avx2", "avx512f", "avx512_vnni"]), (ARM, ["neon", "asimd", "asimddp"]), ("", [])],
)
def test_features_that_engines_use_are_picked_out(cpuinfo: str, features: list[str]) -> None:
    assert machine.cpu_features(cpuinfo) == features


@pytest.mark.parametrize(
    ("affinity", "cgroup", "cpus"),
    [(8, "max 100000", 8), (8, "250000 100000\n", 2.5), (2, "400000 100000", 2), (4, "", 4)],
)
def test_a_container_quota_cuts_the_usable_cpus(affinity: int, cgroup: str, cpus: float) -> None:
    assert machine.usable_cpus(affinity, cgroup) == cpus


def test_memory_is_in_bytes_and_what_is_not_told_is_none_of_it() -> None:
    facts = machine.memory_facts("MemTotal:       8000000 kB\nMemAvailable:   6000000 kB\n")
    assert facts == {"total_bytes": 8_192_000_000, "available_bytes": 6_144_000_000, "swap_free_bytes": 0}


def test_a_jetson_is_told_by_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"dpkg-query": "6.2+b77", "nvpmodel": "NV Power Mode: MAXN_SUPER\n2\n"}
    monkeypatch.setattr(machine, "_output", lambda *command: said[command[0]])
    assert machine.jetson_facts(JETSON) == {"l4t": "36.4.3", "jetpack": "6.2+b77", "power_mode": "MAXN_SUPER"}
    monkeypatch.setattr(machine, "_output", lambda *command: "")
    assert machine.jetson_facts(JETSON) == {"l4t": "36.4.3", "jetpack": "6.x", "power_mode": None}
    assert machine.jetson_facts("nonsense") == {"l4t": None, "jetpack": None, "power_mode": None}


@pytest.mark.parametrize(
    ("code", "out", "err", "answer"),
    [
        (0, 'a banner\n{"version": "1"}\n', "", {"version": "1"}),
        (0, "", "", {"error": "gave an answer that is not JSON"}),
        (-11, "", "", {"error": "crashed with signal 11"}),
        (
            1,
            "",
            "Traceback\nModuleNotFoundError: No module named 'x'\n",
            {"error": "ModuleNotFoundError: No module named 'x'"},
        ),
        (1, "", "", {"error": "exit status 1"}),
    ],
)
def test_a_probe_that_dies_is_an_answer_too(code: int, out: str, err: str, answer: dict[str, Any]) -> None:
    assert machine.reading(code, out, err) == answer


def test_a_probe_that_hangs_is_an_answer_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow.sh"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(machine, "PROBE_LIMIT_S", 0.2)
    assert machine.ask("cuda") == {"error": "gave no answer in 0 s"}


def test_a_library_that_is_not_there_is_told_from_one_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> dict[str, Any]:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setitem(probe.PROBES, "tensorrt", lambda: absent("tensorrt"))
    assert probe.answer("tensorrt") == {"error": "not installed"}
    monkeypatch.setitem(probe.PROBES, "tensorrt", lambda: absent("numpy"))
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        probe.answer("tensorrt")


def test_this_machine_has_memory_and_a_processor(tmp_path: Path) -> None:
    facts = machine.machine_facts(tmp_path)
    assert facts["memory"]["total_bytes"] > facts["memory"]["available_bytes"] > 0
    assert 0 < facts["cpu"]["usable_cpus"] <= facts["cpu"]["cpus"]
    assert facts["disk"]["folder"] == str(tmp_path)
