"""Every operation of the contract: what is said of drafts, streams and ends is the model's own answer."""

from __future__ import annotations

import asyncio

import pytest
import tiny

from msao_compile.errors import ContractMismatch, LinkDown, SessionLost
from msao_compile.runtime.cloud.service import CloudService
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import Message

from .talk import LIMIT, PROMPT, A, B, Run, alone, ask, code, decode, only, prefill, said, verify


def test_hello_tells_what_is_served(serve: Run, verifier: ModelSession) -> None:
    async def work(service: CloudService) -> None:
        told = c.read(await only(service, Message("hello", {"contract": c.CONTRACT})), c.REPLIES)
        assert told.modules == verifier.model.components
        assert told.limits.sessions == 3
        assert code(await only(service, Message("hello", {"contract": "msao/0"}))) == "mismatch"
        assert code(await only(service, Message("hello", {"contract": c.CONTRACT, "model": "another"}))) == "mismatch"

    serve(work)


def test_a_stream_is_the_models_own_answer(serve: Run, verifier: ModelSession, answer: list[int]) -> None:
    async def work(service: CloudService) -> None:
        replies = await ask(service, prefill(verifier, A, PROMPT, stream=LIMIT))
        assert said(replies) == answer
        assert [reply.kind for reply in replies] == ["ready", *["token"] * (LIMIT - 1), "done"]
        assert replies[-1].fields["finish"] == "length"

    serve(work)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("burst", [0, 2])
def test_rounds_of_any_drafts_commit_the_models_own_answer(
    serve: Run, verifier: ModelSession, temperature: float, burst: int
) -> None:
    parameters = SamplingParameters(temperature=temperature, seed=7)
    answer = alone(verifier, PROMPT, LIMIT, parameters)
    rule = "gumbel" if temperature else "greedy"

    async def work(service: CloudService) -> None:
        opening = prefill(verifier, A, PROMPT, sampling=vars(parameters), rule=rule)
        known = said(await ask(service, opening))
        for drafts in ([], answer[1:3], [answer[len(known)], 0, 0], [1, 1, 1, 1], answer):
            reply = await only(service, verify(A, known, drafts, burst=burst))
            known += said([reply])
            assert known == answer[: len(known)]
        while len(known) < len(answer):
            known += said([await only(service, verify(A, known, []))])
        assert known == answer

    serve(work)


def test_a_round_that_was_answered_gives_the_same_again_and_runs_nothing(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        for drafts in ([answer[1], answer[2]], [answer[1], 0], []):
            round_ = verify(A, answer[:1], drafts)
            first, steps = await only(service, round_), service.scheduler.steps
            again = await only(service, round_)
            assert service.scheduler.steps == steps
            assert said([again])[: len(said([first]))] == said([first])
            assert said([again]) == answer[1 : 1 + len(said([again]))]

    serve(work)


def test_a_round_that_holds_what_earlier_ones_had_goes_on_behind_it(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        long = await only(service, verify(A, answer[:1], answer[1:7]))  # the later round comes first
        assert said([long]) == answer[1:8]
        short = await only(service, verify(A, answer[:1], answer[1:3]))
        assert said([short]) == answer[1:8]
        assert (short.fields["accepted"], short.fields["stale"]) == (2, False)

    serve(work)


def test_drafts_that_do_not_follow_what_is_committed_are_stale(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT, stream=4))
        steps = service.scheduler.steps
        wrong = (answer[2] + 1) % tiny.VOCABULARY
        reply = await only(service, verify(A, answer[:1], [answer[1], wrong, 5, 5, 5]))
        assert (reply.fields["stale"], reply.fields["accepted"]) == (True, 1)
        assert said([reply]) == answer[1:4]
        assert service.scheduler.steps == steps

    serve(work)


def test_another_beginning_or_a_session_that_is_not_known_has_to_be_opened_again(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        assert code(await only(service, verify(A, [], []))) == "unknown_session"
        assert code(await only(service, decode(A, [], 1))) == "unknown_session"
        await ask(service, prefill(verifier, A, PROMPT, stream=3))
        wrong = [answer[0], (answer[1] + 1) % tiny.VOCABULARY]
        assert code(await only(service, verify(A, wrong, []))) == "unknown_session"
        assert code(await only(service, verify(A, answer[:6], []))) == "unknown_session"
        assert code(await only(service, decode(A, wrong, 3))) == "unknown_session"
        assert said(await ask(service, decode(A, answer[:3], 3))) == answer[3:6]

    serve(work)


def test_an_answer_goes_on_from_what_was_committed_wherever_that_ends(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        for known in range(LIMIT + 1):
            replies = await ask(service, prefill(verifier, A, PROMPT, committed=answer[:known], stream=LIMIT - known))
            assert replies[0].fields["base"] == known
            assert answer[:known] + said(replies) == answer
        assert replies[0].fields["finish"] == "length"

    serve(work)


def test_an_end_is_told_with_the_last_token_and_not_before(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        assert (await only(service, verify(A, answer[:1], answer[1:]))).fields["finish"] == "length"
        replies = await ask(service, decode(A, answer[:1], 3))
        assert (said(replies), replies[-1].fields["finish"]) == (answer[1:4], None)
        replies = await ask(service, decode(A, answer[:4], LIMIT))
        assert (said(replies), replies[-1].fields["finish"]) == (answer[4:], "length")

    serve(work)


def test_a_cloud_that_stops_takes_no_new_answers_and_finishes_those_it_writes(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        stream = asyncio.ensure_future(ask(service, prefill(verifier, A, PROMPT, stream=LIMIT)))
        await asyncio.sleep(0)
        drained = asyncio.ensure_future(service.drain(30))
        await asyncio.sleep(0)
        assert code(await only(service, prefill(verifier, B, PROMPT))) == "busy"
        assert await drained
        assert said(await stream) == answer
        assert not await CloudService.drain(_busy(service), 0.05)

    serve(work)


def _busy(service: CloudService) -> CloudService:
    service._active += 1
    return service


def test_a_link_in_this_process_raises_what_the_cloud_tells(serve: Run, verifier: ModelSession) -> None:
    async def work(service: CloudService) -> None:
        link, traffic = Loopback(service.handle), Traffic()
        with pytest.raises(SessionLost, match="not known here"):
            await anext(link.call(verify(A, [], []), traffic))
        with pytest.raises(ContractMismatch, match="same build"):
            await anext(link.call(prefill(verifier, A, PROMPT, modules={}), traffic))
        assert traffic.up > 0 and traffic.down > 0
        await link.close()
        with pytest.raises(LinkDown, match="closed"):
            await anext(link.call(verify(A, [], []), traffic))

    serve(work)
