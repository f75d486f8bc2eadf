"""Continuous batching: every step takes the waiting tokens of all sessions, prompts go in between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from msao_compile.errors import Busy
from msao_compile.runtime.cloud.rows import Row, Rows
from msao_compile.runtime.cloud.turns import Turns
from msao_compile.runtime.device import Device, Work, loop_ms
from msao_compile.runtime.link_state import Average

T = TypeVar("T")
PIECES = 3
"""Of a prompt with a picture: prepared, encoded, run."""
PROMPT_WORK: tuple[Work, ...] = ("prepare", "encode", "prefill")
PROMPT_MS = 50.0
"""What a prompt takes, before one was run here."""


@dataclass
class _Step:
    row: Row
    ids: np.ndarray
    judge: Callable[[np.ndarray], Any]
    future: asyncio.Future[Any]
    since_ms: float


@dataclass
class _Alone:
    kind: Work
    count: int
    work: Callable[[], Any]
    future: asyncio.Future[Any]
    since_ms: float


class Scheduler:
    """Gives a device its work: steps of all sessions together, and one prompt between two steps.

    So a long queue of prompts holds up no answer that is being written for longer than one of them takes, and no
    prompt waits for the end of an answer. A client's prompts are served in the order they came, and those of several
    clients in turns: next is the client of whose prompts least was run. A full queue puts out the newest prompt of the
    client that has most of them waiting.

    `together` False runs each session's step alone: what batching is measured against.
    """

    def __init__(self, rows: Rows, device: Device, most_waiting: int, together: bool = True) -> None:
        self.rows, self.device, self.most_waiting, self.together = rows, device, most_waiting, together
        self._steps: deque[_Step] = deque()
        self._alone: Turns[_Alone] = Turns()
        self._task: asyncio.Task[None] | None = None
        self.steps, self.tokens, self.widest, self.prompts, self.put_out = 0, 0, 0, 0, 0
        self._piece_wait, self._step_wait = Average(), Average()

    @property
    def prompt_wait_ms(self) -> float:
        """How long a prompt waits lately, all its pieces together."""
        return self._piece_wait.mean * PIECES

    @property
    def step_wait_ms(self) -> float:
        """How long a step waits lately for what runs before it."""
        return self._step_wait.mean

    @property
    def waiting(self) -> int:
        """Pieces of work that wait."""
        return len(self._steps) + len(self._alone)

    def gauges(self) -> dict[str, float]:
        """What waits now and how long it does lately, in milliseconds, and what was done so far."""
        return {
            "work_waiting": self.waiting,
            "prompts_waiting": len(self._alone),
            "prompts_put_out": self.put_out,
            "prompt_wait_ms": self.prompt_wait_ms,
            "clients_waiting": len(self._alone.waiting()),
            "steps_waiting": len(self._steps),
            "step_wait_ms": self.step_wait_ms,
            "steps": self.steps,
            "step_tokens": self.tokens,
            "rows_widest": self.widest,
        }

    async def step(self, row: Row, ids: np.ndarray, judge: Callable[[np.ndarray], T]) -> T:
        """Append tokens to a row at the next step; gives what `judge` makes of logits [n, V] there."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._steps.append(_Step(row, ids, judge, future, loop_ms()))
        self._wake()
        return await future

    async def alone(self, kind: Work, count: int, work: Callable[[], T], client: str = "") -> T:
        """Run something of one session, in the turn of its client.

        Raises:
            Busy: too many wait already for a session to begin, and no client has more of them than this one; or one
                that has fewer came while this waited. A session that began goes on.
        """
        if kind == "prepare" and len(self._alone) >= self.most_waiting:
            self._make_room(client)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._alone.add(client, _Alone(kind, count, work, future, loop_ms()), count)
        self._wake()
        return await future

    def _make_room(self, client: str) -> None:
        begins = self._alone.waiting(_begins)
        most = max(begins, key=begins.__getitem__, default=client)
        if begins.get(most, 0) <= begins.get(client, 0) + 1:  # else the two would only change places
            raise self._busy(client)
        gone = self._alone.put_out(most, _begins)
        if gone is not None:
            self.put_out += 1
            _settle(gone.future, self._busy(most))

    def _busy(self, client: str) -> Busy:
        """To be told to a client: it is served in turns with all others, and at worst behind all that wait."""
        spent = sum(self.device.busy_ms.get(kind, 0.0) for kind in PROMPT_WORK)
        each_ms = spent / self.prompts if self.prompts else PROMPT_MS
        waiting = self._alone.waiting()
        ahead = min(max(waiting.get(client, 0), 1) * max(len(waiting), 1), len(self._alone))
        return Busy(
            f"{len(self._alone)} prompts wait at this cloud already, {waiting.get(client, 0)} of them of this client: "
            "try again later",
            max(int(each_ms * ahead), 1),
        )

    def _wake(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        after_steps = True
        while self._steps or self._alone:
            if self._alone and (after_steps or not self._steps):
                await self._one()
            else:
                await self._together()
            after_steps = not after_steps

    async def _one(self) -> None:
        item = self._alone.take()
        self._piece_wait.add(loop_ms() - item.since_ms)
        self.prompts += item.kind == "prefill"
        outcome = await self.device.run(item.kind, item.count, lambda: _tried(item.work))
        _settle(item.future, outcome)

    async def _together(self) -> None:
        taken = [self._steps.popleft() for _ in range(len(self._steps) if self.together else 1)]
        for step in taken:
            self._step_wait.add(loop_ms() - step.since_ms)
        count = sum(len(step.ids) for step in taken)
        self.steps, self.tokens = self.steps + 1, self.tokens + count
        self.widest = max(self.widest, len(taken))
        kind: Work = "decode" if count == len(taken) else "verify"

        outcomes = await self.device.run(kind, count, lambda: self._stepped(taken))
        for step, outcome in zip(taken, outcomes, strict=True):
            _settle(step.future, outcome)

    def _stepped(self, taken: list[_Step]) -> list[Any]:
        """What each step came to. Where they fail together each runs alone, so that only what is at fault fails."""
        lengths = [step.row.length for step in taken]
        logits = _tried(lambda: self.rows.step([(step.row, step.ids) for step in taken]))
        if not isinstance(logits, BaseException):
            return [_tried(partial(step.judge, rows)) for step, rows in zip(taken, logits, strict=True)]
        for step, length in zip(taken, lengths, strict=True):
            if step.row.length > length:
                self.rows.rollback(step.row, length)
        return [logits] if len(taken) == 1 else [self._stepped([step])[0] for step in taken]


def _begins(item: _Alone) -> bool:
    """Whether it is the first piece of a prompt: so nothing is lost where it is put out."""
    return item.kind == "prepare"


def _tried(work: Callable[[], Any]) -> Any:
    """What it gives, or what it raised, for whoever waits for it."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - it is raised again where the request is awaited
        return error


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.cancelled():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
