"""A drafted answer is the cloud's own, whatever happens to the link; and where it cannot be, it says so in time.

All of it is in virtual time, so that what overtakes what is the same on any machine, however slow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import tiny
from asking import EVERYTHING, QUICK, Asked, Asker, at_once, cloud, faulty, in_virtual_time, opening, plan_for

from msao_compile.errors import Busy, ContractMismatch, InputError, LinkDown, RemoteError
from msao_compile.manifest.offload import Rule
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.device import loop_ms
from msao_compile.runtime.remote import Patience, Quiet, RemoteSession
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.speculate.client import ENOUGH
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.faulty import Faults, FaultyLink
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import Message

LIMIT, PROMPTS = 16, 16
Pair = tuple[ModelSession, ModelSession]
ONE_BY_ONE = {entry.name: 0.15 for entry in fields(Faults) if not entry.name.endswith("_ms")}


def sampling(temperature: float, seed: int) -> SamplingParameters:
    return SamplingParameters(temperature=temperature, seed=seed)


async def own(verifier: ModelSession, temperature: float, count: int = PROMPTS) -> list[list[int]]:
    """What the cloud alone says, over a link without faults."""
    asker = Asker(verifier, Loopback(cloud(verifier).handle))

    async def one(index: int) -> list[int]:
        given = opening(verifier, tiny.prompt(index), LIMIT, sampling(temperature, index), "gumbel")
        return (await asker.streamed(given)).tokens

    return await at_once(count, one)  # type: ignore[return-value]


async def drafted(
    pair: Pair, link: FaultyLink | Loopback, index: int, temperature: float, drafts: int, **plan: object
) -> Asked:
    """One question, speculated over a link."""
    edge, verifier = pair
    given = sampling(temperature, index)
    rule: Rule = "gumbel" if temperature else "greedy"
    message = opening(verifier, tiny.prompt(index), LIMIT, given, rule)
    patience = plan.get("patience", QUICK)
    assert isinstance(patience, Patience)
    pause_s = plan.pop("pause_s", 0.0)
    assert isinstance(pause_s, float)
    asker = Asker(edge, link, patience, pause_s=pause_s)
    request = edge.prepare(tiny.prompt(index), ())
    return await asker.drafted(message, request, plan_for(edge, drafts, LIMIT, **plan), given)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafts", [1, 4, 8])
@pytest.mark.parametrize("rounds", [1, 4])
def test_a_drafted_answer_is_the_clouds_own_under_every_fault(
    pair: Pair, temperature: float, drafts: int, rounds: int
) -> None:
    async def run() -> None:
        wanted = await own(pair[1], temperature)
        link, _ = faulty(pair[1], EVERYTHING, seed=drafts + rounds)
        found = await at_once(PROMPTS, lambda index: drafted(pair, link, index, temperature, drafts, rounds=rounds))
        assert [one.tokens for one in found] == wanted  # type: ignore[attr-defined]
        assert sum(one.account.accepted for one in found) > PROMPTS  # type: ignore[attr-defined]
        assert not any(one.account.unverified for one in found)  # type: ignore[attr-defined]
        assert sum(link.seen.values()) > 20

    in_virtual_time(run())


def test_on_threads_of_real_devices_it_is_the_clouds_own_as_well(pair: Pair) -> None:
    async def run() -> None:
        wanted = await own(pair[1], 1.0)
        link, _ = faulty(pair[1], EVERYTHING, seed=9)
        long = replace(QUICK, silence_ms=60_000.0)  # on a slow machine as well a cloud that is silent is a lost one
        found = await at_once(PROMPTS, lambda index: drafted(pair, link, index, 1.0, 4, patience=long), 4)
        assert [one.tokens for one in found] == wanted  # type: ignore[attr-defined]

    asyncio.run(run())


@pytest.mark.parametrize("fault", ONE_BY_ONE)
def test_each_fault_by_itself_changes_nothing_but_time(pair: Pair, fault: str) -> None:
    async def run() -> None:
        wanted = await own(pair[1], 0.0)
        faults = Faults(**{fault: ONE_BY_ONE[fault]}, late_ms=1.0, stall_ms=5.0)
        link, _ = faulty(pair[1], faults, seed=3)
        found = await at_once(PROMPTS, lambda index: drafted(pair, link, index, 0.0, 4, burst=2))
        assert [one.tokens for one in found] == wanted  # type: ignore[attr-defined]
        streamed = await at_once(PROMPTS, lambda index: Asker(pair[1], link).streamed(
            opening(pair[1], tiny.prompt(index), LIMIT, sampling(0.0, index), "greedy")))  # fmt: skip
        assert [one.tokens for one in streamed] == wanted  # type: ignore[attr-defined]
        assert link.seen[fault] > 2

    in_virtual_time(run())


def test_rule_reject_ends_under_every_fault_and_loses_no_token(pair: Pair) -> None:
    async def one(link: FaultyLink, index: int) -> Asked:
        edge, verifier = pair
        given = sampling(1.0, index)
        message = opening(verifier, tiny.prompt(index), LIMIT, given, "reject")
        request = edge.prepare(tiny.prompt(index), ())
        plan = plan_for(edge, 4, LIMIT, rule="reject")
        return await Asker(edge, link).drafted(message, request, plan, given)

    async def run() -> None:
        link, _ = faulty(pair[1], EVERYTHING, seed=5)
        for asked in await at_once(PROMPTS, lambda index: one(link, index)):
            assert isinstance(asked, Asked)
            assert asked.tokens == asked.remote.committed
            assert asked.remote.finish == ("length" if len(asked.tokens) == LIMIT else "stop")

    in_virtual_time(run())


class Silent:
    """A link to a cloud that takes everything and says nothing."""

    async def call(self, message: Message, traffic: Traffic):
        await asyncio.sleep(3600)
        yield message

    async def close(self) -> None:
        """Nothing is open."""


DEAD = Faults(lost_before=1.0)
SHORT = Patience(tries=3, wait_ms=1.0, silence_ms=50.0)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("streams", [False, True])
def test_a_cloud_that_stays_away_ends_in_a_typed_error_in_time(pair: Pair, silent: bool, streams: bool) -> None:
    async def run() -> float:
        link = Silent() if silent else FaultyLink(Loopback(cloud(pair[1]).handle), DEAD, 1)
        message = opening(pair[1], tiny.prompt(1), LIMIT, sampling(0.0, 1), "greedy")
        with pytest.raises(LinkDown):
            if streams:
                await Asker(pair[0], link, SHORT).streamed(message)  # type: ignore[arg-type]
            else:
                await drafted(pair, link, 1, 0.0, 4, patience=SHORT)  # type: ignore[arg-type]
        return loop_ms()

    silent_ms, waits_ms = SHORT.silence_ms * SHORT.tries * silent, 1.0 + 2.0
    assert in_virtual_time(run()) - silent_ms - waits_ms == pytest.approx(0.5, abs=0.51)  # a draft may be under way


def test_where_it_is_allowed_the_drafter_ends_the_answer_and_says_so(pair: Pair) -> None:
    async def run() -> None:
        link = FaultyLink(Loopback(cloud(pair[1]).handle), DEAD, 1)
        alone = await drafted(pair, link, 1, 0.0, 4, unverified=True, patience=SHORT)
        assert alone.account.unverified == len(alone.tokens) > 0
        assert alone.remote.committed == []

    in_virtual_time(run())


def test_silence_is_bounded_as_a_whole_before_the_drafter_ends_the_answer(pair: Pair) -> None:
    async def run() -> float:
        patience = Patience(tries=99, wait_ms=1.0, silence_ms=60_000.0, quiet_ms=300.0)
        alone = await drafted(pair, Silent(), 1, 0.0, 4, unverified=True, patience=patience)  # type: ignore[arg-type]
        assert alone.account.unverified == len(alone.tokens) > 0
        return loop_ms()

    assert in_virtual_time(run()) < 1000


class Breaking:
    """A link that fails for good after so many requests."""

    def __init__(self, link: Loopback, after: int) -> None:
        self.link, self.left = link, after

    async def call(self, message: Message, traffic: Traffic):
        self.left -= 1
        if self.left < 0:
            raise LinkDown("the cloud was killed")
        async for reply in self.link.call(message, traffic):
            yield reply

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_what_was_committed_stays_when_the_drafter_goes_on_alone(pair: Pair, after: int) -> None:
    async def run() -> None:
        [wanted] = await own(pair[1], 0.0, 1)
        link = Breaking(Loopback(cloud(pair[1]).handle), after)
        asked = await drafted(pair, link, 0, 0.0, 2, unverified=True, patience=SHORT, rounds=1)  # type: ignore[arg-type]
        known = asked.remote.committed
        assert known == wanted[: len(known)] == asked.tokens[: len(known)]
        assert asked.account.unverified == len(asked.tokens) - len(known)
        assert len(known) > 0

    in_virtual_time(run())


def test_another_models_cloud_is_refused_at_once_and_nothing_is_shown(pair: Pair) -> None:
    async def run() -> None:
        link = Loopback(cloud(pair[0]).handle)  # it serves the drafter
        with pytest.raises(ContractMismatch, match="same build"):
            await drafted(pair, link, 1, 0.0, 4, unverified=True)

    in_virtual_time(run())


def test_a_cloud_without_room_is_asked_again_when_it_said_and_then_given_up(pair: Pair) -> None:
    async def run() -> None:
        service = cloud(pair[1], sessions=2, idle_ms=60)
        link = Loopback(service.handle)
        holders = [RemoteSession(link, opening(pair[1], tiny.prompt(9), LIMIT, sampling(0.0, 1), "greedy"),
                                 Clock(), Traffic(), SHORT) for _ in range(2)]  # fmt: skip
        for holder in holders:
            async for _ in holder.open():
                continue
        [wanted] = await own(pair[1], 0.0, 1)
        assert (await drafted(pair, link, 0, 0.0, 4)).tokens == wanted  # they were silent for long
        for session in service.sessions._known.values():
            session.working = 1
        with pytest.raises(Busy):
            await drafted(pair, link, 0, 0.0, 4, patience=Patience(tries=2, wait_ms=1), unverified=True)

    in_virtual_time(run())


def test_a_drafter_that_cannot_run_is_told_and_one_that_is_not_needed_is_not(pair: Pair) -> None:
    async def run() -> None:
        edge, verifier = pair
        link, given = Loopback(cloud(verifier).handle), sampling(0.0, 1)
        message = opening(verifier, tiny.prompt(1), LIMIT, given, "greedy")
        wrong = replace(edge.prepare(tiny.prompt(1), ()), tensors={"pixel_values": np.zeros((1, 3, 4, 4))})
        with pytest.raises(InputError, match="no encoder"):
            await Asker(edge, link).drafted(message, wrong, plan_for(edge, 4, LIMIT), given)

    in_virtual_time(run())


def test_whoever_leaves_in_the_middle_leaves_no_session_behind(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        service = cloud(pair[1])
        link = Loopback(service.handle)
        left = 0
        for half_ms in range(60):
            task = asyncio.ensure_future(drafted(pair, link, 3, 0.0, 4))
            await asyncio.sleep(half_ms / 2e3)
            task.cancel()
            await asyncio.wait([task])
            left += task.cancelled()
        assert 10 < left < 60  # at any moment of an answer, and behind its end
        await asyncio.sleep(0.1)
        assert not [session for session in service.sessions._known.values() if session.finish is None]

    with caplog.at_level(logging.ERROR):
        in_virtual_time(run())
    assert not caplog.records


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_the_wall_clock_may_jump(pair: Pair, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    times = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: next(times) * jump)
    monkeypatch.setattr(time, "time_ns", lambda: int(next(times) * jump))

    async def run() -> None:
        [wanted] = await own(pair[1], 0.0, 1)
        assert (await drafted(pair, Loopback(cloud(pair[1]).handle), 0, 0.0, 4)).tokens == wanted

    in_virtual_time(run())


def test_a_cloud_that_contradicts_itself_is_not_believed(pair: Pair) -> None:
    message = opening(pair[1], tiny.prompt(1), LIMIT, sampling(0.0, 1), "greedy")
    remote = RemoteSession(Silent(), message, Clock(), Traffic(), SHORT)  # type: ignore[arg-type]
    remote.take(0, [1, 2, 3], None)
    remote.take(1, [2], "length")  # older than what is known: its end is not ours
    assert (remote.committed, remote.finish) == ([1, 2, 3], None)
    for base, tokens in ((0, [1, 9]), (4, [5]), (2, [4, 5])):
        with pytest.raises(RemoteError, match="changed its mind"):
            remote.take(base, tokens, None)
    remote.take(2, [3, 4], "stop")
    assert (remote.committed, remote.finish) == ([1, 2, 3, 4], "stop")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_that_turns_to_streaming_in_the_middle_is_the_same(pair: Pair, temperature: float) -> None:
    async def run() -> None:
        wanted = await own(pair[1], temperature)
        link, _ = faulty(pair[1], EVERYTHING, seed=11)
        never, often = (lambda kept, of: False), (lambda kept, of: kept > 0.6 * of)
        for more in ({"stream": True}, {"goes_on": never}, {"goes_on": often}):
            found = await at_once(PROMPTS, lambda index, more=more: drafted(pair, link, index, temperature, 4, **more))  # type: ignore[misc]
            assert [one.tokens for one in found] == wanted  # type: ignore[attr-defined]
            given_up = [one.account.given_up for one in found]  # type: ignore[attr-defined]
            assert set(given_up) == {0} if "stream" in more else max(given_up) >= ENOUGH

    in_virtual_time(run())


def test_a_stream_whose_cloud_stays_away_is_ended_by_a_drafter_that_had_not_begun(pair: Pair) -> None:
    async def run() -> None:
        link = FaultyLink(Loopback(cloud(pair[1]).handle), DEAD, 1)
        asked = await drafted(pair, link, 1, 0.0, 4, stream=True, unverified=True, patience=SHORT)
        assert asked.account.unverified == len(asked.tokens) > 0
        with pytest.raises(LinkDown):
            await drafted(pair, link, 1, 0.0, 4, stream=True, patience=SHORT)

    in_virtual_time(run())


def test_an_answer_that_is_opened_again_does_not_take_more_room(pair: Pair) -> None:
    """Two rows, and none of them is silent for long: whatever is lost has to be given back."""

    async def run() -> None:
        wanted = await own(pair[1], 0.0)
        link, [service] = faulty(pair[1], Faults(lost_after=0.3), seed=2, sessions=2, idle_ms=1e6)
        for index in range(PROMPTS):
            asked = await drafted(pair, link, index, 0.0, 4, patience=Patience(tries=12, wait_ms=1.0))
            assert asked.tokens == wanted[index]
        assert link.seen["lost_after"] > 10
        assert service.gauges()["sessions"] <= 2

    in_virtual_time(run())


def test_no_wait_is_longer_than_a_cloud_may_be_silent() -> None:
    patience = Patience(tries=99, wait_ms=1.0, silence_ms=20.0)

    async def run() -> float:
        with pytest.raises(Busy, match="tomorrow"):
            await patience.again(Busy("tomorrow", 86_400_000), 1, Quiet())
        await patience.again(LinkDown("down"), 60, Quiet())
        return loop_ms()

    assert in_virtual_time(run()) == pytest.approx(patience.silence_ms)
