"""What a drafter may give without the cloud: whole answers of its own, which is all that a bound was shown of."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
from asking import QUICK, opening, plan_for

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.cloud.service import CloudService
from msao_compile.runtime.device import Device
from msao_compile.runtime.remote import RemoteSession
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.speculate.client import Speculator
from msao_compile.runtime.speculate.drafter import Draft, Drafter
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.loopback import Loopback

LIMIT = 16


class Heard:
    """Takes every answer, and keeps what it was told of how sure the drafter was."""

    first = False

    def __init__(self) -> None:
        self.told: list[list[float]] = []

    def enough(self, confidences: Sequence[float]) -> bool:
        self.told.append(list(confidences))
        return True

    def hopeless(self, confidences: Sequence[float]) -> bool:
        return False


@pytest.mark.parametrize(
    ("committed", "given"),
    [
        ((), [5, 6]),
        ((5,), [5, 6]),  # what the cloud said as well is still the drafter's own
        ((7,), None),  # the cloud said another token
        ((5, 6, 8), None),  # the cloud went further than the drafter
    ],
)
def test_only_a_whole_answer_of_the_drafters_own_is_given_alone(
    pair: tuple[ModelSession, ModelSession], committed: tuple[int, ...], given: list[int] | None
) -> None:
    message, heard = opening(pair[1], tiny.prompt(1), LIMIT, SamplingParameters(), "greedy"), Heard()
    remote = RemoteSession(Loopback(CloudService(pair[1]).handle), message, Clock(), Traffic(), QUICK)
    drafter = Drafter(pair[0], "greedy", SamplingParameters())
    speculator = Speculator(drafter, Device("edge"), remote, plan_for(pair[0], 4, LIMIT, alone=heard))
    speculator.ahead = [Draft(5, 0.5), Draft(6, 0.6)]
    remote.take(0, committed, None)
    speculator._settle()
    speculator.ahead += [Draft(tiny.END, 0.9)] if speculator.ahead else [Draft(9, 0.8), Draft(tiny.END, 0.9)]
    whole = speculator._stands()
    assert (None if whole is None else whole[1]) == given
    assert heard.told == ([] if given is None else [[0.5, 0.6, 0.9]])
