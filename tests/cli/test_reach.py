"""Which targets a machine can build engines for and run, as a table of machines."""

from __future__ import annotations

import pytest

from msao_compile.cli.reach import NO_GPU, Here, reaches, rows, sms
from msao_compile.recipe.targets import catalogue

ALL = {"onnxruntime": True, "onnxruntime-gpu": True, "tensorrt": True, "tensorrt_rtx": True}
MACHINES = {
    "laptop": Here({"onnxruntime": True}, frozenset(), False),
    "ci": Here({"onnxruntime": True, "tensorrt_rtx": True}, frozenset(), False),
    "h100": Here(ALL, frozenset({90}), False),
    "bare h100": Here({"onnxruntime": True}, frozenset({90}), False),
    "l4": Here(ALL, frozenset({89}), False),
    "orin": Here({"onnxruntime": True, "tensorrt": True}, frozenset({87}), True),
}
EXPECTED = [
    ("laptop", "local-cpu", "here", True, None),
    ("laptop", "local-cuda", "here", False, None),
    ("laptop", "nvidia-l4", "no", False, "rtx"),
    ("laptop", "nvidia-h100-sxm", "on the device", False, None),
    ("ci", "nvidia-l4", "ahead of time", False, None),
    ("ci", "jetson-orin-nano-8gb", "on the device", False, None),
    ("h100", "nvidia-h100-sxm", "here", True, None),
    ("h100", "nvidia-b200", "on the device", False, None),
    ("h100", "nvidia-l4", "ahead of time", False, None),
    ("h100", "local-cuda", "here", True, None),
    ("bare h100", "nvidia-h100-sxm", "on the device", False, "tensorrt"),
    ("bare h100", "local-cuda", "here", False, "gpu"),
    ("l4", "nvidia-l40s", "ahead of time", True, None),
    ("l4", "jetson-orin-nano-8gb", "on the device", False, None),
    ("orin", "jetson-orin-nano-8gb", "here", True, None),
    ("orin", "jetson-thor-t5000", "on the device", False, None),
]


@pytest.mark.parametrize(("machine", "target", "build", "runs", "missing"), EXPECTED)
def test_what_a_machine_can_do_for_a_target(
    machine: str, target: str, build: str, runs: bool, missing: str | None
) -> None:
    found = next(one for one in reaches(MACHINES[machine]) if one.target == target)
    assert (found.build, found.runs, found.missing_extra) == (build, runs, missing)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_target_is_in_one_row_and_there_are_few_of_them(machine: str) -> None:
    drawn = rows(reaches(MACHINES[machine]))
    named = [name for row in drawn for name in row[1].split(", ")]
    assert sorted(named) == sorted(target.target_id for target in catalogue())
    assert len(drawn) <= 7


def test_what_does_not_run_says_why() -> None:
    why = {one.target: one.run for one in reaches(MACHINES["h100"])}
    assert why["nvidia-l4"] == "the GPU here is SM 90"
    assert {one.run for one in reaches(MACHINES["ci"]) if one.backend != "onnxruntime"} == {NO_GPU}


def test_a_driver_that_does_not_start_has_no_gpus() -> None:
    gpus = [{"compute_capability": "12.0"}]
    assert sms({"usable": True, "gpus": gpus}) == {120}
    assert sms({"usable": False, "gpus": gpus}) == frozenset()
