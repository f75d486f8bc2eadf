"""How sure one may be that the edge's answer is what the cloud would say, from its words and its tokens' confidences.

`fit` makes its samples with `describe`, so what was fitted and what is asked at run time are one function.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from msao_compile.manifest.mas import Sure
from msao_compile.runtime.mas.measures import sigmoid

LEAST = 1e-4
"""Confidences are told apart down to this distance from 0 and 1."""
LONGEST, TENS = 30, 10
"""Tokens of an answer beyond which length says no more, and the unit in which it is weighed."""
CONSTANT, LEAST_AT, MEAN_AT, FIRST_AT, LENGTH_AT, PICTURE_AT = range(6)


def log_odds(chance: float) -> float:
    """log(p / (1 - p)), of a chance within 0.0001 of 0 and 1 at most."""
    held = min(max(chance, LEAST), 1 - LEAST)
    return math.log(held / (1 - held))


def describe(confidences: Sequence[float], picture_given: bool) -> tuple[float, ...]:
    """What `Sure.base` weighs: 1, log odds of the least, the mean and the first confidence, length, picture or not.

    Args:
        confidences: of every token of the answer, that of its end too; one at least.
        picture_given: whether the edge saw the request's pictures.
    """
    mean = math.fsum(confidences) / len(confidences)
    length = min(len(confidences), LONGEST) / TENS
    odds = (log_odds(min(confidences)), log_odds(mean), log_odds(confidences[0]))
    return (1.0, *odds, length, float(picture_given))


def sureness(sure: Sure, prompt_words: Collection[int], confidences: Sequence[float], picture_given: bool) -> float:
    """The chance in [0, 1] that a whole answer of the edge is the cloud's; 0 where nothing can be told.

    Args:
        sure: what was fitted.
        prompt_words: token ids of the request; those of its template and pictures count for nothing.
        confidences: see `describe`.
        picture_given: see `describe`.
    """
    if not _usable(confidences):
        return 0.0
    return _chance(sure, prompt_words, describe(confidences, picture_given))


def hope(sure: Sure, prompt_words: Collection[int], confidences: Sequence[float], picture_given: bool) -> float:
    """The most that `sureness` can still become however the answer goes on: below the threshold, the edge's answer
    will not stand, and the cloud's work may begin.
    """
    if not confidences:
        return 1.0
    if not _usable(confidences):
        return 0.0
    told = list(describe(confidences, picture_given))
    lowest, highest = log_odds(0.0), log_odds(1.0)
    if _slope(sure, prompt_words) < 0:  # less sure tokens to come would make the sum larger
        told[LEAST_AT] = lowest
    told[MEAN_AT] = highest if sure.base[MEAN_AT] > 0 else lowest
    told[LENGTH_AT] = LONGEST / TENS if sure.base[LENGTH_AT] > 0 else told[LENGTH_AT]
    return _chance(sure, prompt_words, told)


def prior(sure: Sure, prompt_words: Collection[int]) -> float:
    """The chance, by the words alone, that the edge's answer will stand: what an upload may wait for."""
    held = set(prompt_words)
    pairs = zip(sure.words, sure.prior_of_word, strict=True)
    return sigmoid(sure.prior_base + math.fsum(weight for word, weight in pairs if word in held))


def _usable(confidences: Sequence[float]) -> bool:
    return bool(confidences) and all(math.isfinite(one) for one in confidences)


def _chance(sure: Sure, prompt_words: Collection[int], told: Sequence[float]) -> float:
    held = set(prompt_words)
    of_words = math.fsum(weight for word, weight in zip(sure.words, sure.of_word, strict=True) if word in held)
    slope = _slope(sure, held) - sure.base[LEAST_AT]
    of_base = math.fsum(weight * value for weight, value in zip(sure.base, told, strict=True))
    return sigmoid(of_base + of_words + slope * told[LEAST_AT])


def _slope(sure: Sure, prompt_words: Collection[int]) -> float:
    """What the log odds of the least confidence weighs under these words."""
    held = set(prompt_words)
    pairs = zip(sure.words, sure.of_word_least, strict=True)
    return sure.base[LEAST_AT] + math.fsum(weight for word, weight in pairs if word in held)
