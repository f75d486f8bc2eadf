"""Names and keys of what the phases leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from msao_compile.runtime.kit.device import Device
from msao_compile.runtime.kit.journal import Entry, Journal
from msao_compile.runtime.kit.phases import Bench, engine_path, key_of, timing_slot
from msao_compile.runtime.kit.plan import read_plan

ORIN = Device("linux", "aarch64", "jetson", "sm87", "Orin (nvgpu)", 7620, "6.2", "36.4.3", "540.4", "12.6", "10.3.0")
POWER = {"nvpmodel": "NV Power Mode: 15W", "jetson_clocks": "absent"}


@pytest.fixture
def bench(packed_kit: Path, tmp_path: Path) -> Bench:
    return Bench(tmp_path, read_plan(packed_kit), ORIN, POWER, "engine", Journal(tmp_path), print)


def test_an_engine_says_what_it_is_for_in_its_name(bench: Bench) -> None:
    assert engine_path(bench, bench.plan.modules[1]) == "engines/edge/decoder.fp32.l4.trt_rtx10.3.0.engine"


def test_a_timing_cache_is_for_one_gpu_cuda_library_and_power_mode(bench: Bench) -> None:
    assert timing_slot(bench) == "timing/Orin-nvgpu-_cuda12.6_trt10.3.0_15W.cache"
    others = [replace(bench, power={}), *(replace(bench, device=replace(ORIN, **{name: "x"}))
                                          for name in ("gpu_name", "cuda", "tensorrt"))]  # fmt: skip
    assert len({timing_slot(one) for one in (bench, *others)}) == 5


def test_what_is_done_counts_only_on_the_same_grounds(bench: Bench) -> None:
    module = bench.plan.modules[0]
    built = {"build": Entry("done", facts={"engine": {"sha256": "a" * 64}})}
    other = {"build": Entry("done", facts={"engine": {"sha256": "b" * 64}})}
    moved = replace(bench, device=replace(ORIN, driver="550.1"))
    assert key_of(bench, module, "build", {}) != key_of(moved, module, "build", {})
    assert key_of(bench, module, "run", built) != key_of(bench, module, "run", other)
    stand_in, slow = replace(bench, runner="onnxruntime"), replace(bench, power={})
    assert key_of(bench, module, "run", built) != key_of(stand_in, module, "run", built)
    assert key_of(bench, module, "measure", built) != key_of(slow, module, "measure", built)
    assert key_of(bench, module, "parity", built) == key_of(slow, module, "parity", built)


def test_only_what_was_done_is_found_again_and_a_damaged_note_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for verdict in ("failed", "not run"):
        journal.write("edge/decoder", "run", Entry(verdict, "why", key="k"))
        assert journal.find("edge/decoder", "run", "k") is None
    journal.write("edge/decoder", "run", Entry("done", key="k"))
    assert journal.find("edge/decoder", "run", "k") == Entry("done", key="k")
    assert journal.find("edge/decoder", "run", "other") is None
    journal.place("edge/decoder", "run").write_text('{"verdict": "do')
    assert journal.find("edge/decoder", "run", "k") is None
