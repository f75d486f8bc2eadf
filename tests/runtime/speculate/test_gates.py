"""When a drafter stops and asks: by its distribution and by time, never by the token it drew."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msao_compile.manifest.offload import Acceptance, Speculation
from msao_compile.runtime.sampling import softmax
from msao_compile.runtime.speculate import gates
from msao_compile.runtime.speculate.gates import Pace, confidence, moved, worth_drafting

SETTINGS = Speculation(
    task="vqa", drafter="edge", verifier="cloud", rule="greedy", draft_tokens=8, confidence=0.4, confidence_min=0.1,
    confidence_max=0.9, acceptance=Acceptance(from_confidence=(0.0, 0.5), chance=(0.3, 0.9)),
)  # fmt: skip
TIMES = st.floats(0.01, 1000)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9))
def test_confidence_is_the_chance_of_the_likeliest_token(scores: list[float]) -> None:
    logits = np.array([*scores, 99.0])  # padding of the vocabulary counts for nothing
    assert confidence(logits, len(scores)) == pytest.approx(softmax(logits[: len(scores)]).max())


def test_no_gate_is_given_the_token_that_was_drawn() -> None:
    for gate in (confidence, worth_drafting):
        assert not {"token", "draft", "drawn"} & set(inspect.signature(gate).parameters)
    assert "pick" not in vars(gates)


@given(
    chances=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    drafted=st.integers(0, 20),
    times=st.tuples(TIMES, TIMES, TIMES),
)
def test_a_likelier_draft_is_worth_no_less(
    chances: tuple[float, float], drafted: int, times: tuple[float, float, float]
) -> None:
    pace = Pace(*times)
    low, high = sorted(chances)
    for waiting in (False, True):
        assert worth_drafting(low, drafted, pace, waiting) <= worth_drafting(high, drafted, pace, waiting)
    assert worth_drafting(low, drafted, pace, False) <= worth_drafting(low, drafted, pace, True)


def test_drafting_stops_where_the_expected_rate_would_fall() -> None:
    """By hand: rounds of 100 ms, drafts of 10 + 2 ms; one draft more has to be kept with chance rate x 12."""
    pace = Pace(draft_ms=10, token_ms=2, round_ms=100)
    assert worth_drafting(0.121, 0, pace, False) and not worth_drafting(0.119, 0, pace, False)
    assert worth_drafting(4 * 12 / 136 + 1e-6, 3, pace, False) and not worth_drafting(
        4 * 12 / 136 - 1e-6, 3, pace, False
    )


def test_a_threshold_falls_by_decay_and_rises_the_earlier_the_rejection() -> None:
    assert moved(0.4, 8, 8, SETTINGS) == pytest.approx(0.4 * 0.95)
    for kept in range(8):  # document 4, section 5: t / decay^(g - j + 1), j = kept + 1
        assert moved(0.4, kept, 8, SETTINGS) == pytest.approx(min(0.9, 0.4 / 0.95 ** (8 - kept)))


@given(st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 8)), max_size=60))
def test_a_threshold_stays_between_its_ends(rounds: list[tuple[int, int]]) -> None:
    threshold = SETTINGS.confidence
    for accepted, drafted in rounds:
        threshold = moved(threshold, accepted, drafted, SETTINGS)
        assert SETTINGS.confidence_min <= threshold <= SETTINGS.confidence_max


def test_the_chance_of_a_draft_rises_in_steps() -> None:
    assert [SETTINGS.acceptance.at(sure) for sure in (0.0, 0.49, 0.5, 1.0)] == [0.3, 0.3, 0.9, 0.9]
