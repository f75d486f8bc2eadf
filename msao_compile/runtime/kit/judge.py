"""Parity on the device: what an engine gave, against what the fp32 graph gave where the kit was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.runtime.compare import Distance, distance, verdict
from msao_compile.runtime.kit.journal import Entry

OUT = "out."


def parity(cases: Mapping[str, tuple[Path, Path]], bounds: Mapping[str, float | None]) -> Entry:
    """The worst case decides. `cases`: by name, the file with expected outputs and the file of those found."""
    found: dict[str, Any] = {}
    worst, verdicts = "", []
    for name, (expected, given) in cases.items():
        try:
            apart = distance(_pairs(expected, given))
        except (KeyError, ValueError) as error:
            return Entry("failed", f"{name}: {error}", exit_code=5)
        decided, words = verdict(apart, bounds)
        found[name] = {"verdict": decided, **_numbers(apart), "bound": words}
        verdicts.append(decided)
        if decided != "PASS" and not worst:
            worst = f"{name}: {decided}, max abs {apart.max_abs:.3g}, min cosine {apart.min_cosine:.6f}, bound {words}"
    if not verdicts:
        return Entry("not run", "there is nothing to compare")
    if worst:
        return Entry("failed", worst, {"cases": found}, exit_code=5)
    return Entry("done", None, {"cases": found})


def _numbers(apart: Distance) -> dict[str, Any]:
    return {
        "max_abs": apart.max_abs, "min_cosine": apart.min_cosine, "argmax_agreement": apart.argmax_agreement,
        "near_ties_only": apart.near_ties_only, "compared": apart.compared,
    }  # fmt: skip


def _pairs(expected: Path, given: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    with np.load(expected) as theirs, np.load(given) as ours:
        names = [name for name in theirs.files if name.partition(".")[0] == "out" or f".{OUT}" in name]
        missing = [name for name in names if name not in ours.files]
        if missing:
            raise KeyError(f"the engine gave no {missing[0]}")
        return [(_rows(ours[name]), _rows(theirs[name])) for name in names]


def _rows(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False).reshape(array.shape if array.ndim else (1,))
