"""What a device tells of itself, and when it is refused."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from msao_compile.errors import DeploymentError, GateError, MissingTool
from msao_compile.runtime.kit import device
from msao_compile.runtime.kit.device import Device
from msao_compile.runtime.kit.power import power_facts, power_mode

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC"
ORIN = {"target_id": "jetson-orin-nano-8gb", "platform_kind": "jetson", "architecture": "aarch64",
        "gpu_architecture": "sm87", "jetpack": "6.2", "tensorrt": "10.3"}  # fmt: skip
FOUND = Device("linux", "aarch64", "jetson", "sm87", "Orin", 7620, "6.2.1", "36.4.4", "540.4", "12.6", "10.3.0")


def test_a_jetson_is_known_by_its_release_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(RELEASE)
    found = device.system(tmp_path)
    assert (found["platform_kind"], found["l4t"], found["jetpack"]) == ("jetson", "36.4.3", "6.2")
    assert device.system(tmp_path / "etc")["platform_kind"] == "discrete"


def test_available_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000 kB\nMemAvailable:    6000 kB\n")
    assert device.available_bytes(tmp_path) == 6000 * 1024
    assert device.available_bytes(tmp_path / "proc") is None


def test_the_device_of_the_kit_is_taken_and_what_it_does_not_tell_is_named() -> None:
    assert device.refuse_other(ORIN, FOUND, True, None) == ()
    silent = Device("linux", "aarch64", "jetson", tensorrt="10.3.0")
    assert device.refuse_other(ORIN, silent, False, "no driver") == ("gpu_architecture", "jetpack")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"gpu_architecture": "sm110"}, "gpu_architecture"), ({"jetpack": "6.20"}, "jetpack"),
        ({"jetpack": "7.2"}, "jetpack"), ({"tensorrt": "10.16.2"}, "tensorrt"),
        ({"platform_kind": "discrete"}, "platform_kind"),
        ({"architecture": "x86_64"}, "architecture"), ({"gpu_memory_mib": 3800}, "gpu_memory_mib"),
    ],
)  # fmt: skip
def test_a_device_that_differs_is_refused_with_both_tuples(changed: dict[str, Any], field: str) -> None:
    other = Device(**{**FOUND.facts, **changed})
    with pytest.raises(
        DeploymentError, match=rf"differs from the kit's target in {field}: wanted \(.*\), found \(.*\)"
    ):
        device.refuse_other({**ORIN, "gpu_memory_mib": 8192}, other, True, None)


def test_without_a_driver_only_what_is_built_ahead_of_time_is_built() -> None:
    with pytest.raises(MissingTool, match="built on the GPU that they are for: there is no driver"):
        device.refuse_other(ORIN, FOUND, True, "there is no driver")


@pytest.mark.parametrize(
    ("backend", "dialect", "version", "said"),
    [
        ("trt", "portable", None, "tensorrt is not there"), ("trt", "portable", "8.6.1", "10.3 or newer"),
        ("trt", "scatter", "10.3.0", "10.15 or newer"), ("trt_rtx", "portable", "1.6", "1.7 or newer"),
        ("trt", "fused", "11.4", "build the deployment again as portable"),
    ],
)  # fmt: skip
def test_a_library_whose_parser_refuses_the_dialect_is_refused(
    backend: str, dialect: str, version: str | None, said: str
) -> None:
    with pytest.raises(MissingTool, match=said):
        device.refuse_old_library(backend, dialect, version)


def test_a_library_that_parses_the_dialect_is_taken() -> None:
    for backend, dialect, version in (("trt", "portable", "10.3.0"), ("trt", "scatter", "10.16.2"),
                                      ("trt", "portable", "11.4"), ("trt_rtx", "scatter", "1.7.1.116")):  # fmt: skip
        device.refuse_old_library(backend, dialect, version)


def test_too_little_memory_or_disk_is_refused_with_both_numbers() -> None:
    device.refuse_no_room((100, 100), (100, 100))
    device.refuse_no_room((100, None), (0, 0))
    with pytest.raises(GateError, match="about 200 MB of memory and 100 MB are available"):
        device.refuse_no_room((200_000_000, 100_000_000), (0, 0))
    with pytest.raises(GateError, match="about 200 MB of disk and 100 MB are free"):
        device.refuse_no_room((0, 1), (200_000_000, 100_000_000))


def test_the_power_mode_is_told_by_the_machines_own_tools(tmp_path: Path) -> None:
    def tool(name: str, text: str) -> list[str]:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return [str(path)]

    told = power_facts({
        "nvpmodel": tool("nvpmodel", "printf 'NV Power Mode: MAXN_SUPER\\n2\\n'"),
        "jetson_clocks": tool("jetson_clocks", "echo run me as root >&2; exit 1"), "other": ["/nowhere/tool"],
    })  # fmt: skip
    assert told == {
        "nvpmodel": "NV Power Mode: MAXN_SUPER\n2", "jetson_clocks": "failed: exit 1, run me as root",
        "other": "absent",
    }  # fmt: skip
    assert power_mode(told) == "MAXN_SUPER"
    assert power_mode({"nvpmodel": "absent"}) is None
