"""Every operation of the contract: twice, too early, too late, wrong, and beside others that must not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import tiny
from asking import TIMES, cloud, in_virtual_time
from hypothesis import given, settings
from hypothesis import strategies as st

from msao_compile.bench.paced import PacedDevice
from msao_compile.errors import ContractMismatch, LinkDown, SessionLost
from msao_compile.manifest.offload import Line
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import Message

from .talk import alone, ask, code, decode, only, prefill, said, verify

A, B, C = "session-a", "session-b", "session-c"
PROMPT, OTHER = tiny.prompt(4), tiny.prompt(5)
LIMIT = 12
Run = Callable[[Callable[[CloudService], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture
def serve(verifier: ModelSession) -> Run:
    """`serve(work)`: what `work` gives with a fresh cloud of three sessions."""
    return lambda work: asyncio.run(asyncio.wait_for(work(CloudService(verifier, CloudLimits(sessions=3))), 60))


@pytest.fixture(scope="module")
def answer(verifier: ModelSession) -> list[int]:
    found = alone(verifier, PROMPT, LIMIT)
    assert len(found) == LIMIT  # no stop token on the way
    return found


def free(service: CloudService) -> int:
    """Rows that nobody has."""
    rows = []
    while (row := service.rows.open()) is not None:
        rows.append(row)
    for row in rows:
        service.rows.close(row)
    return len(rows)


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


def test_reject_needs_the_probabilities_its_drafts_were_drawn_from(
    serve: Run, verifier: ModelSession, answer: list[int]
) -> None:
    async def work(service: CloudService) -> None:
        sampling = {"temperature": 1.0, "seed": 3}
        known = said(await ask(service, prefill(verifier, A, PROMPT, rule="reject", sampling=sampling)))
        flat = np.full((2, tiny.VOCABULARY), 1 / tiny.VOCABULARY)
        for probs in (None, flat[:1], flat[:, :-1], flat * np.nan, -flat):
            assert code(await only(service, verify(A, known, [1, 2], probs))) == "bad_request"
        known += said([await only(service, verify(A, known, [1, 2], flat))])
        known += said([await only(service, verify(A, known, []))])  # a drafter that was unsure at once
        assert len(known) >= 3

    serve(work)


WRONG: dict[str, Callable[[ModelSession], Message]] = {
    "draft beyond the vocabulary": lambda model: verify(A, [], [tiny.VOCABULARY]),
    "negative draft": lambda model: verify(A, [], [-1]),
    "too many drafts": lambda model: verify(A, [], [1] * (c.MOST_DRAFTS + 1)),
    "no drafts at all": lambda model: Message("verify", verify(A, [], []).fields),
    "drafts as floats": lambda model: Message("verify", verify(A, [], []).fields, {c.DRAFTS: np.ones(2, np.float32)}),
    "drafts in a matrix": lambda model: Message(
        "verify", verify(A, [], []).fields, {c.DRAFTS: np.ones((1, 2), np.int64)}
    ),
    "another array": lambda model: Message("decode", decode(A, [], 1).fields, {"more": np.ones(2, np.float32)}),
    "negative base": lambda model: verify(A, [], [], base=-1),
    "negative burst": lambda model: verify(A, [], [], burst=-1),
    "huge burst": lambda model: verify(A, [], [], burst=10**9),
    "no hash": lambda model: verify(A, [], [], prefix="none"),
    "no deadline": lambda model: verify(A, [], [], deadline_ms=0),
    "count 0": lambda model: decode(A, [], 0),
    "limit 0": lambda model: prefill(model, C, PROMPT, limit=0),
    "huge limit": lambda model: prefill(model, C, PROMPT, limit=2**40),
    "more than fits": lambda model: prefill(model, C, PROMPT, limit=tiny.CAPACITY),
    "empty prompt": lambda model: prefill(model, C, "  "),
    "half a character": lambda model: prefill(model, C, "\ud800"),
    "a name with a path": lambda model: prefill(model, "../../etc/passwd", PROMPT),
    "a short name": lambda model: prefill(model, "a", PROMPT),
    "unknown field": lambda model: prefill(model, C, PROMPT, more=1),
    "unknown rule": lambda model: prefill(model, C, PROMPT, rule="best"),
    "cold temperature": lambda model: prefill(model, C, PROMPT, sampling={"temperature": -1.0}),
    "no temperature": lambda model: prefill(model, C, PROMPT, sampling={"temperature": float("nan")}),
    "negative seed": lambda model: prefill(model, C, PROMPT, sampling={"seed": -1}),
    "committed beyond the limit": lambda model: prefill(model, C, PROMPT, committed=[1] * 13),
    "committed beyond the vocabulary": lambda model: prefill(model, C, PROMPT, committed=[tiny.VOCABULARY]),
    "negative committed": lambda model: prefill(model, C, PROMPT, committed=[-1]),
    "embeds without arrays": lambda model: prefill(model, C, "", form="embeds"),
    "features without arrays": lambda model: prefill(model, C, "", form="features"),
    "a picture for a model without": lambda model: Message(
        "prefill", prefill(model, C, PROMPT).fields, {"picture000": np.ones(9, np.uint8)}
    ),
    "an array beside a prompt": lambda model: Message(
        "prefill", prefill(model, C, PROMPT).fields, {"input_ids": np.ones(2, np.int64)}
    ),
    "ids beyond the vocabulary": lambda model: Message(
        "prefill", prefill(model, C, "", form="features").fields, {"input_ids": np.full(3, 99)}
    ),
    "unknown kind": lambda model: Message("reboot"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_so_and_nobody_notices(serve: Run, verifier: ModelSession, what: str) -> None:
    answer = alone(verifier, PROMPT, 4)

    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        expected = "too_long" if what == "more than fits" else "bad_request"
        assert code(await only(service, WRONG[what](verifier))) == expected
        assert said([await only(service, verify(A, answer[:1], answer[1:3]))]) == answer[1:4]
        assert free(service) == 2

    serve(work)


@pytest.mark.parametrize("shape", [(1, 40, tiny.HIDDEN), (1, 40, 3), (40, tiny.HIDDEN), (2, 40, tiny.HIDDEN)])
@pytest.mark.parametrize("value", [1.0, np.nan, np.inf, 3e38])
def test_embeddings_of_any_kind_spoil_no_other_session(
    serve: Run, verifier: ModelSession, answer: list[int], shape: tuple[int, ...], value: float
) -> None:
    """What is not finite would stay in a row that a mask hides, for the next session that has it."""

    async def work(service: CloudService) -> None:
        tensors = {"inputs_embeds": np.full(shape, value, np.float32), "position_ids": np.arange(40)[None]}
        fields = prefill(verifier, A, "", form="embeds", offset=[0.0]).fields
        replies = await ask(service, Message("prefill", fields, tensors))
        assert replies[-1].kind == ("ready" if value == 1.0 and shape == (1, 40, tiny.HIDDEN) else "error")
        await ask(service, Message("close", {"session": A}))
        for name in (A, B, C):
            assert said(await ask(service, prefill(verifier, name, PROMPT, stream=LIMIT))) == answer

    serve(work)


def test_strange_positions_harm_only_whoever_sent_them(serve: Run, verifier: ModelSession, answer: list[int]) -> None:
    async def work(service: CloudService) -> None:
        await ask(service, prefill(verifier, A, PROMPT))
        for offset in ([], [0.0] * 50, [1e300], [float("nan")], [-5.0]):
            tensors = {"inputs_embeds": np.ones((1, 3, tiny.HIDDEN), np.float32), "position_ids": np.arange(3)[None]}
            fields = prefill(verifier, B, "", form="embeds", offset=offset, stream=5).fields
            both = await asyncio.gather(
                ask(service, Message("prefill", fields, tensors)), ask(service, decode(A, answer[:1], LIMIT - 1))
            )
            assert said(both[1]) == answer[1:]

    serve(work)


def test_another_build_is_refused(serve: Run, verifier: ModelSession) -> None:
    async def work(service: CloudService) -> None:
        for changed in ({"modules": {"decoder": "0" * 64}}, {"tokenizer": "0" * 64}):
            assert code(await only(service, prefill(verifier, A, PROMPT, **changed))) == "mismatch"
        assert free(service) == 3

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


FIELD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip
NAMES = st.sampled_from(sorted({
    *c.Prefill.model_fields, *c.Verify.model_fields, *c.Decode.model_fields, *c.Hello.model_fields, "more"
}))  # fmt: skip
ARRAY = st.builds(
    lambda shape, kind, value: np.full(shape, value).astype(kind),
    st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["int64", "float32", "uint8", "bool", "float16", "int32"]),
    st.integers(-3, 60),
)  # fmt: skip
ARRAYS = st.dictionaries(
    st.sampled_from([c.DRAFTS, c.DRAFT_PROBS, "picture000", "inputs_embeds", "position_ids", "input_ids", "x"]), ARRAY,
    max_size=3,
)  # fmt: skip
KINDS = st.sampled_from([*c.REQUESTS, "token", ""])


@settings(max_examples=150, deadline=None)
@given(kind=KINDS, changed=st.dictionaries(NAMES, FIELD, max_size=3), tensors=ARRAYS, whole=st.booleans())
def test_no_message_raises_or_reaches_another_session(
    verifier: ModelSession, answer: list[int], kind: str, changed: dict[str, Any], tensors: dict[str, Any], whole: bool
) -> None:
    """Messages that are nearly right, and any at all, beside a session that goes on."""
    near: dict[str, Message] = {
        "prefill": prefill(verifier, B, PROMPT, stream=2), "verify": verify(B, answer[:1], answer[1:3]),
        "decode": decode(B, answer[:1], 2), "close": Message("close", {"session": B}),
        "hello": Message("hello", {"contract": c.CONTRACT}),
    }  # fmt: skip

    async def work() -> None:
        service = CloudService(verifier, CloudLimits(sessions=3))
        await ask(service, prefill(verifier, A, PROMPT))
        await ask(service, prefill(verifier, B, PROMPT))
        base = near.get(kind) if whole else None
        given_ = Message(kind, changed, tensors)
        if base is not None:
            given_ = Message(kind, {**base.fields, **changed}, {**base.tensors, **tensors})
        if given_.fields.get("session") == A:
            return
        replies, own = await asyncio.gather(ask(service, given_), ask(service, decode(A, answer[:1], 5)))
        assert said(own) == answer[1:6]
        assert replies
        assert [reply.kind for reply in replies[:-1]].count("error") == 0
        if replies[-1].kind == "error":
            assert code(replies[-1]) in {*c.PLAIN, *c.ERRORS}

    asyncio.run(work())


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
