"""The arithmetic of the GPU check, its page, and how it ends children."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.gpu import child, floors, memory, table
from tests.bench.gpu.asking import likeness
from tests.bench.gpu.steps import BACKENDS, ORT, RTX, TENSORRT, Step, steps
from tests.bench.gpu.work import Work
from tests.bench.work import Layout

TEXT = {"num_hidden_layers": 2, "hidden_size": 8, "head_dim": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 16, "vocab_size": 10}  # fmt: skip
LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, the three of the MLP


def test_a_step_reads_every_layer_and_the_head_in_the_size_of_its_type() -> None:
    assert floors.weight_bytes(TEXT, "fp32") == 4 * (2 * LAYER + 8 * 10)
    assert floors.weight_bytes(TEXT, "fp16") == 2 * (2 * LAYER + 8 * 10)


def test_state_that_is_read_grows_with_positions_and_batch() -> None:
    assert floors.state_bytes(TEXT, "fp16", 100, 1) == 2 * 2 * 4 * 100 * 2  # keys and values of two layers, one head
    assert floors.state_bytes(TEXT, "fp16", 100, 8) == 8 * floors.state_bytes(TEXT, "fp16", 100, 1)
    average = floors.step_bytes(TEXT, "fp16", 64, 8) - floors.weight_bytes(TEXT, "fp16")
    assert average == floors.state_bytes(TEXT, "fp16", 94 + 32, 8)


def test_the_floor_is_bytes_over_bandwidth_and_a_step_at_it_is_all_of_it() -> None:
    assert floors.floor_ms(3e9, 3e12) == pytest.approx(1.0)
    assert floors.fraction(step_ms=4.0, lowest_ms=1.0) == 0.25


def test_a_row_without_timings_gets_no_floor() -> None:
    row = {"batch": 1, "fault": "out of memory"}
    assert floors.with_floor(row, TEXT, "fp16", 64, 1e12) == row
    timed = floors.with_floor({"batch": 1, "tpot_ms": [1.0, 9.0, 2.0]}, TEXT, "fp16", 64, 1e9)
    assert timed["fraction_of_floor"] == pytest.approx(timed["floor_ms"] / 2.0)


def test_likeness_is_one_for_the_same_logits_and_counts_other_likeliest_tokens() -> None:
    wanted = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    same = likeness(2 * wanted, wanted)
    assert same["min_cosine"] == pytest.approx(1.0) and same["argmax_agreement"] == 1.0
    assert same["max_abs"] == 3.0
    other = likeness(wanted[:, ::-1], wanted)
    assert other["argmax_agreement"] == 0.0 and other["min_cosine"] == pytest.approx(10 / 14)


def test_a_peak_is_the_most_within_its_window_less_the_least_ever() -> None:
    samples = [(0.0, 100), (1.0, 500), (2.0, 900), (3.0, 700)]
    assert memory.peak_bytes(samples, (0.5, 1.5)) == 400
    assert memory.peak_bytes(samples, (2.5, 9.0)) == 600
    assert memory.peak_bytes(samples, (4.0, 9.0)) is None


def report(*found: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    facts = {"name": "facts", "status": "ran", "seconds": 1.0, "signal": None, "exit_code": 0, "last_lines": [],
             "result": {"gpu": {"name": "NVIDIA H100 80GB HBM3", "sm": 90, "memory_bytes": 80 << 30, "driver": "580",
                                "cuda": "13.0"}, "bytes_per_s": 3e12}}  # fmt: skip
    return {"command": "python -m tests.bench.gpu", "made_at": "abc", "date": "2026-11-28", "device": device,
            "work": {"batches": [1], "runs": 5, "new_tokens": 64}, "steps": [facts, *found]}  # fmt: skip


def step(name: str, backend: str | None, status: str = "ran", **more: Any) -> dict[str, Any]:
    return {"name": name, "backend": backend, "status": status, "seconds": 2.0, "signal": None, "exit_code": 0,
            "last_lines": [], "result": None, **more}  # fmt: skip


def answers(peer: str) -> dict[str, Any]:
    row = {"batch": 1, "ttft_ms": [9.0], "tpot_ms": [2.0], "tokens_per_s": [400.0], "window": [0, 1]}
    return {"peer": peer, "precision": "fp16", "rows": [row]}


def test_a_backend_ran_only_where_it_has_timings_to_show() -> None:
    made = report(
        step("ort scatter-fp16", ORT, result=answers("ONNX Runtime CUDA")),
        step("ort portable-fp16", ORT, "failed", exit_code=1, last_lines=["Traceback", "MissingTool: no cuDNN"]),
        step("rtx portable-fp16", RTX, "failed", exit_code=None, signal="SIGSEGV", last_lines=["loading"]),
        step("trt portable-fp16", TENSORRT, "not run", reason="no time is left"),
    )
    ort, trt, rtx = table.verdicts(made)
    assert ort == (
        "**ONNX Runtime CUDA** ran (ort scatter-fp16); not: ort portable-fp16: exit code 1: MissingTool: no cuDNN."
    )
    assert trt == "**TensorRT** did not run; not: trt portable-fp16: no time is left."
    assert rtx == "**TensorRT-RTX** did not run; not: rtx portable-fp16: SIGSEGV: loading."
    assert [table.ran(made, backend) for backend in BACKENDS] == [True, False, False]


def test_on_a_cpu_no_backend_ran() -> None:
    made = report(step("ort scatter-fp16", ORT, result=answers("ONNX Runtime CPU")), device="cpu")
    assert not table.ran(made, ORT)
    assert table.verdicts(made)[0].startswith("**ONNX Runtime CUDA** did not run")


def test_the_page_has_speed_with_its_floor_and_says_what_made_it(tmp_path: Path) -> None:
    made = report(step("ort scatter-fp16", ORT, result=answers("ONNX Runtime CUDA")))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps({"text_config": TEXT}))
    table.complete(made, Layout(tmp_path), [(-1.0, 1 << 20), (0.5, 3 << 20)])
    page = table.markdown(made)
    assert "# GPU check: NVIDIA H100 80GB HBM3" in page and "`python -m tests.bench.gpu`" in page
    assert "| ONNX Runtime CUDA | fp16 | 1 | 9.00 (9.00-9.00) | 2.00 (2.00-2.00) | 400 (400-400) | 2 | 0% |" in page
    assert table.file_name(made) == "nvidia-h100-80gb-hbm3"


def test_a_page_can_be_written_before_anything_was_found() -> None:
    made = report()
    made["steps"] = []
    assert "GPU check: no GPU" in table.markdown(made)


def test_every_step_has_a_name_of_its_own_and_needs_one_before_it(tmp_path: Path) -> None:
    found = steps(Work(tmp_path, "cuda", (1, 8), 5, 64))
    names = [one.name for one in found]
    assert len(names) == len(set(names))
    for place, one in enumerate(found):
        assert set(one.needs) <= set(names[:place])
    assert {one.backend for one in found} == {None, *BACKENDS}


def python(name: str, code: str) -> Step:
    return Step(name, (sys.executable, "-c", code), 30)


def test_a_child_that_hangs_is_ended_and_what_it_wrote_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    code = (
        f"import time; open({str(out)!r}, 'w').write('{{\"rows\": []}}'); print('so far', flush=True); time.sleep(600)"
    )
    found = child.run(python("hang", code), 3, out)
    assert (found["status"], found["signal"], found["result"]) == ("timed out", "SIGKILL", {"rows": []})
    assert found["last_lines"] == ["so far"] and found["seconds"] < 60


def test_a_child_that_dies_of_a_signal_is_told_by_its_name() -> None:
    found = child.run(python("crash", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), 30, None)
    assert (found["status"], found["signal"], found["exit_code"]) == ("failed", "SIGSEGV", None)
    found = child.run(python("fault", "raise SystemExit(3)"), 30, None)
    assert (found["status"], found["signal"], found["exit_code"]) == ("failed", None, 3)
