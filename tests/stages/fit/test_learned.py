"""Planted: some words need the picture, some questions are hard for the edge, and what is learned says so."""

from __future__ import annotations

import numpy as np
import pytest

from msao_compile.runtime.mas.sure import prior
from msao_compile.stages.fit.learned import Learned, alike, flips, guess, learn, needed_by, with_prior
from msao_compile.stages.fit.record import Record
from tests.stages.fit.made import RIGHT, record

COLOUR, SUM, HARD, EVERYWHERE, RARE = 11, 12, 13, 1, 99


def records(count: int, seed: int) -> list[Record]:
    """Questions of colours need the picture, sums do not; of the hard ones the edge knows a half, whatever it says of
    itself, and of the others those of which it is sure."""
    chance, found = np.random.default_rng(seed), []
    for place in range(count):
        colour, hard, sure = chance.random() < 0.5, chance.random() < 0.3, float(chance.uniform(0.3, 1.0))
        knows = chance.random() < (0.5 if hard else sure)
        words = [EVERYWHERE, COLOUR if colour else SUM, *([HARD] if hard else []), *([RARE] if place == 0 else [])]
        found.append(record(words, RIGHT if knows else "no", sure, "no" if colour else RIGHT))
    return found


@pytest.fixture(scope="module")
def learned() -> Learned:
    return learn(records(600, 1), 0)


def test_words_say_whether_the_picture_is_needed(learned: Learned) -> None:
    weights = dict(zip(learned.words.tokens, learned.words.weights))
    assert weights[COLOUR] > 2 and weights[SUM] < -2 and abs(weights[HARD]) < 0.5
    others = records(200, 2)
    needed = needed_by(learned, "words", others)
    truth = flips(others)
    assert needed[truth == 1].min() > 0.95 and needed[truth == 0].max() < 0.05


def test_words_of_every_prompt_and_rare_ones_tell_nothing(learned: Learned) -> None:
    assert learned.words.tokens == learned.sure.words == (COLOUR, SUM, HARD)


def test_sureness_comes_true_as_often_as_it_says_on_others(learned: Learned) -> None:
    others = records(2000, 3)
    sure, same = guess(learned, others).sure_N, alike(others)
    for low, high in ((0.3, 0.6), (0.6, 0.8), (0.8, 1.0)):
        within = (sure >= low) & (sure < high)
        assert within.sum() > 100 and sure[within].mean() == pytest.approx(same[within].mean(), abs=0.06)
    hard = np.array([HARD in one.words for one in others])
    assert sure[~hard].max() > 0.95 > 0.85 > sure[hard].max()
    said = np.array([min(one.edge.confidences) for one in others])
    for within in (said < 0.5, said > 0.9):  # of hard questions what the edge says of itself means nothing
        assert sure[hard & within].mean() == pytest.approx(0.5, abs=0.15)
        assert sure[~hard & within].mean() == pytest.approx(same[~hard & within].mean(), abs=0.1)


def test_what_is_said_of_a_sample_was_learned_from_others() -> None:
    """Labels that are pure chance: whoever had seen them would tell them apart."""
    chance = np.random.default_rng(4)
    noise = [record(chance.choice(np.arange(20, 60), 12, replace=False).tolist(), chance.choice([RIGHT, "no"]), 0.9)
             for _ in range(300)]  # fmt: skip
    found = learn(noise, 0)
    same, unseen, seen = alike(noise), found.guesses.sure_N, guess(found, noise).sure_N
    assert seen[same == 1].mean() - seen[same == 0].mean() > 0.1
    assert abs(unseen[same == 1].mean() - unseen[same == 0].mean()) < 0.05


def test_the_prior_says_by_the_words_how_often_the_edge_will_do(learned: Learned) -> None:
    some = records(600, 1)
    stands = learned.guesses.sure_N >= 0.9
    found = with_prior(learned, some, stands)
    hard = np.array([HARD in one.words for one in some])
    assert prior(found.sure, [EVERYWHERE, SUM, HARD]) == pytest.approx(stands[hard].mean(), abs=0.05)
    assert prior(found.sure, [EVERYWHERE, SUM]) == pytest.approx(stands[~hard].mean(), abs=0.08)


def test_without_pictures_everything_that_comes_is_needed() -> None:
    texts = [record([SUM], RIGHT if place % 3 else "no", picture=None) for place in range(30)]
    found = learn(texts, 0)
    assert [probe.name for probe in found.probes] == ["words"]
    assert needed_by(found, "words", [record([SUM])])[0] > 0.99
    assert found.guesses.needed["words"].tolist() == [1.0] * 30


def test_the_chance_that_a_draft_is_kept_is_that_of_the_samples(learned: Learned) -> None:
    assert learned.acceptance.at(1.0) > 0.9 > 0.75 > learned.acceptance.at(0.35)
