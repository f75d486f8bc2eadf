"""Sampling keeps what transformers' logits processors keep, and draws in proportion."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from msao_compile.errors import InputError, StageError
from msao_compile.runtime.sampling import SamplingParameters, generator, likeliest, mask_vocabulary, pick, probabilities

LOGITS = np.random.default_rng(3).normal(0, 3, (6, 97)).astype(np.float32)


def reference(logits: np.ndarray, parameters: SamplingParameters) -> np.ndarray:
    steps = LogitsProcessorList([TemperatureLogitsWarper(parameters.temperature)])
    if parameters.top_k:
        steps.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1:
        steps.append(TopPLogitsWarper(parameters.top_p))
    scores = steps(torch.zeros((len(logits), 1), dtype=torch.long), torch.from_numpy(logits).double())
    return scores.softmax(-1).numpy()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1.0])
def test_probabilities_equal_transformers_processors(temperature: float, top_k: int, top_p: float) -> None:
    parameters = SamplingParameters(temperature, top_k, top_p)
    ours = probabilities(LOGITS, parameters)
    assert np.array_equal(ours > 0, reference(LOGITS, parameters) > 0)
    assert np.abs(ours - reference(LOGITS, parameters)).max() < 1e-12


def test_top_p_is_taken_of_what_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    assert probabilities(logits, SamplingParameters(1, top_k=2, top_p=0.55)).tolist() == [1, 0, 0, 0]


def test_the_smallest_top_p_still_keeps_one_token() -> None:
    assert probabilities(np.array([0.0, 0.5]), SamplingParameters(1, top_p=1e-20)).tolist() == [0, 1]


def test_ties_with_the_kth_token_stay() -> None:
    probs = probabilities(np.array([2.0, 1.0, 1.0, 0.0]), SamplingParameters(1, top_k=2))
    assert (probs > 0).tolist() == [True, True, True, False]


def test_greedy_puts_everything_on_the_first_largest_logit() -> None:
    greedy = probabilities(np.array([[0.0, 3.0, 3.0], [1.0, -np.inf, 0.0]]), SamplingParameters())
    assert greedy.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_a_tiny_temperature_is_nearly_greedy_without_overflow() -> None:
    assert probabilities(np.array([1.0, 2.0]), SamplingParameters(temperature=1e-310)).tolist() == [0, 1]


def test_rows_beyond_the_vocabulary_are_never_drawn() -> None:
    probs = probabilities(mask_vocabulary(np.array([0.0, 1.0, 9.0, 9.0]), 2), SamplingParameters(1))
    assert probs[2:].tolist() == [0, 0] and probs.sum() == pytest.approx(1)


def test_masking_leaves_the_given_logits_alone() -> None:
    logits = np.zeros(3)
    mask_vocabulary(logits, 1)
    assert logits.tolist() == [0, 0, 0]


def test_tokens_are_drawn_in_proportion() -> None:
    probs = np.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    chance = generator(11)
    counts = np.bincount([pick(probs, chance) for _ in range(20_000)], minlength=6) / 20_000
    assert np.abs(counts - probs).max() < 0.012 and counts[probs == 0].sum() == 0


def test_the_same_seed_draws_the_same_tokens() -> None:
    probs = np.full(50, 0.02)
    first, second = generator(5), generator(5)
    assert [pick(probs, first) for _ in range(20)] == [pick(probs, second) for _ in range(20)]


def test_a_certain_token_uses_no_chance() -> None:
    chance = generator(1)
    assert pick(np.array([0.0, 1.0]), chance) == 1
    assert chance.random() == generator(1).random()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 1.5},
        {"seed": -1},
        {"seed": None},
        {"ignore_eos": 1},
    ],
)
def test_a_parameter_outside_its_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))) as caught:
        SamplingParameters(**wrong)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temprature": 1}, "temprature is not an option of an answer; did you mean temperature?"),
        ({"max_tokens": 5}, "did you mean max_new_tokens?"),
        ({"zzz": 1}, "zzz is not an option of an answer; choose temperature, top_k, top_p, seed, ignore_eos."),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_one(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        SamplingParameters.read(wrong)


@pytest.mark.parametrize("bad", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_logits_that_are_not_finite_are_refused(bad: list[float]) -> None:
    with pytest.raises(StageError, match="not finite"):
        probabilities(np.array(bad), SamplingParameters(temperature=0))
    with pytest.raises(StageError, match="not finite"):
        likeliest(np.array(bad))


def test_minus_infinity_beside_a_finite_logit_is_no_fault() -> None:
    assert likeliest(np.array([-np.inf, 2.0, 2.0])) == 1
