"""Which tokens a verifier commits: pure arithmetic, whose chance follows from a seed and a position alone.

Because chance belongs to a position, an answer is the same however it is cut into rounds, resumed, or decoded token by
token: under `greedy` and `gumbel` what is committed depends on the verifier and the seed, never on the drafts.

Shape suffixes: K drafts of a round, R = K + 1 rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msao_compile.runtime.sampling import Floats, SamplingParameters, likeliest, mask_vocabulary, probabilities

GUMBEL, ACCEPT, DRAFT = 0, 1, 2
"""Chance of its own for the verifier's choice, for keeping a draft, and for the drafter."""


@dataclass(frozen=True)
class Verdict:
    """`accepted` of the drafts are kept, and after them the verifier's own `token`."""

    accepted: int
    token: int


def chance(seed: int, position: int, purpose: int) -> np.random.Generator:
    """The chance of one position of an answer; another purpose is independent of it."""
    key, counter = np.array([seed & (2**64 - 1), purpose], np.uint64), np.array([0, 0, 0, position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def choose(logits_V: Floats, position: int, parameters: SamplingParameters, vocabulary: int) -> int:
    """The token at a position of the answer: the likeliest, or argmax(log p + G) with Gumbel noise of the position.

    That is a draw from p (Gumbel 1954, "the Gumbel-max trick").

    Raises:
        StageError: the logits are not finite.
    """
    if parameters.greedy:
        return likeliest(logits_V[:vocabulary])
    return perturbed(probabilities(mask_vocabulary(logits_V, vocabulary), parameters), parameters.seed, position)


def perturbed(probs_V: NDArray[np.float64], seed: int, position: int) -> int:
    """argmax(log p + G) where G follows from seed and position."""
    noise_V = chance(seed, position, GUMBEL).gumbel(size=probs_V.shape[-1])
    with np.errstate(divide="ignore"):
        return int(np.argmax(np.log(probs_V) + noise_V))


def same_token(
    logits_RV: Floats, drafts_K: Sequence[int], base: int, parameters: SamplingParameters, vocabulary: int
) -> Verdict:
    """Rules `greedy` and `gumbel`: a draft is kept where it is the verifier's own choice at its position.

    Row i of the logits tells of position `base` + i.

    Raises:
        StageError: as `choose`.
    """
    for index, draft in enumerate(drafts_K):
        token = choose(logits_RV[index], base + index, parameters, vocabulary)
        if token != draft:
            return Verdict(index, token)
    return Verdict(len(drafts_K), choose(logits_RV[len(drafts_K)], base + len(drafts_K), parameters, vocabulary))


def rejection(
    logits_RV: Floats,
    drafts_K: Sequence[int],
    draft_probs_KV: Floats,
    base: int,
    parameters: SamplingParameters,
    vocabulary: int,
) -> Verdict:
    """Rule `reject`: a draft x drawn from q is kept with chance min(1, p(x) / q(x)), else a token of (p - q)+ follows.

    The distribution of what is committed is exactly p (Leviathan et al. 2023, Chen et al. 2023). q must be the very
    distribution that the draft was drawn from, and p the whole one.

    Raises:
        StageError: as `choose`.
    """
    for index, draft in enumerate(drafts_K):
        position = base + index
        probs_V = probabilities(mask_vocabulary(logits_RV[index], vocabulary), parameters)[:vocabulary]
        draft_V = np.asarray(draft_probs_KV[index], np.float64)[:vocabulary]
        u = chance(parameters.seed, position, ACCEPT).random()
        if not u * draft_V[draft] < probs_V[draft]:
            rest_V = np.maximum(probs_V - draft_V, 0)
            total = rest_V.sum()
            rest_V = rest_V / total if total > 0 else probs_V
            return Verdict(index, perturbed(rest_V, parameters.seed, position))
    last = len(drafts_K)
    return Verdict(last, choose(logits_RV[last], base + last, parameters, vocabulary))
