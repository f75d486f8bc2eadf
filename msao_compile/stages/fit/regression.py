"""Regressions on few samples, and how far chances are off: plain NumPy.

Shape suffixes: N samples, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msao_compile.manifest.fit_evidence import ReliabilityBin
from msao_compile.manifest.offload import Acceptance

Floats = NDArray[np.float64]
STEPS, CLOSE = 60, 1e-9
"""Newton's at most, and a change below which they end."""
INTERCEPT = 1e-3
"""Of the penalty: enough that labels which are all alike have a finite answer."""
BINS = 10
"""Of a reliability diagram."""
FEWEST = 20
"""Samples of an isotonic step, so that no step is one sample's luck."""


def logistic(features_NF: Floats, labels_N: Floats, penalty: float = 2.0) -> Floats:
    """Weights [F] of a logistic regression, the first feature being the constant 1: Newton's method on the likelihood
    less penalty / 2 x the sum of their squares; the constant is hardly penalised.

    Source: Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning" (2nd edition), section 4.4.1.
    """
    ridge_F = np.full(features_NF.shape[1], penalty)
    ridge_F[0] = INTERCEPT
    weights_F = np.zeros(features_NF.shape[1])
    value = _loss(features_NF, labels_N, weights_F, ridge_F)
    for _ in range(STEPS):
        chances_N = chances(features_NF, weights_F)
        gradient_F = features_NF.T @ (chances_N - labels_N) + ridge_F * weights_F
        curvature = (features_NF.T * (chances_N * (1 - chances_N))) @ features_NF + np.diag(ridge_F)
        step_F, size = np.linalg.solve(curvature, gradient_F), 1.0
        while size > CLOSE and (after := _loss(features_NF, labels_N, weights_F - size * step_F, ridge_F)) > value:
            size /= 2
        if size <= CLOSE:
            break
        weights_F, value = weights_F - size * step_F, after
        if float(np.abs(size * step_F).max()) < CLOSE:
            break
    return weights_F


def chances(features_NF: Floats, weights_F: Floats) -> Floats:
    """[N]: what a logistic regression says."""
    return np.asarray(1 / (1 + np.exp(-np.clip(features_NF @ weights_F, -500, 500))))


def _loss(features_NF: Floats, labels_N: Floats, weights_F: Floats, ridge_F: Floats) -> float:
    scores_N = features_NF @ weights_F
    return float((np.logaddexp(0, scores_N) - labels_N * scores_N).sum() + (ridge_F * weights_F**2).sum() / 2)


def pava(values_N: Sequence[float], weights_N: Sequence[float]) -> list[float]:
    """The rising sequence nearest to `values_N` in weighted squares: neighbours that fall are pooled.

    Source: Barlow et al., "Statistical Inference under Order Restrictions" (1972), pool adjacent violators.
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values_N, weights_N, strict=True):
        mean, total, count = float(value), float(weight), 1
        while blocks and blocks[-1][0] >= mean:
            before, held, members = blocks.pop()
            mean = (before * held + mean * total) / (held + total)
            total, count = held + total, count + members
        blocks.append((mean, total, count))
    return [mean for mean, _, count in blocks for _ in range(count)]


def isotonic(confidences_N: Floats, kept_N: Floats) -> Acceptance:
    """The chance that a draft is kept by its confidence, in rising steps of twenty drafts at least."""
    order = np.argsort(confidences_N, kind="stable")
    rising, kept = confidences_N[order], kept_N[order]
    groups = np.array_split(np.arange(len(rising)), max(1, min(len(rising) // FEWEST, 64)))
    starts, heights, sizes = list[float](), list[float](), list[int]()
    for group in groups:
        start = float(rising[group[0]])
        if starts and start == starts[-1]:  # equal confidences are one group
            held = sizes[-1] + len(group)
            heights[-1] = (heights[-1] * sizes[-1] + float(kept[group].sum())) / held
            sizes[-1] = held
            continue
        starts.append(start)
        heights.append(float(kept[group].mean()))
        sizes.append(len(group))
    fitted = pava(heights, sizes)
    steps = [place for place in range(len(starts)) if place == 0 or fitted[place] > fitted[place - 1]]
    begins = tuple(0.0 if place == 0 else min(starts[place], 1.0) for place in steps)
    return Acceptance(from_confidence=begins, chance=tuple(min(max(fitted[place], 0.0), 1.0) for place in steps))


def reliability(chances_N: Floats, labels_N: Floats) -> tuple[ReliabilityBin, ...]:
    """Ten bins of equal width: how often what was said came true; bins that hold nothing are left out."""
    places_N = np.minimum((chances_N * BINS).astype(int), BINS - 1)
    return tuple(
        ReliabilityBin(
            chance=float(chances_N[places_N == place].mean()), share=float(labels_N[places_N == place].mean()),
            count=int((places_N == place).sum()),
        )
        for place in range(BINS)
        if (places_N == place).any()
    )  # fmt: skip


def ece(bins: Sequence[ReliabilityBin]) -> float:
    """The expected calibration error: the mean distance of what was said and what came true (Guo et al. 2017)."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.chance - one.share) for one in bins) / total if total else 0.0


def folds(count: int, parts: int, seed: int) -> list[NDArray[np.int64]]:
    """The places of `count` samples in so many parts of about one size, shuffled."""
    return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(count), parts)]
