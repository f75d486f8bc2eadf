"""What a drafter makes of an answer that its cloud left to it: what it looks at, and what is told of the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import tiny
from asking import cloud, device, in_virtual_time, opening, plan_for

from msao_compile.errors import CapacityExceeded
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.remote import RemoteSession
from msao_compile.runtime.speculate.client import Speculator
from msao_compile.runtime.speculate.drafter import Drafter, Piece
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.faulty import FaultyLink
from msao_compile.runtime.wire.loopback import Loopback
from tests.runtime.speculate.test_client import DEAD, LIMIT, SHORT, Pair, drafted, own, sampling


@pytest.mark.parametrize("fits", [True, False])
def test_who_has_to_finish_alone_looks_at_everything_where_that_fits(pair: Pair, fits: bool) -> None:
    """Here everything is another prompt, so that the answer tells what was looked at."""

    async def run() -> None:
        edge = pair[0]

        def refused() -> None:
            raise CapacityExceeded("too long")

        def whole(drafter: Drafter) -> Iterator[Piece]:
            seen.append(drafter)
            yield from drafter.opening(lambda: edge.prepare(tiny.prompt(2 if fits else 1), ()), 0, Clock())
            if not fits:
                yield "prepare", 1, refused

        answers = []
        for index in (1, 2):
            link = FaultyLink(Loopback(cloud(pair[1]).handle), DEAD, 1)
            answers.append(
                (await drafted(pair, link, index, 0.0, 4, stream=True, unverified=True, patience=SHORT)).tokens
            )
        seen: list[Drafter] = []
        link = FaultyLink(Loopback(cloud(pair[1]).handle), DEAD, 1)
        message = opening(pair[1], tiny.prompt(1), LIMIT, sampling(0.0, 1), "greedy")
        remote = RemoteSession(link, message, Clock(), Traffic(), SHORT)
        drafter = Drafter(edge, "greedy", sampling(0.0, 1))
        speculator = Speculator(
            drafter, device("edge"), remote, plan_for(edge, 4, LIMIT, unverified=True, patience=SHORT)
        )
        pieces = drafter.opening(lambda: edge.prepare(tiny.prompt(1), ()), 0, Clock())
        found = [token async for token in speculator.tokens(pieces, whole)]
        assert answers[0] != answers[1] and found == answers[fits]
        assert speculator.drafter is (seen[0] if fits else drafter)

    in_virtual_time(run())


@pytest.mark.parametrize("known", [0, 3])
def test_an_end_that_the_drafter_alone_came_to_is_told_as_unverified(pair: Pair, known: int) -> None:
    """Also where every token before it is the cloud's: it may have had more to say."""

    async def run() -> None:
        edge, verifier = pair
        [wanted] = await own(verifier, 0.0, 1)
        link = FaultyLink(Loopback(cloud(verifier).handle), DEAD, 1)
        message = opening(verifier, tiny.prompt(0), LIMIT, sampling(0.0, 0), "greedy")
        remote = RemoteSession(link, message, Clock(), Traffic(), SHORT)
        remote.take(0, wanted[:known], None)
        drafter = Drafter(edge, "greedy", sampling(0.0, 0))
        for _, _, work in drafter.opening(lambda: edge.prepare(tiny.prompt(0), ()), 0, Clock()):
            work()
        stops = frozenset((drafter.draft(wanted[:known]).token,))
        plan = replace(plan_for(edge, 4, LIMIT, unverified=True, patience=SHORT), stops=stops)
        speculator = Speculator(drafter, device("edge"), remote, plan)
        found = [token async for token in speculator.tokens([])]
        remote.leave()
        assert found == wanted[:known] and speculator.account.unverified == 1

    in_virtual_time(run())
