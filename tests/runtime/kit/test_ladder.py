"""The rung that phases prove."""

from __future__ import annotations

import pytest

from msao_compile.runtime.ladder import PHASES, status

DONE, FAILED, SKIPPED = "done", "failed", "not run"


@pytest.mark.parametrize(
    ("verdicts", "proven"),
    [
        ((), "deferred"), ((FAILED,), "deferred"), ((DONE,), "built"), ((DONE, SKIPPED), "built"),
        ((DONE, DONE), "ran"), ((DONE, DONE, FAILED), "ran"), ((DONE, DONE, DONE), "parity"),
        ((DONE, DONE, DONE, SKIPPED), "parity"), ((DONE, DONE, DONE, DONE), "qualified"),
        ((DONE, SKIPPED, DONE, DONE), "built"), ((SKIPPED, DONE, DONE, DONE), "deferred"),
    ],
)  # fmt: skip
def test_the_first_step_that_was_not_done_ends_the_climb(verdicts: tuple[str, ...], proven: str) -> None:
    assert status(dict(zip(PHASES, verdicts)), "engine") == proven


def test_the_stand_in_never_proves_more_than_built() -> None:
    assert status(dict.fromkeys(PHASES, DONE), "onnxruntime") == "built"
    assert status({}, "onnxruntime") == "deferred"
