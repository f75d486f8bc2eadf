"""Answers of the tiny deployment: routes agree, sampling follows its seed, stop tokens stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msao_compile.runtime import load
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.generate import tokens
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import Request

PROMPT = "what color is the circle?"


@pytest.fixture(scope="module")
def runtime(deployment: Path) -> Runtime:
    return load(deployment)


def test_every_route_gives_the_same_tokens(runtime: Runtime, picture: Path) -> None:
    answers = {
        route: runtime.generate(PROMPT, image=picture, route=route, max_new_tokens=12)
        for route in ("edge", "cloud", "split")
    }
    assert len({answer.token_ids for answer in answers.values()}) == 1
    assert len(answers["edge"].token_ids) == 12
    assert (answers["edge"].timing.bytes_up, answers["cloud"].timing.bytes_up > picture.stat().st_size) == (0, True)


def test_the_picture_matters(runtime: Runtime, picture: Path) -> None:
    assert runtime.generate(PROMPT, image=picture).token_ids != runtime.generate(PROMPT).token_ids


def test_the_stream_is_the_answer_in_pieces(runtime: Runtime) -> None:
    pieces = list(runtime.stream(PROMPT, max_new_tokens=12))
    assert pieces[-1].answer is not None
    assert all(piece.answer is None for piece in pieces[:-1])
    assert "".join(piece.text for piece in pieces) == pieces[-1].answer.text


def test_sampling_follows_its_seed_and_differs_from_greedy(runtime: Runtime) -> None:
    greedy = runtime.generate(PROMPT).token_ids
    drawn = [runtime.generate(PROMPT, temperature=1.0, seed=seed).token_ids for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1]
    assert len({greedy, drawn[0], drawn[2]}) == 3


def test_one_likeliest_token_is_greedy(runtime: Runtime) -> None:
    assert runtime.generate(PROMPT, temperature=1.0, top_k=1, seed=3).token_ids == runtime.generate(PROMPT).token_ids


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session("edge")
    prompt = Request(np.arange(20, 30, dtype=np.int64), {})

    def greedy() -> list[int]:
        logits, talk = session.prefill(prompt, None, Clock())
        return list(tokens(session, logits[-1], talk, SamplingParameters(), 12))

    whole = greedy()
    stop = whole[5]
    monkeypatch.setattr(session.tokenizer, "eos_token_ids", (stop,))
    assert greedy() == whole[: whole.index(stop)]
