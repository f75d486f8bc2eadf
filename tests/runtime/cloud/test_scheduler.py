"""Who is served when: prompts and answers do not starve each other, and one that fails harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
import tiny

from msao_compile.errors import Busy, MsaoError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.cloud.rows import Apart, Row, Rows, SideBySide
from msao_compile.runtime.cloud.scheduler import Scheduler
from msao_compile.runtime.device import Device, Work
from msao_compile.runtime.session import ModelSession, Request


def rows_of(session: ModelSession, count: int = 3, together: bool = True) -> Rows:
    slab = session.decoder.new_slab(tiny.CAPACITY, count)
    assert slab is not None
    return SideBySide(session, slab) if together else Apart(session, count)


def opened(rows: Rows, prompt: Sequence[int]) -> Row:
    row = rows.open()
    assert row is not None
    rows.prefill(row, Request(np.asarray(prompt, np.int64), {}), {}, Clock())
    return row


def test_a_flood_of_prompts_lets_an_answer_go_on_and_the_answer_lets_them_in(verifier: ModelSession) -> None:
    rows, served = rows_of(verifier), []
    scheduler = Scheduler(rows, Device("cloud"), most_waiting=100)

    async def answer(row: Row) -> None:
        for _ in range(10):
            await scheduler.step(row, np.asarray([4]), lambda logits: served.append("token"))

    async def prompt() -> None:
        await scheduler.alone("prefill", 1, lambda: served.append("prompt"))

    async def run() -> None:
        row = opened(rows, [1, 2])
        await asyncio.gather(answer(row), *(prompt() for _ in range(40)))

    asyncio.run(run())
    during = served[: len(served) - served[::-1].index("token")]
    assert during.count("token") == 10
    assert 8 <= during.count("prompt") <= 12  # one between two steps
    assert served.count("prompt") == 40


@pytest.mark.parametrize("together", [True, False])
def test_a_flood_of_tokens_lets_a_prompt_in_at_once(verifier: ModelSession, together: bool) -> None:
    rows, served = rows_of(verifier), []
    scheduler = Scheduler(rows, Device("cloud"), most_waiting=100, together=together)

    async def answer(row: Row) -> None:
        for _ in range(12):
            await scheduler.step(row, np.asarray([4]), lambda logits: served.append("token"))

    async def run() -> None:
        answers = [asyncio.ensure_future(answer(opened(rows, [1, 2]))) for _ in range(3)]
        while len(served) < 3:
            await asyncio.sleep(0)
        await scheduler.alone("prefill", 1, lambda: served.append("prompt"))
        await asyncio.gather(*answers)

    asyncio.run(run())
    assert served.index("prompt") <= 12
    assert scheduler.widest == (3 if together else 1)
    assert scheduler.tokens == 36


def test_a_clients_prompts_are_served_in_the_order_they_came(verifier: ModelSession) -> None:
    scheduler = Scheduler(rows_of(verifier), Device("cloud"), most_waiting=100)
    served: list[int] = []

    async def run() -> None:
        work = [scheduler.alone("prefill", 1, lambda one=one: served.append(one)) for one in range(9)]  # type: ignore[misc]
        await asyncio.gather(*work)

    asyncio.run(run())
    assert served == list(range(9))


def test_too_many_prompts_are_told_when_to_come_back_but_those_that_began_go_on(verifier: ModelSession) -> None:
    scheduler = Scheduler(rows_of(verifier), Device("cloud"), most_waiting=2)

    async def run() -> list[object]:
        work = [scheduler.alone("prepare", 1, lambda: 1) for _ in range(5)]
        work += [scheduler.alone("prefill", 1, lambda: 2) for _ in range(2)]
        return list(await asyncio.gather(*work, return_exceptions=True))

    found = asyncio.run(run())
    assert found[:2] == [1, 1] and found[5:] == [2, 2]
    for error in found[2:5]:
        assert isinstance(error, Busy)
        assert error.retry_after_ms > 0


def test_one_prompt_of_a_client_does_not_wait_behind_fifty_of_another(verifier: ModelSession) -> None:
    scheduler = Scheduler(rows_of(verifier), Device("cloud"), most_waiting=100)
    served: list[str] = []

    async def run() -> None:
        many = [scheduler.alone("prefill", 9, lambda: served.append("many"), "many") for _ in range(50)]
        await asyncio.gather(*many, scheduler.alone("prefill", 9, lambda: served.append("one"), "one"))

    asyncio.run(run())
    assert served.index("one") == 1
    assert len(served) == 51


def test_a_full_queue_puts_out_the_newest_of_whoever_has_most_and_nothing_that_began(verifier: ModelSession) -> None:
    scheduler = Scheduler(rows_of(verifier), Device("cloud"), most_waiting=4)
    served: list[str] = []

    async def run() -> list[object]:
        async def ask(kind: Work, name: str, client: str) -> None:
            await scheduler.alone(kind, 1, lambda: served.append(name), client)

        work = [ask("prepare", f"many {index}", "many") for index in range(3)]
        work += [ask("prefill", "many began", "many"), ask("prepare", "one", "one"), ask("prepare", "many 3", "many")]
        work += [ask("prepare", "one again", "one"), ask("prepare", "other", "other")]
        return list(await asyncio.gather(*work, return_exceptions=True))

    found = asyncio.run(run())
    assert [isinstance(one, Busy) for one in found] == [False, True, True, False, False, True, True, False]
    assert all(one.retry_after_ms > 0 for one in found if isinstance(one, Busy))
    assert served == ["many 0", "one", "other", "many began"]
    assert scheduler.gauges()["prompts_put_out"] == 2


@pytest.mark.parametrize("together", [True, False])
def test_a_step_that_fails_harms_no_other(verifier: ModelSession, together: bool) -> None:
    """A row that is full, and a judge that raises, among others that go on as if alone."""
    rows = rows_of(verifier, 4, together)
    scheduler = Scheduler(rows, Device("cloud"), most_waiting=9)
    well = [opened(rows, [1, 2]), opened(rows, [3])]
    full, torn = opened(rows, [5] * (tiny.CAPACITY - 1)), opened(rows, [6])
    tokens = [[4], [7, 8], [9, 9, 9], [10]]

    def tear(logits: np.ndarray) -> None:
        raise ZeroDivisionError

    async def run() -> list[object]:
        work = [scheduler.step(row, np.asarray(ids), np.copy) for row, ids in zip([*well, full], tokens, strict=False)]
        return list(await asyncio.gather(*work, scheduler.step(torn, np.asarray([1]), tear), return_exceptions=True))

    found = asyncio.run(run())
    alone = Apart(verifier, 2)
    for row, prompt, ids, logits in zip(well, ([1, 2], [3]), tokens, found, strict=False):
        [wanted] = alone.step([(opened(alone, prompt), np.asarray(ids))])
        np.testing.assert_allclose(np.asarray(logits), wanted, atol=1e-4)
        assert row.length == len(prompt) + len(ids)
    assert isinstance(found[2], MsaoError)
    assert isinstance(found[3], ZeroDivisionError)
    assert full.length == tiny.CAPACITY - 1


def test_whoever_gave_up_waiting_holds_nobody_up(verifier: ModelSession) -> None:
    rows = rows_of(verifier)
    scheduler = Scheduler(rows, Device("cloud"), most_waiting=9)

    async def run() -> float:
        one, other = opened(rows, [1]), opened(rows, [2])
        gone = asyncio.ensure_future(scheduler.step(one, np.asarray([4]), np.copy))
        await asyncio.sleep(0)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        return float((await scheduler.step(other, np.asarray([4]), np.copy)).sum())

    assert asyncio.run(asyncio.wait_for(run(), 20)) != 0


def test_one_by_one_is_what_batching_is_measured_against(verifier: ModelSession) -> None:
    rows = rows_of(verifier)
    scheduler = Scheduler(rows, Device("cloud"), most_waiting=9, together=False)

    async def run() -> None:
        work = [scheduler.step(opened(rows, [1]), np.asarray([4]), np.copy) for _ in range(3)]
        await asyncio.gather(*work)

    asyncio.run(run())
    assert (scheduler.steps, scheduler.widest) == (3, 1)
