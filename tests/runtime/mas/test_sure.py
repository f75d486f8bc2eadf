"""How sure the edge may be: the sum that was fitted, 0 where nothing can be told, and no hope too little."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msao_compile.manifest.mas import Sure
from msao_compile.runtime.mas.sure import describe, hope, log_odds, prior, sureness

SURE = Sure(
    words=(3, 7), base=(0.5, 1.0, 0.25, 0.1, -0.2, 0.3), of_word=(1.0, -1.0), of_word_least=(0.0, 0.5),
    prior_base=-0.5, prior_of_word=(2.0, -2.0), ece=0.02, prior_ece=0.03,
)  # fmt: skip
CHANCES = st.floats(0.0, 1.0)


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def test_an_answer_is_told_by_its_least_mean_and_first_confidence_and_its_length() -> None:
    found = describe([0.9, 0.5, 0.7], True)
    assert found == pytest.approx((1.0, 0.0, math.log(0.7 / 0.3), math.log(9), 0.3, 1.0))
    assert describe([0.5] * 40, False)[4:] == (3.0, 0.0)


def test_sureness_is_the_fitted_sum() -> None:
    odds = math.log(4)  # of 0.8, thrice
    base = 0.5 + (1.0 + 0.25 + 0.1) * odds - 0.2 * 0.2
    assert sureness(SURE, [], [0.8, 0.8], False) == pytest.approx(sigmoid(base))
    assert sureness(SURE, [], [0.8, 0.8], True) == pytest.approx(sigmoid(base + 0.3))
    assert sureness(SURE, [3, 99], [0.8, 0.8], False) == pytest.approx(sigmoid(base + 1.0))
    assert sureness(SURE, [7, 7], [0.8, 0.8], False) == pytest.approx(sigmoid(base - 1.0 + 0.5 * odds))


def test_words_alone_give_the_prior() -> None:
    assert [prior(SURE, words) for words in ([], [3], [3, 3, 99], [7], [3, 7])] == pytest.approx(
        [sigmoid(-0.5), sigmoid(1.5), sigmoid(1.5), sigmoid(-2.5), sigmoid(-0.5)]
    )


@pytest.mark.parametrize("confidences", [[], [math.nan], [0.9, math.inf]])
def test_nothing_is_sure_of_what_cannot_be_told(confidences: list[float]) -> None:
    assert sureness(SURE, [3], confidences, True) == 0
    assert hope(SURE, [3], confidences, True) == (0 if confidences else 1)


@pytest.mark.parametrize(("chance", "odds"), [(0.5, 0.0), (0.0, -9.2102), (1.0, 9.2102), (0.9, 2.1972)])
def test_odds_end_at_a_ten_thousandth(chance: float, odds: float) -> None:
    assert log_odds(chance) == pytest.approx(odds, abs=1e-4)


@given(
    st.lists(CHANCES, min_size=1, max_size=8), st.lists(CHANCES, max_size=40),
    st.sampled_from([(), (3,), (7,), (3, 7)]), st.lists(st.floats(-2, 2), min_size=10, max_size=10),
)  # fmt: skip
def test_no_answer_becomes_surer_than_was_hoped(
    begun: list[float], rest: list[float], words: tuple[int, ...], weights: list[float]
) -> None:
    sure = SURE.model_copy(
        update={"base": tuple(weights[:6]), "of_word": tuple(weights[6:8]), "of_word_least": tuple(weights[8:])}
    )
    assert sureness(sure, words, begun + rest, True) <= hope(sure, words, begun, True) + 1e-12


def test_where_doubt_speaks_for_the_edge_there_is_hope_of_more_doubt() -> None:
    sure = SURE.model_copy(update={"base": (0.0, -1.0, 0.0, 0.0, 0.0, 0.0)})
    assert hope(sure, [], [0.9], True) == sureness(sure, [], [0.9, 0.0], True) > sureness(sure, [], [0.9], True)


def test_an_answer_with_a_doubtful_token_has_little_hope_left() -> None:
    assert hope(SURE, [3], [0.99], True) > 0.99 > 0.7 > hope(SURE, [3], [0.99, 0.01], True)
