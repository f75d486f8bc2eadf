"""Answers of the tiny deployment: routes agree, sampling follows its seed, stop tokens stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msao_compile.errors import StageError
from msao_compile.runtime import load
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.generate import tokens
from msao_compile.runtime.preprocess import decode
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import Request
from msao_compile.runtime.views import as_file

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


@pytest.mark.parametrize("route", ["edge", "cloud", "split"])
def test_a_message_asks_what_its_words_ask_on_every_route(runtime: Runtime, picture: Path, route: str) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    words, turn = (runtime.generate(asked, image=picture, route=route) for asked in (PROMPT, messages))
    assert turn.token_ids == words.token_ids
    more = [{"role": "system", "content": "be short"}, *messages]
    assert (runtime.generate(more, image=picture, route=route).prompt_tokens or 0) > (words.prompt_tokens or 999)


@pytest.mark.parametrize("route", ["edge", "cloud", "split"])
def test_without_a_limit_an_answer_fills_the_cache(runtime: Runtime, picture: Path, route: str) -> None:
    answer = runtime.generate(PROMPT, image=picture, route=route, max_new_tokens=None)
    assert (answer.prompt_tokens or 0) + len(answer.token_ids) == runtime.session("edge").facts.kv_capacity
    assert answer.finish == "length"


@pytest.mark.parametrize("route", ["edge", "cloud"])
def test_a_stop_sequence_ends_the_answer_before_it(runtime: Runtime, picture: Path, route: str) -> None:
    whole = runtime.generate(PROMPT, image=picture, route=route, max_new_tokens=24)
    stop = whole.text[len(whole.text) // 2 :][:3]
    answer = runtime.generate(PROMPT, image=picture, route=route, max_new_tokens=24, stop=stop)
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert (answer.finish, whole.finish, answer.prompt_tokens) == ("stop", "length", whole.prompt_tokens)
    assert len(answer.token_ids) < 24


def test_every_token_gives_a_piece(runtime: Runtime) -> None:
    pieces = list(runtime.stream(PROMPT, max_new_tokens=12))
    assert len(pieces) == 12 + 1


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

    def greedy(ignore_eos: bool = False) -> list[int]:
        logits, talk = session.prefill(prompt, {}, Clock())
        return list(tokens(session, logits[-1], talk, SamplingParameters(ignore_eos=ignore_eos), 12))

    whole = greedy()
    stop = whole[5]
    monkeypatch.setattr(session.tokenizer, "eos_token_ids", (stop,))
    assert greedy() == whole[: whole.index(stop)]
    assert greedy(ignore_eos=True) == whole


@pytest.mark.parametrize("mode", ["turned", "CMYK", "F", "YCbCr", "P", "RGBA"])
def test_every_route_sees_the_same_pixels_of_a_picture_in_memory(runtime: Runtime, picture: Path, mode: str) -> None:
    given = Image.open(picture)
    if mode == "turned":
        given.getexif()[0x0112] = 6  # EXIF orientation: a quarter turn
    else:
        given = given.convert("L").convert(mode) if mode == "F" else given.convert(mode)
    assert np.array_equal(np.asarray(decode(as_file(given))), np.asarray(decode(given)))
    answers = {runtime.generate(PROMPT, image=given, route=route).token_ids for route in ("edge", "cloud", "split")}
    assert len(answers) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("route", ["edge", "cloud"])
def test_logits_that_are_not_finite_end_the_answer_with_an_error(
    deployment: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, route: str
) -> None:
    runtime = load(deployment)
    session = runtime.session("edge")
    step = session.decoder.step
    monkeypatch.setattr(session.decoder, "step", lambda feed, cache: step(feed, cache) * np.nan)
    with pytest.raises(StageError, match="logits are not finite"):
        runtime.generate(PROMPT, temperature=temperature, route=route)


def test_an_answer_that_stops_at_once_took_time(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session("edge")
    monkeypatch.setattr(session.tokenizer, "eos_token_ids", tuple(range(session.tokenizer.vocab_size)))
    answer = runtime.generate(PROMPT)
    assert answer.token_ids == ()
    assert answer.timing.ttft_ms == answer.timing.total_ms > 0
