"""Parity on the device, by numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from msao_compile.runtime.kit.judge import parity

BOUNDS = {"min_cosine": 0.999, "argmax_agreement": 1.0}


def stored(folder: Path, name: str, **arrays: np.ndarray) -> Path:
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def test_the_worst_of_all_cases_and_steps_decides(tmp_path: Path) -> None:
    rows = np.eye(4, dtype=np.float32)[None] + 0.01
    theirs = {"0.in.inputs_embeds": rows, "0.out.logits": rows, "1.out.logits": rows * 2}
    expected = stored(tmp_path, "expected", **theirs)
    same = stored(tmp_path, "same", **{name: value for name, value in theirs.items() if ".out." in name})
    other = stored(tmp_path, "other", **{"0.out.logits": rows, "1.out.logits": np.roll(rows, 1, -1)})
    good = parity({"one": (expected, same)}, BOUNDS)
    assert good.verdict == "done" and good.facts["cases"]["one"]["compared"] == 8
    bad = parity({"one": (expected, same), "two": (expected, other)}, BOUNDS)
    assert (bad.verdict, bad.exit_code) == ("failed", 5)
    assert bad.reason is not None and bad.reason.startswith("two: FAIL, max abs 2.01, min cosine")


def test_numbers_that_are_not_there_or_of_another_shape_fail(tmp_path: Path) -> None:
    expected = stored(tmp_path, "expected", **{"out.features": np.ones((2, 3), np.float32)})
    none = stored(tmp_path, "none", **{"out.other": np.ones(1)})
    short = stored(tmp_path, "short", **{"out.features": np.ones((1, 3), np.float32)})
    assert "gave no out.features" in str(parity({"one": (expected, none)}, BOUNDS).reason)
    assert "shape (1, 3)" in str(parity({"one": (expected, short)}, BOUNDS).reason)


def test_half_precision_outputs_are_compared_as_numbers(tmp_path: Path) -> None:
    theirs = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
    expected = stored(tmp_path, "expected", **{"out.features": theirs})
    halves = stored(tmp_path, "halves", **{"out.features": theirs.astype(np.float16)})
    found = parity({"one": (expected, halves)}, {"min_cosine": 0.99999})
    assert found.verdict == "done" and found.facts["cases"]["one"]["max_abs"] > 0


def test_no_bound_and_no_case_is_no_pass(tmp_path: Path) -> None:
    same = stored(tmp_path, "same", **{"out.features": np.ones((2, 3), np.float32)})
    assert parity({"one": (same, same)}, {}).verdict == "failed"
    assert parity({}, BOUNDS).verdict == "not run"
