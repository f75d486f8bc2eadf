"""The proof of a cut is made with what really crosses it: what gets lost on the way is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from msao_compile.errors import CapacityExceeded, MsaoError
from msao_compile.runtime import load
from msao_compile.runtime.compare import Distance
from msao_compile.stages.parity import _Judge, _Original


@pytest.fixture
def judge(built: Callable[[str], Path], checkpoint: Callable[..., Path]) -> _Judge:
    return _Judge(_Original(checkpoint("qwen2_5_vl")), load(built("qwen2_5_vl")).session("edge"), 2)


def cuts(judge: _Judge) -> dict[str, Distance]:
    with torch.inference_mode():
        return {subject: found for subject, found in judge.subjects() if subject.startswith("split")}


def test_a_cut_gives_the_same_bits_as_the_whole(judge: _Judge) -> None:
    assert {subject: found.max_abs for subject, found in cuts(judge).items()} == {
        "split after vision_encoder": 0.0,
        "split after embed_tokens": 0.0,
    }


def test_a_grid_that_stays_behind_is_seen(judge: _Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msao_compile.runtime.routes.CONTEXT_INPUTS", ())
    with pytest.raises(MsaoError, match="was not given"):
        cuts(judge)


def test_more_steps_than_the_cache_holds_are_refused_by_their_own_name(
    built: Callable[[str], Path], checkpoint: Callable[..., Path]
) -> None:
    session = load(built("qwen2_5_vl")).session("edge")
    steps = session.model.decoder.kv_capacity - 8
    with pytest.raises(CapacityExceeded, match=f"and {steps} steps where edge has.*lower parity.steps"):
        _Judge(_Original(checkpoint("qwen2_5_vl")), session, steps)
