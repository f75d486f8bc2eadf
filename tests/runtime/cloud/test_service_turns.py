"""Operations that come twice, too early, at once, or whose client leaves: the session stays whole."""

from __future__ import annotations

import asyncio

import numpy as np
import tiny
from asking import TIMES, cloud, in_virtual_time

from msao_compile.bench.paced import PacedDevice
from msao_compile.manifest.offload import Line
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire.message import Message

from .talk import LIMIT, OTHER, PROMPT, A, B, C, Run, alone, ask, code, decode, free, only, prefill, said, verify


def test_a_round_or_a_closing_that_comes_before_the_prompt_is_run_waits_for_it(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        opening = asyncio.ensure_future(ask(service, prefill(verifier, A, PROMPT)))
        await asyncio.sleep(0)
        reply = await only(service, verify(A, [], answer[:3]))
        assert said([reply]) == answer[:4]
        assert said(await opening) == answer[:1]
        opening = asyncio.ensure_future(ask(service, prefill(verifier, B, OTHER)))
        await asyncio.sleep(0)
        assert (await only(service, Message("close", {"session": B}))).fields["known"]
        await opening
        assert free(service) == 2

    serve(work)


def test_every_operation_may_be_sent_twice_at_once(serve: Run, verifier: ModelSession, answer: list[int]) -> None:
    async def work(service: CloudService) -> None:
        both = await asyncio.gather(*(ask(service, prefill(verifier, A, PROMPT)) for _ in range(3)))
        assert [said(replies) for replies in both] == [answer[:1]] * 3
        rounds = await asyncio.gather(*(only(service, verify(A, answer[:1], answer[1:4])) for _ in range(3)))
        assert [said([reply]) for reply in rounds] == [answer[1:5]] * 3
        streams = await asyncio.gather(*(ask(service, decode(A, answer[:5], 4)) for _ in range(3)))
        assert [said(replies) for replies in streams] == [answer[5:9]] * 3
        assert service.sessions.find(A).committed == answer[:9]  # none of them went on for another
        closings = await asyncio.gather(*(only(service, Message("close", {"session": A})) for _ in range(3)))
        assert sorted(reply.fields["known"] for reply in closings) == [False, False, True]
        assert free(service) == 3

    serve(work)


def test_one_name_opened_over_and_over_beside_others_holds_one_row(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    """Openings of one name while it is closed and verified: nothing runs on a row that is another's."""
    other = alone(verifier, OTHER, LIMIT)

    async def churn(service: CloudService) -> None:
        for _ in range(8):
            work = [ask(service, prefill(verifier, A, PROMPT, committed=answer[:4], stream=2)) for _ in range(2)]
            work += [ask(service, Message("close", {"session": A})), ask(service, verify(A, answer[:4], answer[4:6]))]
            for replies in await asyncio.gather(*work):
                assert replies[-1].kind != "error" or code(replies[-1]) == "unknown_session"

    async def work(service: CloudService) -> None:
        streams = [ask(service, prefill(verifier, name, OTHER, stream=LIMIT)) for name in (B, C)]
        found = await asyncio.gather(churn(service), *streams)
        assert [said(replies) for replies in found[1:]] == [other, other]
        await ask(service, Message("close", {"session": A}))
        assert free(service) == 1

    serve(work)


def test_openings_of_one_name_follow_each_other(verifier: ModelSession, answer: list[int]) -> None:
    """On a single row, which the next one may have only when the one before is whole."""

    async def work() -> None:
        service = CloudService(verifier, CloudLimits(sessions=1))
        for known in (0, 1, 4):
            opening = prefill(verifier, A, PROMPT, committed=answer[:known])
            for replies in await asyncio.gather(*(ask(service, opening) for _ in range(4))):
                assert [reply.kind for reply in replies] == ["ready"]
                assert said(replies) == answer[:1] * (known == 0)
        assert said([await only(service, verify(A, answer[:4], answer[4:6]))]) == answer[4:7]

    asyncio.run(asyncio.wait_for(work(), 60))


def test_an_opening_that_fails_does_not_close_the_next_of_its_name(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        broken = {"inputs_embeds": np.full((1, 4, tiny.HIDDEN), np.nan, np.float32), "position_ids": np.arange(4)[None]}
        fields = prefill(verifier, A, "", form="embeds", offset=[0.0]).fields
        both = await asyncio.gather(
            ask(service, Message("prefill", fields, broken)), ask(service, prefill(verifier, A, PROMPT))
        )
        assert [replies[-1].kind for replies in both] == ["error", "ready"]
        assert said([await only(service, verify(A, answer[:1], answer[1:3]))]) == answer[1:4]

    serve(work)


def test_a_deadline_leaves_the_session_whole(verifier: ModelSession, answer: list[int]) -> None:
    async def work() -> None:
        long = {"encode": Line(fixed_ms=200.0, each_ms=0.0)}
        device = PacedDevice("cloud", TIMES.model_copy(update=long))
        service = CloudService(verifier, CloudLimits(sessions=3), device)
        await ask(service, prefill(verifier, A, PROMPT))
        busy = asyncio.ensure_future(device.run("encode", 1, lambda: None))  # with something else
        await asyncio.sleep(0)
        assert code(await only(service, verify(A, answer[:1], answer[1:4], deadline_ms=20))) == "deadline"
        assert said([await only(service, verify(A, answer[:1], answer[1:4]))]) == answer[1:5]
        await busy
        busy = asyncio.ensure_future(device.run("encode", 1, lambda: None))
        await asyncio.sleep(0)
        replies = await ask(service, prefill(verifier, B, PROMPT, deadline_ms=20, stream=3))
        assert code(replies[-1]) == "deadline"
        assert said([await only(service, verify(B, answer[:1], answer[1:4]))]) == answer[1:5]
        await busy

    in_virtual_time(work())


def test_a_client_that_leaves_in_the_middle_leaves_the_session_whole(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        stream = service.handle(prefill(verifier, A, PROMPT, stream=LIMIT))
        seen = [await anext(stream) for _ in range(3)]
        await stream.aclose()
        assert said(seen) == answer[:3]
        task = asyncio.ensure_future(ask(service, decode(A, answer[:3], 5)))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert said(await ask(service, decode(A, answer[:3], LIMIT - 3))) == answer[3:]
        assert service.gauges()["requests_active"] == 0

    serve(work)


def test_no_room_is_told_with_a_time_and_a_silent_session_makes_room(verifier: ModelSession, answer: list[int]) -> None:
    async def work() -> None:
        service = cloud(verifier, sessions=2, idle_ms=150)
        for name in (A, B):
            await ask(service, prefill(verifier, name, PROMPT))
        told = await only(service, prefill(verifier, C, PROMPT))
        assert code(told) == "busy"
        await asyncio.sleep(told.fields["retry_after_ms"] / 1e3 + 0.02)
        assert said(await ask(service, prefill(verifier, C, PROMPT))) == answer[:1]
        assert code(await only(service, verify(A, answer[:1], []))) == "unknown_session"
        again = await ask(service, prefill(verifier, A, PROMPT, committed=answer[:1], stream=LIMIT))
        assert again[-1].fields.get("code") == "busy" or answer[:1] + said(again) == answer
        assert service.gauges()["sessions_evicted"] >= 1

    in_virtual_time(work())


async def first(service: CloudService, message: Message, client: str) -> Message:
    """The first reply to a request of a client."""
    async for reply in service.handle(message, client):
        return reply
    raise AssertionError("there was none")


def test_a_clients_one_prompt_is_answered_before_most_of_anothers_many(verifier: ModelSession) -> None:
    async def work() -> list[str]:
        service, order = CloudService(verifier, CloudLimits(sessions=16)), []

        async def ask_of(client: str, index: int) -> None:
            reply = await first(service, prefill(verifier, f"{client}-session-{index}", PROMPT), client)
            assert reply.kind == "ready"
            order.append(client)

        await asyncio.gather(*(ask_of("many", index) for index in range(12)), ask_of("one", 0))
        assert service.gauges()["sessions_clients"] == 2
        return order

    assert asyncio.run(asyncio.wait_for(work(), 60)).index("one") == 0


def test_the_rows_of_the_client_that_has_most_make_room_first(verifier: ModelSession) -> None:
    async def work() -> None:
        service = CloudService(verifier, CloudLimits(sessions=3, idle_ms=0))
        for client, name in (("one", A), ("many", B), ("many", C)):
            assert (await first(service, prefill(verifier, name, PROMPT), client)).kind == "ready"
        service.sessions.idle_ms = 1e6
        told = await first(service, prefill(verifier, "session-d", PROMPT), "many")
        assert told.fields["retry_after_ms"] > 5e5  # nobody has to go early for the one that has most
        service.sessions.idle_ms = 0
        assert (await first(service, prefill(verifier, "session-d", PROMPT), "other")).kind == "ready"
        assert set(service.sessions._known) == {A, C, "session-d"}

    asyncio.run(asyncio.wait_for(work(), 60))
