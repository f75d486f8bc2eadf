"""A drafter says what its model would after any beginning, wherever the last one ended."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from asking import alone
from hypothesis import given, settings
from hypothesis import strategies as st

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.rules import choose
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.speculate.drafter import Drafter

Pair = tuple[ModelSession, ModelSession]
TOKEN = st.integers(0, tiny.VOCABULARY - 1)
WARM = SamplingParameters(temperature=1.0, seed=4)


def begun(session: ModelSession, rule: str, sampling: SamplingParameters) -> Drafter:
    drafter = Drafter(session, rule, sampling)  # type: ignore[arg-type]
    drafter.prefill(session.prepare(tiny.prompt(2), ()), {}, Clock())
    return drafter


@settings(max_examples=40, deadline=None)
@given(answers=st.lists(st.lists(TOKEN, max_size=12), min_size=1, max_size=8))
def test_any_order_of_beginnings_gives_what_each_gives_alone(pair: Pair, answers: list[list[int]]) -> None:
    edge = pair[0]
    drafter = begun(edge, "gumbel", WARM)
    for answer in answers:
        logits, talk = edge.prefill(edge.prepare(tiny.prompt(2), ()), {}, Clock())
        row = edge.extend(np.asarray(answer, np.int64), talk, Clock())[-1] if answer else logits[-1]
        draft = drafter.draft(answer)
        assert draft.token == choose(row, len(answer), WARM, tiny.VOCABULARY)
        assert draft.probs_V is None and 0 < draft.confidence <= 1


@pytest.mark.parametrize("sampling", [SamplingParameters(), WARM])
def test_drafts_one_after_the_other_are_the_models_own_answer(pair: Pair, sampling: SamplingParameters) -> None:
    edge = pair[0]
    [wanted] = alone(edge, edge.prepare(tiny.prompt(2), ()), 10, [sampling])
    drafter, answer = begun(edge, "gumbel", sampling), []
    for _ in wanted:
        answer.append(drafter.draft(answer).token)
    assert answer == wanted


def test_rule_reject_tells_the_very_distribution_it_drew_from(pair: Pair) -> None:
    sampling = SamplingParameters(temperature=1.0, seed=4, top_k=3)
    draft = begun(pair[0], "reject", sampling).draft([1, 2])
    assert draft.probs_V is not None
    assert draft.probs_V.dtype == np.float32 and draft.probs_V.shape == (tiny.VOCABULARY,)
    assert np.count_nonzero(draft.probs_V) == 3 and draft.probs_V[draft.token] > 0
    assert draft.probs_V.sum() == pytest.approx(1)


def test_a_draft_follows_its_seed_and_position_alone(pair: Pair) -> None:
    drafter = begun(pair[0], "reject", WARM)
    first = [drafter.draft([1] * count).token for count in range(6)]
    again = [drafter.draft([1] * count).token for count in reversed(range(6))][::-1]
    assert first == again


def test_a_drafter_drafts_after_its_prompt(pair: Pair) -> None:
    drafter = Drafter(pair[0], "greedy", SamplingParameters())
    assert not drafter.began
    with pytest.raises(InputError, match="after its prompt"):
        drafter.draft([])
