"""A drafter answers alone only where that was allowed and it was sure, and what it says then is told as unverified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import tiny
from asking import Asked, at_once, faulty, in_virtual_time

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.speculate.drafter import Drafter
from msao_compile.runtime.wire.faulty import Faults

from .test_client import LIMIT, PROMPTS, Pair, drafted, own


def _check_mixed(edge: ModelSession, index: int, asked: Asked, wanted: list[int]) -> None:
    """What was verified is the cloud's; what follows is the drafter's own, without a token lost or doubled."""
    verified = len(asked.tokens) - asked.account.unverified
    assert asked.tokens[:verified] == wanted[:verified]
    drafter = Drafter(edge, "greedy", SamplingParameters())
    drafter.prefill(edge.prepare(tiny.prompt(index), ()), {}, Clock())
    for at in range(verified, len(asked.tokens)):
        assert drafter.draft(asked.tokens[:at]).token == asked.tokens[at]
    assert len(asked.tokens) == LIMIT or drafter.draft(asked.tokens).token == tiny.END or asked.tokens == wanted


@dataclass(frozen=True)
class Sure:
    """Answers stand whose least sure token is so sure."""

    least: float
    first: bool

    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether a whole answer stands."""
        return min(confidences) >= self.least

    def hopeless(self, confidences: Sequence[float]) -> bool:
        """Whether no answer that begins so can stand."""
        return min(confidences) < self.least


LATE_MS = (0.5, 2.0, 4.0, 20.0)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("late_ms", LATE_MS)
def test_a_drafter_that_was_never_sure_answers_nothing_alone(pair: Pair, late_ms: float, first: bool) -> None:
    async def run() -> None:
        link, _ = faulty(pair[1], Faults(late_ms=late_ms), seed=1)
        never = await at_once(PROMPTS, lambda index: drafted(pair, link, index, 0.0, 4, alone=Sure(1.01, first)))
        assert [one.tokens for one in never] == await own(pair[1], 0.0)  # type: ignore[attr-defined]
        assert not any(one.account.unverified for one in never)  # type: ignore[attr-defined]

    in_virtual_time(run())


@pytest.mark.parametrize("first", [False, True])
def test_a_drafter_that_is_sure_of_every_draft_answers_alone_what_the_cloud_is_too_late_for_and_says_so(
    pair: Pair, first: bool
) -> None:
    async def run() -> list[list[float]]:
        """For each link how much of each answer is unverified."""
        wanted, shares = await own(pair[1], 0.0), []
        for late_ms in LATE_MS:
            link, _ = faulty(pair[1], Faults(late_ms=late_ms), seed=1)
            every = await at_once(
                PROMPTS,
                lambda index, link=link: drafted(pair, link, index, 0.0, 4, alone=Sure(0.0, first), pause_s=0.004),  # type: ignore[misc]
            )
            for index, asked in enumerate(every):
                assert isinstance(asked, Asked)
                _check_mixed(pair[0], index, asked, wanted[index])
            shares.append([one.account.unverified / len(one.tokens) for one in every])  # type: ignore[attr-defined]
        return shares

    shares = in_virtual_time(run())
    if first:  # who asks only when in doubt never asks
        assert shares == [[1.0] * PROMPTS] * len(LATE_MS)
        return
    alone = [sum(share == 1 for share in row) for row in shares]
    assert alone == sorted(alone) and alone[0] < PROMPTS / 4 < PROMPTS / 2 < alone[-1]
    assert any(0 < share < 1 for row in shares for share in row)  # begun by the cloud and ended by the drafter
