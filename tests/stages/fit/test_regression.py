"""Regressions against values that are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msao_compile.stages.fit.regression import chances, ece, folds, isotonic, logistic, pava, reliability


def test_without_features_the_constant_is_the_log_odds() -> None:
    labels = np.array([1.0] * 30 + [0.0] * 10)
    assert logistic(np.ones((40, 1)), labels) == pytest.approx([math.log(3)], abs=1e-3)


def test_of_two_groups_the_weight_is_the_log_odds_ratio() -> None:
    features = np.array([[1.0, 0.0]] * 40 + [[1.0, 1.0]] * 40)
    labels = np.array([1.0] * 10 + [0.0] * 30 + [1.0] * 30 + [0.0] * 10)
    assert logistic(features, labels, penalty=1e-9) == pytest.approx([-math.log(3), 2 * math.log(3)], abs=1e-3)


def test_the_gradient_of_likelihood_and_penalty_vanishes_at_the_end() -> None:
    chance = np.random.default_rng(3)
    features = np.concatenate([np.ones((200, 1)), chance.standard_normal((200, 4))], 1)
    labels = (chance.random(200) < chances(features, np.array([0.3, 1.0, -2.0, 0.0, 0.5]))).astype(float)
    weights = logistic(features, labels, penalty=2.0)
    ridge = np.array([1e-3, 2.0, 2.0, 2.0, 2.0])
    assert features.T @ (chances(features, weights) - labels) + ridge * weights == pytest.approx(np.zeros(5), abs=1e-6)


@pytest.mark.parametrize("labels", [np.ones(20), np.zeros(20), np.repeat([0.0, 1.0], 10)])
def test_labels_that_a_feature_tells_apart_have_finite_weights(labels: np.ndarray) -> None:
    features = np.stack([np.ones(20), np.repeat([-1.0, 1.0], 10)], 1)
    weights = logistic(features, labels)
    assert np.isfinite(weights).all()
    assert ((chances(features, weights) > 0.5) == (labels > 0.5)).all()


@pytest.mark.parametrize(
    ("values", "weights", "wanted"),
    [
        ([1, 2, 3], [1, 1, 1], [1, 2, 3]),
        ([1, 3, 2, 4], [1, 1, 1, 1], [1, 2.5, 2.5, 4]),
        ([3, 2, 1], [1, 1, 1], [2, 2, 2]),
        ([1, 4, 1], [1, 1, 3], [1, 1.75, 1.75]),
        ([5, 1, 2, 4, 3], [1, 1, 1, 1, 1], [8 / 3, 8 / 3, 8 / 3, 3.5, 3.5]),
        ([], [], []),
    ],
)
def test_neighbours_that_fall_are_pooled(values: list[float], weights: list[float], wanted: list[float]) -> None:
    assert pava(values, weights) == pytest.approx(wanted)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 5)), min_size=2, max_size=12))
def test_no_other_rising_sequence_is_nearer(pairs: list[tuple[float, float]]) -> None:
    values, weights = (np.array(column) for column in zip(*pairs))
    found = np.array(pava(values.tolist(), weights.tolist()))
    assert (np.diff(found) >= -1e-9).all()
    other = np.sort(values)
    for share in (0.0, 0.3, 1.0):
        rival = (1 - share) * found + share * other
        assert (weights * (found - values) ** 2).sum() <= (weights * (rival - values) ** 2).sum() + 1e-9


def test_acceptance_rises_in_steps_and_begins_at_nothing() -> None:
    told = np.concatenate([np.linspace(0.1, 0.4, 40), np.linspace(0.5, 0.6, 40), np.linspace(0.8, 1.0, 40)])
    kept = np.concatenate([np.tile([1.0, 0.0], 20), np.tile([1.0, 0.0, 0.0, 0.0], 10), np.ones(40)])
    found = isotonic(told, kept)
    assert found.from_confidence == pytest.approx((0.0, 0.8)) and found.chance == pytest.approx((0.375, 1.0))
    assert (found.at(0.05), found.at(0.79), found.at(0.8)) == pytest.approx((0.375, 0.375, 1.0))


def test_equal_confidences_have_one_chance() -> None:
    found = isotonic(np.full(100, 0.7), np.repeat([0.0, 1.0], 50))
    assert (found.from_confidence, found.chance) == ((0.0,), (0.5,))


def test_the_calibration_error_is_the_mean_distance_of_what_was_said_and_what_came_true() -> None:
    said = np.array([0.05] * 10 + [0.85] * 30)
    true = np.array([0.0] * 9 + [1.0] + [1.0] * 24 + [0.0] * 6)
    bins = reliability(said, true)
    assert [(one.chance, one.share, one.count) for one in bins] == [
        (pytest.approx(0.05), 0.1, 10), (pytest.approx(0.85), 0.8, 30),
    ]  # fmt: skip
    assert ece(bins) == pytest.approx(0.05)
    assert ece(reliability(np.array([1.0, 0.0]), np.array([1.0, 0.0]))) == 0
    assert ece(()) == 0


def test_folds_hold_every_sample_once() -> None:
    parts = folds(23, 5, 1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23)) and {len(part) for part in parts} == {4, 5}
    assert [part.tolist() for part in folds(23, 5, 1)] == [part.tolist() for part in parts]
    assert [part.tolist() for part in folds(23, 5, 2)] != [part.tolist() for part in parts]
