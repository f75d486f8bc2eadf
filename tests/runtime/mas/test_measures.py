"""The invariants of Modality Activation Sparsity, of its spatial and modal parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from msao_compile.runtime.mas import measures
from msao_compile.runtime.mas.reading import Fitted, Limits, Reading, decide, read_cells, read_features
from msao_compile.runtime.mas.temporal import TemporalLimits

LIMITS = Limits(rho=0.8, kappa_min=0.1, tau_drop=0.05, temporal=TemporalLimits(0.9))
FITTED = Fitted((0.0, 0.4, 0.6), (-2.0, 8.0, 1.0, 1.0))
SIZE = 64
SHARES = st.floats(0, 1)


def scene(chance: np.random.Generator, side: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of an object of 4 x 4 cells before a background, where the object is, and a word for it."""
    background, thing = chance.standard_normal((2, SIZE))
    features = np.tile(background, (side, side, 1))
    inside = np.zeros((side, side), bool)
    inside[5:9, 5:9] = True
    features[inside] = thing
    noisy = features + 0.02 * chance.standard_normal(features.shape)
    word = thing + 0.3 * chance.standard_normal(SIZE)
    return noisy.reshape(-1, SIZE), inside.reshape(-1), word[None]


def reading(features: np.ndarray, word: np.ndarray, grid: tuple[int, int], prompt: float = 0.0) -> Reading:
    return read_features(features, word, prompt, [grid], FITTED, LIMITS)


def test_quantiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).standard_normal(37)
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        assert measures.quantiles(values, share) == [pytest.approx(np.quantile(values, share))]


def test_activation_runs_from_0_at_the_5th_percentile_to_1_at_the_95th() -> None:
    found = measures.activation(np.arange(1, 102, dtype=float)[:, None])
    assert found[:6].tolist() == [0] * 6 and found[95:] == pytest.approx(1)
    assert found[50] == pytest.approx(0.5)


def test_relevance_is_scaled_to_its_medium() -> None:
    assert measures.relevance(np.linspace(-0.5, 0.5, 21))[[0, 1, 10, 19, 20]] == pytest.approx([0, 0, 0.5, 1, 1])


def test_noise_is_not_stretched_to_look_like_things() -> None:
    similar = np.linspace(0, 0.01, 21)
    similar[7] = 0.9
    assert np.flatnonzero(measures.relevance(similar) > 0.2).tolist() == [7]
    assert measures.activation(1 + np.linspace(0, 0.01, 21)[:, None]).max() < 0.2


def test_a_flat_background_is_not_novel_and_an_odd_cell_is() -> None:
    features = np.tile([1.0, 0.0], (9, 1))
    features[4] = [0.0, 1.0]
    found = measures.novelty(features, [(3, 3)])
    assert found[4] == 1
    assert found[[0, 2, 6, 8]].tolist() == [0] * 4
    assert found[[1, 3, 5, 7]] == pytest.approx(1 / 3)  # one of their three neighbours is odd


def test_pictures_are_not_each_others_neighbours() -> None:
    features = np.repeat([[1.0, 0.0], [0.0, 1.0]], 4, axis=0)
    assert measures.novelty(features, [(2, 2), (2, 2)]).tolist() == [0] * 8
    assert measures.novelty(features, [(4, 2)]).max() > 0
    features[7] = [1.0, 0.0]
    assert np.flatnonzero(measures.novelty(features, [(2, 2), (2, 2)])).tolist() == [5, 6, 7]


def test_similarity_is_the_cosine_with_the_nearest_word() -> None:
    features, words = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), np.array([[5.0, 0.0], [0.0, -1.0]])
    assert measures.similarity(features, words) == pytest.approx([1, 0, math.sqrt(0.5)])


def test_importance_weighs_its_three_parts() -> None:
    parts = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 1.0])]
    assert measures.importance(parts, (0.5, 0.1, 0.4)) == pytest.approx([0.9 / 1.4, 0.5 / 1.4])


def test_importance_of_nothing_is_uniform() -> None:
    nothing = [np.zeros(4)] * 3
    assert measures.importance(nothing, (0.5, 0.1, 0.4)).tolist() == [0.25] * 4
    assert measures.sparsity(measures.importance(nothing, (0.5, 0.1, 0.4))) == pytest.approx(0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_importance_that_is_not_finite_is_uniform(value: float) -> None:
    part = np.array([1.0, value])
    assert measures.importance([part] * 3, (0.5, 0.1, 0.4)).tolist() == [0.5, 0.5]
    assert not measures.usable(part[:, None])


def test_one_unit_has_no_sparsity() -> None:
    assert measures.sparsity(np.ones(1)) == 0
    assert reading(np.ones((1, SIZE)), np.ones((1, SIZE)), (1, 1)).sparsity == 0


def test_sparsity_counts_the_units_that_share_the_importance() -> None:
    assert measures.sparsity(np.array([0.25] * 4 + [0.0] * 12)) == pytest.approx(1 - 4 / 16)


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)))
def test_sparsity_stays_between_0_and_1(values: np.ndarray) -> None:
    p = measures.importance([values, values, values], (0.3, 0.3, 0.4))
    assert 0 <= measures.sparsity(p) <= 1


def test_the_fewest_cells_that_hold_rho_are_kept_with_their_neighbours() -> None:
    p = np.full(25, 0.2 / 24)
    p[12] = 0.8
    kept = measures.kept_cells(p, [(5, 5)], 0.8, 0.0).reshape(5, 5)
    assert np.argwhere(kept).tolist() == [[1, 2], [2, 1], [2, 2], [2, 3], [3, 2]]
    assert measures.kept_cells(p, [(5, 5)], 0.85, 0.0).sum() > 5


@given(
    arrays(np.float64, 24, elements=st.floats(0, 1)), st.floats(0.01, 1), st.floats(0, 1),
)  # fmt: skip
def test_kept_cells_hold_rho_and_are_no_fewer_than_kappa_min(values: np.ndarray, rho: float, least: float) -> None:
    p = measures.importance([values] * 3, (0.3, 0.3, 0.4))
    kept = measures.kept_cells(p, [(4, 6)], rho, least)
    assert p[kept].sum() >= rho - 1e-9
    assert kept.mean() >= least - 1e-9


@given(arrays(np.float64, 24, elements=st.floats(0, 1)), st.floats(0.01, 1), st.floats(0.01, 1))
def test_more_importance_keeps_no_fewer_cells(values: np.ndarray, one: float, other: float) -> None:
    p = measures.importance([values] * 3, (0.3, 0.3, 0.4))
    fewer, more = (measures.kept_cells(p, [(4, 6)], rho, 0.0) for rho in sorted((one, other)))
    assert not (fewer & ~more).any()


def test_the_most_similar_units_speak_for_the_modality() -> None:
    assert measures.top_mean(np.arange(100.0)) == 97.5
    assert measures.top_mean(np.arange(17.0)) == 15.5
    assert measures.top_mean(np.array([0.3, 0.1])) == 0.3


def test_an_object_is_kept_and_most_of_its_background_is_not() -> None:
    features, inside, word = scene(np.random.default_rng(1))
    found = reading(features, word, (16, 16))
    assert found.kept[0].reshape(-1)[inside].all()
    assert found.kappa_spatial < 0.35 and found.sparsity > 0.5
    assert found.action == "reduce"


def test_clutter_is_dense() -> None:
    chance = np.random.default_rng(1)
    features = chance.standard_normal((256, SIZE))
    found = reading(features, chance.standard_normal((1, SIZE)), (16, 16))
    assert found.sparsity < 0.25 and found.kappa_spatial > 0.8


@settings(max_examples=40)
@given(SHARES, SHARES, SHARES, SHARES)
def test_mas_falls_with_need_and_with_the_kept_shares(low: float, high: float, kappa: float, other: float) -> None:
    low, high = sorted((low, high))

    def mas(needed: float, spatial: float, temporal: float) -> float:
        return Reading(needed, 0.0, spatial, temporal, "full", ()).mas

    assert mas(low, kappa, other) >= mas(high, kappa, other)
    assert mas(other, low, kappa) >= mas(other, high, kappa)
    assert mas(other, kappa, low) >= mas(other, kappa, high)
    assert 0 <= mas(low, kappa, other) <= 1


def test_text_is_always_needed() -> None:
    assert Reading(1.0, 0.0, 1.0, 1.0, "full", ()).mas == 0


def test_a_droppable_modality_scores_high() -> None:
    features, _, word = scene(np.random.default_rng(1))
    asked, idle = reading(features, word, (16, 16)), reading(features, -word, (16, 16), prompt=-6.0)
    assert idle.action == "drop" and idle.mas > 0.95
    assert asked.action != "drop" and asked.mas < idle.mas


def test_a_tiny_decisive_object_is_not_dropped_although_its_score_is_high() -> None:
    chance = np.random.default_rng(2)
    features = np.tile(chance.standard_normal(SIZE), (400, 1)) + 0.001 * chance.standard_normal((400, SIZE))
    tiny = [210, 211, 230, 231]
    features[tiny] = chance.standard_normal(SIZE)
    found = reading(features, features[210][None], (20, 20))
    assert found.mas > 0.6 and found.needed > 0.9
    assert found.action == "reduce" and found.kept[0].reshape(-1)[tiny].all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_dense(value: float) -> None:
    features, _, word = scene(np.random.default_rng(1))
    features[7, 3] = value
    found = reading(features, word, (16, 16), prompt=-50.0)
    assert (found.needed, found.kappa_spatial, found.action, found.mas) == (1, 1, "full", 0)
    assert found.kept[0].all()


def test_features_of_zeros_are_dense() -> None:
    found = reading(np.zeros((9, 4)), np.ones((1, 4)), (3, 3), prompt=-50.0)
    assert (found.needed, found.action, found.mas) == (1, "full", 0)


def test_a_prompt_or_a_layout_that_cannot_be_used_is_dense() -> None:
    features, _, word = scene(np.random.default_rng(1))
    for found in (
        reading(features, word * math.nan, (16, 16), -50.0),
        reading(features, word, (15, 16), -50.0),
        reading(features, word, (16, 16), math.nan),
    ):
        assert (found.needed, found.mas == 1 - found.kappa_spatial) == (1, True)


def test_measured_parts_that_are_not_finite_are_dense() -> None:
    parts = [np.ones(4), np.array([1, math.nan, 0, 0]), np.zeros(4)]
    assert read_cells(parts, 0.0, -50.0, [(2, 2)], FITTED, LIMITS).mas == 0


@pytest.mark.parametrize(
    ("needed", "kappa", "action"),
    [(0.04, 1.0, "drop"), (0.05, 0.1, "reduce"), (1.0, 0.85, "reduce"), (0.05, 0.86, "full"), (1.0, 1.0, "full")],
)
def test_what_is_done_goes_by_need_and_kept_share(needed: float, kappa: float, action: str) -> None:
    assert decide(needed, kappa, 0.05) == action


def test_need_is_a_logistic_function_of_its_parts() -> None:
    assert measures.needed((1, 2, 3, 4), 0.5, 0.75, -0.25) == pytest.approx(1 / (1 + math.exp(-1.75)))
    assert measures.needed((0, 0, 0, 1), 0, 0, -1e4) == 0 and measures.needed((0, 0, 0, 1), 0, 0, 1e4) == 1
