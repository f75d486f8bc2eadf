"""Bounds of a mean loss are the published ones, and hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from msao_compile.runtime.bounds import binomial_at_most, clopper_pearson, hoeffding_bentkus


def test_binomial_sums_are_those_of_the_tables() -> None:
    assert binomial_at_most(2, 5, 0.5) == pytest.approx(0.5)
    assert binomial_at_most(3, 10, 0.3) == pytest.approx(0.6496, abs=5e-5)
    assert binomial_at_most(8, 20, 0.4) == pytest.approx(0.5956, abs=5e-5)
    assert binomial_at_most(5, 5, 0.9) == 1 and binomial_at_most(4, 5, 1.0) == 0


@pytest.mark.parametrize(
    ("count", "trials", "confidence", "bound"),
    [
        (0, 10, 0.95, 1 - 0.05**0.1),
        (0, 10, 0.975, 0.3085),  # Clopper and Pearson's two-sided 95 % intervals have 2.5 % above
        (1, 10, 0.975, 0.4450),
        (3, 20, 0.975, 0.3789),
        (10, 100, 0.975, 0.1762),
        (10, 10, 0.975, 1.0),
    ],
)
def test_clopper_pearson_bounds_are_the_published_ones(
    count: int, trials: int, confidence: float, bound: float
) -> None:
    assert clopper_pearson(count, trials, confidence) == pytest.approx(bound, abs=5e-5)


def test_three_in_n_bounds_what_was_never_seen() -> None:
    assert clopper_pearson(0, 1000) == pytest.approx(3 / 1000, rel=0.01)


def test_the_bound_of_a_graded_loss_is_the_smaller_of_its_two() -> None:
    trials = 500
    assert hoeffding_bentkus(0.0, trials) == pytest.approx(1 - 0.05 ** (1 / trials))  # Hoeffding's, without losses
    bentkus = hoeffding_bentkus(0.02, trials)
    assert math.e * binomial_at_most(10, trials, bentkus) == pytest.approx(0.05, rel=1e-6)
    assert bentkus < 0.02 + math.sqrt(math.log(20) / (2 * trials))  # the simple bound of Hoeffding's


def test_no_assumptions_cost_something() -> None:
    for count in (0, 1, 5, 40, 100):
        assert clopper_pearson(count, 100) <= hoeffding_bentkus(count / 100, 100) + 1e-12 <= 1 + 1e-12


@pytest.mark.parametrize("loss", [0.02, 0.05, 0.3])
def test_the_true_mean_is_above_the_bound_in_one_of_twenty_sets_at_most(loss: float) -> None:
    chance, trials, sets = np.random.default_rng(0), 200, 1500
    ones = chance.binomial(trials, loss, sets)
    above = np.mean([clopper_pearson(int(count), trials) < loss for count in ones])
    assert 0.002 < above < 0.062  # and it is not so wide that this never happens
    graded = chance.binomial(1, 2 * loss, (sets, trials)) * chance.random((sets, trials))
    assert np.mean([hoeffding_bentkus(float(mean), trials) < loss for mean in graded.mean(1)]) < 0.062


def test_more_samples_and_fewer_losses_tighten_the_bound() -> None:
    assert clopper_pearson(1, 100) > clopper_pearson(2, 200) > clopper_pearson(1, 200)
    assert hoeffding_bentkus(0.01, 100) > hoeffding_bentkus(0.01, 200) > hoeffding_bentkus(0.005, 200)


@pytest.mark.parametrize(("count", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_share_is_refused(count: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        clopper_pearson(count, trials)
    with pytest.raises(ValueError, match="within 0 and 1"):
        hoeffding_bentkus(-0.1 if trials else 0.5, trials)
