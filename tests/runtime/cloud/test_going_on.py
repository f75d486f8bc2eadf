"""A cloud that goes on by itself: behind a prompt, and behind a draft that it refused, until it is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import tiny

from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire.message import Message

from .talk import alone, ask, only, prefill, said, verify

A = "session-a"
PROMPT = tiny.prompt(4)
LIMIT = 12
Run = Callable[[Callable[[CloudService], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture
def serve(verifier: ModelSession) -> Run:
    return lambda work: asyncio.run(asyncio.wait_for(work(CloudService(verifier, CloudLimits(sessions=3))), 60))


@pytest.fixture(scope="module")
def answer(verifier: ModelSession) -> list[int]:
    return alone(verifier, PROMPT, LIMIT)


async def until(service: CloudService, message: Message, count: int) -> tuple[list[Message], Any]:
    """The first replies to a request, and the rest of them."""
    replies = service.handle(message)
    return [await anext(replies) for _ in range(count)], replies


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_behind_a_refused_draft_the_cloud_tells_so_many_tokens_of_its_own_answer(
    serve: Run, verifier: ModelSession, temperature: float
) -> None:
    parameters = SamplingParameters(temperature=temperature, seed=7)
    own = alone(verifier, PROMPT, LIMIT, parameters)
    fields = {"sampling": vars(parameters), "rule": "gumbel" if temperature else "greedy"}

    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT, **fields))
        wrong = (own[2] + 1) % tiny.VOCABULARY
        replies = await ask(service, verify(A, own[:1], [own[1], wrong, wrong], rest=3))
        assert [reply.kind for reply in replies] == ["judged", "token", "token", "token", "done"]
        assert (replies[0].fields["accepted"], replies[0].fields["drafted"]) == (1, 3)
        assert said(replies) == own[1:6]
        reply = await only(service, verify(A, own[:6], own[6:8], rest=3))  # nothing of it is refused
        assert (reply.kind, said([reply])) == ("verified", own[6:9])

    serve(work)


def test_the_next_round_that_is_judged_ends_it(serve: Run, verifier: ModelSession, answer: list[int]) -> None:
    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        wrong = (answer[1] + 1) % tiny.VOCABULARY
        first, rest = await until(service, verify(A, answer[:1], [wrong], rest=9), 2)
        assert [reply.kind for reply in first] == ["judged", "token"]
        assert said([await only(service, verify(A, answer[:3], answer[3:5]))]) == answer[3:6]
        left = [reply async for reply in rest]
        assert [reply.kind for reply in left] == ["token"] * (len(left) - 1) + ["done"]
        assert said([*first, *left]) == answer[1 : 1 + len(said([*first, *left]))]
        assert left[-1].fields["known"] == 6  # nothing was decoded behind that round

    serve(work)


def test_a_round_that_does_not_fit_any_more_ends_nothing(serve: Run, verifier: ModelSession, answer: list[int]) -> None:
    """Rounds that were on their way when a draft of theirs was refused."""

    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        wrong = (answer[1] + 1) % tiny.VOCABULARY
        first, rest = await until(service, verify(A, answer[:1], [wrong], rest=4), 1)
        stale = await only(service, verify(A, answer[:1], [wrong, wrong, wrong], rest=4))
        assert (stale.kind, stale.fields["stale"]) == ("verified", True)
        assert said([*first, *[reply async for reply in rest]]) == answer[1:6]

    serve(work)


def test_behind_a_prompt_it_goes_on_until_a_round_is_judged(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        first, rest = await until(service, prefill(verifier, A, PROMPT, stream=LIMIT, until_asked=True), 3)
        assert [reply.kind for reply in first] == ["ready", "token", "token"]
        known = said(first)
        assert said([await only(service, verify(A, known, answer[len(known) :][:2]))]) == answer[3:6]
        assert said([*first, *[reply async for reply in rest]])[:6] == answer[:6]
        assert service.scheduler.tokens == 2 + 3  # two that it decoded by itself, and the round with its token before

    serve(work)


def test_a_round_that_waits_for_the_prompt_comes_before_what_the_cloud_decodes(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        opening = asyncio.ensure_future(ask(service, prefill(verifier, A, PROMPT, stream=LIMIT, until_asked=True)))
        await asyncio.sleep(0)
        assert said([await only(service, verify(A, [], answer[:3]))]) == answer[:4]
        assert said(await opening) == answer[: len(said(await opening))]
        assert service.scheduler.steps == 1

    serve(work)
