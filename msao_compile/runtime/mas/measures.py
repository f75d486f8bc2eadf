"""Modality Activation Sparsity: pure arithmetic on the features of one medium (after MSAO, arXiv 2604.02945).

Shape suffixes: N units of a medium (cells of its pictures or frames), D feature size, J vectors of the prompt. Units
stand picture after picture, each in reading order; `grids` holds the rows and columns of each. Whatever cannot be
measured (NaN, nothing but zeros, no layout) is taken for dense and needed: a fault costs bytes, never an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Grids = Sequence[tuple[int, int]]

LOW, HIGH = 0.05, 0.95
"""The quantiles between which a measure is scaled: a few odd units move neither end."""
NORM_SPREAD, COSINE_SPREAD = 0.1, 0.1
"""Norms that differ by a tenth of the largest, and cosines by a tenth, are the least that is told apart from noise."""
TINY = 1e-12
TOP, TOP_OF = 4, 8
"""The four most relevant units, and one in eight at most, speak for the modality: an answer may lie in a few cells."""


def usable(features_ND: Floats) -> bool:
    """Whether there is anything to measure: finite numbers that are not all zero."""
    return bool(features_ND.size and np.isfinite(features_ND).all() and features_ND.any())


def unit_rows(features_ND: Floats) -> Floats:
    """Rows of length 1; one of zeros stays, so that it is like nothing."""
    norms_N = np.sqrt(np.einsum("nd,nd->n", features_ND, features_ND))
    return np.asarray(features_ND / np.where(norms_N > 0, norms_N, 1)[:, None])


def quantiles(values_N: Floats, *shares: float) -> list[float]:
    """Quantiles by linear interpolation, as `numpy.quantile` has them and in a tenth of its time; N > 0."""
    rising_N = np.sort(values_N)
    found = []
    for share in shares:
        place = share * (len(rising_N) - 1)
        low = int(place)
        high = min(low + 1, len(rising_N) - 1)
        found.append(float(rising_N[low] + (rising_N[high] - rising_N[low]) * (place - low)))
    return found


def scaled(values_N: Floats, spread: float) -> Floats:
    """Values from 0 at the 5th percentile to 1 at the 95th, or at `spread` above the 5th where that is further: what
    differs by less is noise, and stretched to 0 to 1 it would look like a picture full of things.
    """
    low, high = quantiles(values_N, LOW, HIGH)
    return np.asarray(((values_N - low) / max(high - low, spread, TINY)).clip(0, 1))


def activation(features_ND: Floats) -> Floats:
    """`a_N` in [0, 1]: how much a unit's features hold, among those of its medium."""
    norms_N = np.sqrt(np.einsum("nd,nd->n", features_ND, features_ND))
    return scaled(norms_N, NORM_SPREAD * float(norms_N.max()))


def relevance(similarity_N: Floats) -> Floats:
    """`r_N` in [0, 1]: how much a unit is about the prompt, among those of its medium."""
    return scaled(similarity_N, COSINE_SPREAD)


def novelty(features_ND: Floats, grids: Grids) -> Floats:
    """`n_N` in [0, 1]: how unlike its four neighbours a unit is; background is near 0, a unit without neighbours 1."""
    found = []
    start = 0
    for rows, columns in grids:
        cells = unit_rows(features_ND[start : start + rows * columns]).reshape(rows, columns, -1)
        start += rows * columns
        below = np.einsum("rcd,rcd->rc", cells[1:], cells[:-1])
        right = np.einsum("rcd,rcd->rc", cells[:, 1:], cells[:, :-1])
        likeness, neighbours = np.zeros((rows, columns)), np.zeros((rows, columns))
        for part, likeness_there in (
            (np.s_[1:], below), (np.s_[:-1], below), (np.s_[:, 1:], right), (np.s_[:, :-1], right),
        ):  # fmt: skip
            likeness[part] += likeness_there
            neighbours[part] += 1
        found.append((1 - likeness / np.maximum(neighbours, 1)).reshape(-1))
    return np.concatenate(found).clip(0, 1)


def similarity(features_ND: Floats, prompt_JD: Floats) -> Floats:
    """`s_N` in [-1, 1]: the cosine of each unit with the word of the prompt that it is most like; 0 without words."""
    if not len(prompt_JD):
        return np.zeros(len(features_ND))
    return np.asarray((unit_rows(features_ND) @ unit_rows(prompt_JD).T).max(1))


def importance(measured_3N: Sequence[Floats], weights: tuple[float, float, float]) -> Floats:
    """`p_N`: activation, novelty and relevance weighted and made to sum to 1; uniform where all are 0 or one is NaN."""
    sum_N = np.zeros(len(measured_3N[0]))
    for weight, values_N in zip(weights, measured_3N, strict=True):
        if weight:
            sum_N = sum_N + weight * values_N
    total = float(sum_N.sum())
    if not (math.isfinite(total) and total > 0):
        return np.full(len(sum_N), 1 / len(sum_N))
    return np.asarray(sum_N / total)


def sparsity(p_N: Floats) -> float:
    """`S` = 1 - exp(H(p)) / N in [0, 1), H in nats: 0 = every unit matters alike, near 1 = one unit is everything."""
    positive = p_N[p_N > 0]
    entropy = -float((positive * np.log(positive)).sum())
    return min(max(1 - math.exp(entropy) / len(p_N), 0.0), 1.0)


def kept_cells(p_N: Floats, grids: Grids, rho: float, kappa_min: float) -> Bools:
    """`kept_N`: the fewest units that hold `rho` of the importance, a share of `kappa_min` at least, each with its
    four neighbours; so |kept| / N is the kept share.
    """
    falling = np.argsort(-p_N, kind="stable")
    reached = int(np.searchsorted(p_N[falling].cumsum(), rho - TINY)) + 1
    count = min(max(reached, math.ceil(kappa_min * len(p_N) - TINY)), len(p_N))
    kept_N = np.zeros(len(p_N), np.bool_)
    kept_N[falling[:count]] = True
    start = 0
    for rows, columns in grids:
        cells = kept_N[start : start + rows * columns].reshape(rows, columns)
        grown = cells.copy()
        grown[1:] |= cells[:-1]
        grown[:-1] |= cells[1:]
        grown[:, 1:] |= cells[:, :-1]
        grown[:, :-1] |= cells[:, 1:]
        kept_N[start : start + rows * columns] = grown.reshape(-1)
        start += rows * columns
    return kept_N


def top_mean(similarity_N: Floats) -> float:
    """The mean of the most similar units, unscaled: scaling would make every picture hold something relevant."""
    count = max(1, min(TOP, len(similarity_N) // TOP_OF))
    return float(np.sort(similarity_N)[-count:].mean())


def needed(coefficients: tuple[float, float, float, float], similar: float, sparse: float, prompt: float) -> float:
    """`R` in [0, 1]: the calibrated probability that the answer changes without the modality; 1 if it is unknown.

    Args:
        coefficients: b_0 .. b_3 of the logistic regression.
        similar: `top_mean`. sparse: `sparsity`. prompt: what the words alone say (`prompt_score`).
    """
    b_0, b_1, b_2, b_3 = coefficients
    score = b_0 + b_1 * similar + b_2 * (1 - sparse) + b_3 * prompt
    return sigmoid(score) if math.isfinite(score) else 1.0


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)), without overflow."""
    return 1 / (1 + math.exp(-score)) if score > 0 else math.exp(score) / (1 + math.exp(score))


def necessity(needed_R: float, kappa_spatial: float, kappa_temporal: float) -> float:
    """`A` = R x kept share of cells x kept share of frames; MAS = 1 - A."""
    return needed_R * kappa_spatial * kappa_temporal
