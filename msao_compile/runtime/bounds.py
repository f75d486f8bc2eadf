"""Upper confidence bounds of a mean loss, without assumptions on its distribution.

Sources: Clopper and Pearson (1934) for losses of 0 and 1; Hoeffding and Bentkus as in Bates et al., "Distribution-free,
risk-controlling prediction sets" (2021), section 3.1, for losses between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95
"""One-sided: the true mean is above the bound in one of twenty sample sets at most."""
STEPS = 60
"""Halvings of an interval of length 1: the last bit of a float is reached."""


def binomial_at_most(count: int, trials: int, chance: float) -> float:
    """P(X <= `count`) of so many trials with this chance each: the incomplete beta function I_(1-p)(n-k, k+1)."""
    if count >= trials or chance <= 0:
        return 1.0
    if count < 0 or chance >= 1:
        return 0.0
    ways = np.arange(count + 1)
    logs = np.array([math.lgamma(one + 1) + math.lgamma(trials - one + 1) for one in ways.tolist()])
    terms = math.lgamma(trials + 1) - logs + ways * math.log(chance) + (trials - ways) * math.log1p(-chance)
    return min(1.0, math.fsum(np.exp(terms).tolist()))


def clopper_pearson(count: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """The upper bound of the share of ones, of which `count` were seen in `trials`.

    Raises:
        ValueError: there is no trial, or more ones than trials.
    """
    if not 0 <= count <= trials or trials == 0:
        raise ValueError(f"{count} of {trials} is no share")
    return _largest(lambda chance: binomial_at_most(count, trials, chance) >= 1 - confidence, count / trials)


def hoeffding_bentkus(mean: float, trials: int, confidence: float = CONFIDENCE) -> float:
    """The upper bound of the mean of losses in [0, 1], of which `trials` had this mean.

    Raises:
        ValueError: there is no trial, or the mean is not within [0, 1].
    """
    if not 0 <= mean <= 1 or trials < 1:
        raise ValueError(f"a mean loss of {mean} in {trials} trials is none within 0 and 1")
    count = math.ceil(mean * trials - 1e-9)

    def possible(chance: float) -> bool:
        hoeffding = math.exp(-trials * _divergence(mean, chance))
        return min(hoeffding, math.e * binomial_at_most(count, trials, chance)) >= 1 - confidence

    return _largest(possible, mean)


def _divergence(mean: float, chance: float) -> float:
    """Kullback-Leibler divergence of two coins, `mean` <= `chance`."""
    if chance >= 1:
        return 0.0 if mean >= 1 else math.inf
    first = mean * math.log(mean / chance) if mean > 0 else 0.0
    return first + ((1 - mean) * math.log((1 - mean) / (1 - chance)) if mean < 1 else 0.0)


def _largest(holds: Callable[[float], bool], low: float) -> float:
    """The largest number up to 1 for which a claim holds that holds at `low` and fails for good where it fails."""
    high = 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high
