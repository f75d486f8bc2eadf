"""Which frames of a clip or seconds of a sound say something new: SimHash against the last one kept.

Shape suffixes: T frames or segments, D feature size, B bits. Source: Charikar, "Similarity estimation techniques from
rounding algorithms" (2002): the chance that a bit differs is the angle / pi.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from msao_compile.runtime.mas.measures import Bools, Floats, quantiles

BITS = 64
SEED = 20260402
"""Of the hyperplanes. Codes are compared only with each other, so another seed is another measure: it never moves."""
POOLED = 4
"""Frames are pooled to so many rows and columns."""


@dataclass(frozen=True)
class TemporalLimits:
    """`cosine`: frames this alike are duplicates; `gap`: so many units on, one is kept anyway; `share`: of the most
    relevant units, kept whatever they are like.
    """

    cosine: float
    gap: int = 16
    share: float = 0.1


def hamming_limit(cosine: float, bits: int = BITS) -> int:
    """The most bits in which two codes of features this alike are expected to differ."""
    return math.floor(bits * math.acos(min(max(cosine, -1.0), 1.0)) / math.pi)


@lru_cache(maxsize=8)
def hyperplanes(size: int) -> NDArray[np.float64]:
    """[B, D], the same numbers on every machine."""
    planes: NDArray[np.float64] = np.random.Generator(np.random.PCG64(SEED)).standard_normal((BITS, size))
    return planes


def codes(features_TD: Floats, mean_D: Floats) -> Bools:
    """[T, B]: on which side of each hyperplane a unit lies, seen from the fixed mean of the sample set.

    The mean is no clip's own: what a still clip shows would vanish in it.
    """
    return np.asarray((features_TD - mean_D) @ hyperplanes(features_TD.shape[1]).T > 0)


def kept_units(features_TD: Floats, mean_D: Floats, relevance_T: Floats, limits: TemporalLimits) -> Bools:
    """`kept_T`: units unlike the last one kept, those too far from it, and the most relevant of the clip.

    Consecutive duplicates add none but those that the gap forces. What is not finite is kept as a whole.
    """
    count = len(features_TD)
    if not (np.isfinite(features_TD).all() and np.isfinite(relevance_T).all()):
        return np.ones(count, np.bool_)
    codes_TB = codes(features_TD, mean_D)
    fresh_T = np.ones(count, np.bool_)
    fresh_T[1:] = (codes_TB[1:] != codes_TB[:-1]).any(1)
    bar = quantiles(relevance_T[fresh_T], 1 - limits.share)[0]
    relevant_T = (relevance_T >= bar) & (relevance_T > relevance_T.min())
    kept_T = np.zeros(count, np.bool_)
    limit, last = hamming_limit(limits.cosine), 0
    kept_T[0] = True
    for unit in range(1, count):
        differs = int((codes_TB[unit] != codes_TB[last]).sum())
        if differs > limit or unit - last >= limits.gap or (relevant_T[unit] and differs):
            kept_T[unit] = True
            last = unit
    return kept_T


def pooled(frame_RCD: Floats) -> Floats:
    """One frame's cells as a vector [16 D]: means over 4 x 4 parts, fewer cells repeated."""
    rows, columns, _ = frame_RCD.shape
    parts = [
        frame_RCD[_part(row, rows), _part(column, columns)].mean((0, 1))
        for row in range(POOLED)
        for column in range(POOLED)
    ]
    return np.concatenate(parts)


def _part(index: int, count: int) -> slice:
    start = index * count // POOLED
    return slice(start, max(start + 1, (index + 1) * count // POOLED))


def segments(features_ND: Floats, seconds: float) -> Floats:
    """The features of a sound by seconds: [T, D] means of equal runs, T = `seconds` rounded, one at least."""
    count = min(max(1, round(seconds)), len(features_ND))
    return np.stack([part.mean(0) for part in np.array_split(features_ND, count)])
