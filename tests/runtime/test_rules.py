"""What rules commit: the verifier's distribution and no other, however drafts are cut; planted traps fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msao_compile.errors import StageError
from msao_compile.runtime.rules import ACCEPT, DRAFT, GUMBEL, Verdict, chance, choose, perturbed, rejection, same_token
from msao_compile.runtime.sampling import SamplingParameters, pick, probabilities

WORDS, LENGTH, ROUND, ANSWERS = 4, 2, 3, 4000
TEXTS = WORDS**LENGTH
CRITICAL = 50.0
"""Chi-squared with 15 degrees of freedom exceeds it once in 90,000 tries."""
Tables = tuple[np.ndarray, np.ndarray]
Judge = Callable[[np.ndarray, Sequence[int], np.ndarray, int, SamplingParameters, int], Verdict]
Gate = Callable[[np.ndarray, int], str]


def tables(seed: int) -> Tables:
    """Logits [after, token] of a verifier and a drafter; what comes first stands in the last row."""
    found = np.random.default_rng(seed)
    verifier, drafter = (np.log(found.dirichlet(np.full(WORDS, 0.6), WORDS + 1) + 0.01) for _ in range(2))
    return verifier, drafter


def go_on(probs_V: np.ndarray, token: int) -> str:
    """A gate that drafts on."""
    return "keep"


def ask_when_unsure(probs_V: np.ndarray, token: int) -> str:
    """A gate on the distribution alone, before a token is drawn: what the product does."""
    return "stop" if probs_V.max() < 0.5 else "keep"


def write(judge: Judge, gate: Gate, given: Tables, parameters: SamplingParameters) -> tuple[int, ...]:
    """An answer of a toy verifier, drafted by a toy drafter in rounds."""
    verifier, drafter = given
    committed: list[int] = []
    while len(committed) < LENGTH:
        base, before = len(committed), committed[-1] if committed else WORDS
        drafts: list[int] = []
        rows = []
        while len(drafts) < ROUND:
            probs_V = probabilities(drafter[drafts[-1] if drafts else before], parameters)
            token = pick(probs_V, chance(parameters.seed, base + len(drafts), DRAFT))
            said = gate(probs_V, token)
            if said == "stop":
                break
            drafts.append(token)
            rows.append(probs_V)
            if said == "last":
                break
        logits_RV = verifier[[before, *drafts]]
        verdict = judge(logits_RV, drafts, np.array(rows).reshape(-1, WORDS), base, parameters, WORDS)
        committed += [*drafts[: verdict.accepted], verdict.token]
    return tuple(committed[:LENGTH])


def distance(judge: Judge, gate: Gate, seed: int, **sampling: float) -> float:
    """Chi-squared between answers and the verifier's own chance of each."""
    given = tables(seed)
    counts = np.zeros(TEXTS)
    for index in range(ANSWERS):
        parameters = SamplingParameters(temperature=1.0, seed=seed * ANSWERS + index, **sampling)  # type: ignore[arg-type]
        counts[np.ravel_multi_index(write(judge, gate, given, parameters), (WORDS,) * LENGTH)] += 1
    own = probabilities(given[0], SamplingParameters(temperature=1.0, **sampling))  # type: ignore[arg-type]
    wanted = (own[WORDS][:, None] * own[:WORDS]).ravel() * ANSWERS
    assert counts[wanted == 0].sum() == 0
    seen = wanted > 0
    return float(((counts - wanted)[seen] ** 2 / wanted[seen]).sum())


def by_token(
    logits_RV: np.ndarray, drafts: Sequence[int], probs: np.ndarray, base: int, given: SamplingParameters, words: int
) -> Verdict:
    """Rule `gumbel` with the arguments of `rejection`."""
    return same_token(logits_RV, drafts, base, given, words)


@pytest.mark.parametrize(
    ("judge", "gate", "seed"),
    [
        (rejection, go_on, 1),
        (rejection, go_on, 2),
        (rejection, go_on, 3),
        (rejection, ask_when_unsure, 1),
        (rejection, ask_when_unsure, 2),
        (by_token, go_on, 1),
        (by_token, ask_when_unsure, 2),
    ],
)
def test_what_is_committed_has_the_verifiers_distribution(judge: Judge, gate: Gate, seed: int) -> None:
    assert distance(judge, gate, seed) < CRITICAL


@pytest.mark.parametrize("sampling", [{"top_k": 2}, {"top_p": 0.8}])
def test_filters_apply_to_the_verifiers_distribution(sampling: dict[str, float]) -> None:
    assert distance(rejection, go_on, 4, **sampling) < CRITICAL


def drop_what_looks_unlikely(probs_V: np.ndarray, token: int) -> str:
    """The trap: a token that was drawn is thrown away because its own probability is low."""
    return "stop" if probs_V[token] < 0.4 else "keep"


def trusting(
    logits_RV: np.ndarray, drafts: Sequence[int], probs: np.ndarray, base: int, given: SamplingParameters, words: int
) -> Verdict:
    """The trap: a draft of a drafter that is sure is kept without a look."""
    sure = 0
    while sure < len(drafts) and probs[sure].max() > 0.5:
        sure += 1
    rest = rejection(logits_RV[sure:], drafts[sure:], probs[sure:], base + sure, given, words)
    return Verdict(sure + rest.accepted, rest.token)


def inverted(
    logits_RV: np.ndarray, drafts: Sequence[int], probs: np.ndarray, base: int, given: SamplingParameters, words: int
) -> Verdict:
    """The trap: q / p for p / q."""
    return _planted(logits_RV, drafts, probs, base, given, invert=True)


def truncated(
    logits_RV: np.ndarray, drafts: Sequence[int], probs: np.ndarray, base: int, given: SamplingParameters, words: int
) -> Verdict:
    """The trap: what follows a rejection comes of a p that was cut to its two likeliest."""
    return _planted(logits_RV, drafts, probs, base, given, kept=2)


def without_rest(
    logits_RV: np.ndarray, drafts: Sequence[int], probs: np.ndarray, base: int, given: SamplingParameters, words: int
) -> Verdict:
    """The trap: what follows a rejection comes of p and not of (p - q)+."""
    return _planted(logits_RV, drafts, probs, base, given, rest=False)


def one_chance(
    logits_RV: np.ndarray, drafts: Sequence[int], probs: np.ndarray, base: int, given: SamplingParameters, words: int
) -> Verdict:
    """The trap: whether a draft is kept follows from the same chance as which token was drafted."""
    return _planted(logits_RV, drafts, probs, base, given, purpose=DRAFT)


def _planted(
    logits_RV: np.ndarray,
    drafts: Sequence[int],
    probs: np.ndarray,
    base: int,
    given: SamplingParameters,
    invert: bool = False,
    kept: int = WORDS,
    rest: bool = True,
    purpose: int = ACCEPT,
) -> Verdict:
    for index, draft in enumerate(drafts):
        p_V, q_V = probabilities(logits_RV[index], given), probs[index]
        ratio = q_V[draft] / p_V[draft] if invert else p_V[draft] / q_V[draft]
        if chance(given.seed, base + index, purpose).random() >= ratio:
            p_V = np.where(p_V >= np.sort(p_V)[-kept], p_V, 0)
            rest_V = np.maximum(p_V / p_V.sum() - q_V, 0) if rest else p_V
            rest_V = rest_V if rest_V.sum() > 0 else p_V
            return Verdict(index, perturbed(rest_V / rest_V.sum(), given.seed, base + index))
    return Verdict(len(drafts), choose(logits_RV[len(drafts)], base + len(drafts), given, WORDS))


def test_the_planted_rule_without_a_trap_is_the_real_one() -> None:
    assert distance(_planted_whole, go_on, 1) == pytest.approx(distance(rejection, go_on, 1))


def _planted_whole(
    logits_RV: np.ndarray, drafts: Sequence[int], probs: np.ndarray, base: int, given: SamplingParameters, words: int
) -> Verdict:
    return _planted(logits_RV, drafts, probs, base, given)


@pytest.mark.parametrize(
    ("judge", "gate"),
    [
        (rejection, drop_what_looks_unlikely),
        (trusting, go_on),
        (inverted, go_on),
        (truncated, go_on),
        (without_rest, go_on),
        (one_chance, go_on),
    ],
)
def test_each_trap_shows_in_what_is_committed(judge: Judge, gate: Gate) -> None:
    assert distance(judge, gate, 2) > CRITICAL


SPREAD = st.floats(0, 4)
CUTS = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def cut(
    given: Tables, parameters: SamplingParameters, cuts: Sequence[int], length: int, drafts_from: np.random.Generator
) -> list[int]:
    """An answer whose rounds have so many drafts, half of which are the verifier's own tokens and half any."""
    committed: list[int] = []
    while len(committed) < length:
        count = cuts[len(committed) % len(cuts)]
        before, base = committed[-1] if committed else WORDS, len(committed)
        drafts: list[int] = []
        for index in range(count):
            own = choose(given[0][drafts[-1] if drafts else before], base + index, parameters, WORDS)
            drafts.append(own if drafts_from.random() < 0.7 else int(drafts_from.integers(WORDS)))
        verdict = same_token(given[0][[before, *drafts]], drafts, base, parameters, WORDS)
        committed += [*drafts[: verdict.accepted], verdict.token]
    return committed[:length]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**64), cuts=CUTS, temperature=st.sampled_from([0.0, 0.7, 1.5]), noise=st.integers(0, 99))
def test_greedy_and_gumbel_do_not_depend_on_drafts(seed: int, cuts: list[int], temperature: float, noise: int) -> None:
    given, parameters = tables(noise), SamplingParameters(temperature=temperature, seed=seed)
    one_by_one = cut(given, parameters, [0], 9, np.random.default_rng(0))
    assert cut(given, parameters, cuts, 9, np.random.default_rng(noise)) == one_by_one
    for position, (before, token) in enumerate(pairwise([WORDS, *one_by_one])):
        assert choose(given[0][before], position, parameters, WORDS) == token


def test_other_seeds_and_positions_give_other_draws() -> None:
    flat = np.zeros(1000)
    draws = {
        choose(flat, at, SamplingParameters(temperature=1.0, seed=seed), 1000) for at in range(9) for seed in (1, 2)
    }
    assert len(draws) > 15
    numbers = [chance(5, 7, purpose).random() for purpose in (GUMBEL, ACCEPT, DRAFT)]
    assert len(set(numbers)) == 3
    assert chance(5, 7, GUMBEL).random() == numbers[0]


@pytest.mark.parametrize("seed", [2**64 - 1, 2**64, 2**200 + 3])
def test_a_seed_may_be_any_whole_number(seed: int) -> None:
    draws = {choose(np.zeros(9999), 3, SamplingParameters(temperature=1.0, seed=seed + more), 9999) for more in (0, 1)}
    assert len(draws) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_of_the_vocabulary_is_never_chosen(temperature: float) -> None:
    logits = np.array([0.0, 1.0, 0.5, 99.0, 99.0])
    parameters = [SamplingParameters(temperature=temperature, seed=seed) for seed in range(50)]
    assert all(choose(logits, 0, one, 3) < 3 for one in parameters)
    rows, probs = np.tile(logits, (2, 1)), np.array([[0.0, 0.0, 1.0]], np.float32)
    assert all(rejection(rows, [2], probs, 0, one, 3).token < 3 for one in parameters)


def test_a_draft_that_the_drafter_could_not_draw_is_kept_if_the_verifier_may_say_it() -> None:
    """u q < p with q = 0: nothing divides by zero."""
    rows = np.log(np.array([[0.5, 0.5], [0.5, 0.5]]))
    found = rejection(rows, [0], np.array([[0.0, 1.0]]), 0, SamplingParameters(temperature=1.0), 2)
    assert found.accepted == 1


def test_where_both_say_the_same_every_draft_is_kept() -> None:
    rows = np.log(np.tile([0.2, 0.3, 0.5], (4, 1)))
    for seed in range(200):
        parameters = SamplingParameters(temperature=1.0, seed=seed)
        probs = probabilities(rows[:3], parameters)
        drafts = [pick(probs[at], chance(seed, at, DRAFT)) for at in range(3)]
        assert rejection(rows, drafts, probs, 0, parameters, 3).accepted == 3


@pytest.mark.parametrize("parameters", [SamplingParameters(), SamplingParameters(temperature=1.0)])
def test_logits_that_are_not_finite_are_refused(parameters: SamplingParameters) -> None:
    rows = np.array([[0.0, np.nan, 1.0]] * 2)
    with pytest.raises(StageError, match="not finite"):
        same_token(rows, [2], 0, parameters, 3)
    with pytest.raises(StageError, match="not finite"):
        rejection(rows, [2], np.full((1, 3), 1 / 3), 0, parameters, 3)
