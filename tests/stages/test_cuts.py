"""The proof of a cut is made with what really crosses it: what gets lost on the way is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from msao_compile.errors import CapacityExceeded, MsaoError
from msao_compile.families.original import Asked
from msao_compile.runtime import load
from msao_compile.runtime.session import ModelSession
from msao_compile.stages.parity import _stepped, cuts

TEACHER = np.array([40, 50], np.int64)


@pytest.fixture
def session(built: Callable[[str], Path]) -> ModelSession:
    return load(built("qwen2_5_vl")).session("edge")


def asked(steps: np.ndarray = TEACHER) -> Asked:
    inputs = checkpoints.example("qwen2_5_vl")
    return Asked(("image",), 0, inputs, {}, {}, inputs, steps, np.zeros((0, 0), np.float32))


def test_a_model_is_cut_after_its_encoders_and_after_its_embedding(session: ModelSession) -> None:
    assert cuts(session) == {
        "video_encoder": frozenset({"vision_encoder", "video_encoder"}),
        "embed_tokens": frozenset({"vision_encoder", "video_encoder", "embed_tokens"}),
    }


@pytest.mark.parametrize("cut", ["video_encoder", "embed_tokens"])
def test_a_cut_gives_the_same_bits_as_the_whole(session: ModelSession, cut: str) -> None:
    whole = _stepped(session, asked())
    assert whole.shape == (3, checkpoints.VOCABULARY)
    assert np.array_equal(_stepped(session, asked(), cuts(session)[cut]), whole)


def test_a_grid_that_stays_behind_is_seen(session: ModelSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msao_compile.runtime.routes.ROPE_INPUTS", ())
    with pytest.raises(MsaoError, match="was not given"):
        _stepped(session, asked(), cuts(session)["video_encoder"])


def test_more_steps_than_the_cache_holds_are_refused_by_their_own_name(session: ModelSession) -> None:
    steps = session.facts.kv_capacity - 8
    with pytest.raises(CapacityExceeded, match=f"and {steps} steps where edge has.*lower parity.steps"):
        _stepped(session, asked(np.full(steps, 9)))
