"""Drafting and verifying at once: the drafter goes on from its own guesses while rounds are on their way.

A round holds every draft that is not committed, those of earlier rounds under way too: so the cloud needs none of the
earlier ones to judge it, and lost, late or reordered replies change nothing but time. What is shown is what the cloud
committed, or, where the cloud stays away and the caller allows it, what the drafter says, marked as unverified.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from msao_compile.errors import Busy, CapacityExceeded, RemoteError
from msao_compile.runtime.device import Device
from msao_compile.runtime.remote import AGAIN, RemoteSession
from msao_compile.runtime.speculate.drafter import Draft, Drafter, Piece
from msao_compile.runtime.speculate.gates import moved, worth_drafting
from msao_compile.runtime.speculate.plan import Account, Plan
from msao_compile.runtime.wire.contract import MOST_DRAFTS, Verified

ENOUGH = 8
"""Drafts that were judged and tell how well they fare."""


@dataclass
class _Round:
    base: int
    drafts: int
    first: int  # of the drafts, those before were in earlier rounds


@dataclass
class Speculator:
    """One answer. `committed` lives in `remote`; `ahead` are drafts behind it, `sent` of which are under way."""

    drafter: Drafter
    device: Device
    remote: RemoteSession
    plan: Plan
    account: Account = field(default_factory=Account)
    ahead: list[Draft] = field(default_factory=list)
    sent: int = 0
    unsure: bool = False

    def __post_init__(self) -> None:
        self.threshold = self.plan.settings.confidence
        self._under_way: dict[asyncio.Task[Verified | None], _Round] = {}
        self._shown = self._settled = self._tried = 0
        self._streaming = self.plan.stream
        self._asked = False
        self._own: list[float] | None = []

    async def tokens(
        self, opening: Iterable[Piece], whole: Callable[[Drafter], Iterable[Piece]] | None = None
    ) -> AsyncIterator[int]:
        """The answer's tokens as they are committed; `opening` runs the drafter's prompt while the cloud's crosses.

        Where that shows the drafter less than the cloud sees, `whole` shows it all to one that has to finish alone.

        Raises:
            RemoteError: the cloud stayed away and `unverified` is not allowed, or as `RemoteSession`.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._streaming and self.plan.alone is None:
            ready.set_result(None)  # the drafter has nothing to do, unless the cloud stays away
        else:
            ready = asyncio.ensure_future(self._begun(opening))
            ready.add_done_callback(lambda done: done.cancelled() or done.exception())  # the answer may end without it
        try:
            if self.plan.alone is None or not self.plan.alone.first:
                self._ask()
            stands: tuple[int, list[int]] | None = None
            while not self._ended and (stands := self._stands()) is None:
                async for token in self._news():
                    yield token
                try:
                    await self._advance(ready)
                    self._settle()
                except AGAIN as error:
                    if not await self._again(error):
                        break
            async for token in self._news() if stands is None else self._given(*stands):
                yield token
            if not self._ended and stands is None:
                await ready
                if whole is not None:
                    await self._look_at_all(whole)
                if not self.drafter.began:
                    await self._begun(opening)
                async for token in self._alone():
                    yield token
        finally:
            ready.cancel()
            await self._stop()

    async def _advance(self, ready: asyncio.Future[None]) -> None:
        """The next thing there is to do: a draft, a round, or to wait for what is under way."""
        if not ready.done():
            await self._something(ready)
        elif self._drafting():
            ready.result()
            await self._draft()
        elif self._under_way:
            await self._something()
        else:
            self._send()

    async def _something(self, *others: asyncio.Future[Any]) -> None:
        """Wait for a reply, a token, or what else is given."""
        grown = asyncio.ensure_future(self.remote.grown.wait())
        try:
            await asyncio.wait([*others, *self._under_way, grown], return_when=asyncio.FIRST_COMPLETED)
        finally:
            grown.cancel()
        self.remote.grown.clear()

    async def _look_at_all(self, whole: Callable[[Drafter], Iterable[Piece]]) -> None:
        """What does not fit the drafter whole is finished from what it saw."""
        again = self.drafter.anew()
        with suppress(CapacityExceeded):
            await self._begun(whole(again))
            self.drafter = again

    async def _begun(self, opening: Iterable[Piece]) -> None:
        for kind, count, work in opening:
            await self.device.run(kind, count, work)

    @property
    def _ended(self) -> bool:
        return self.remote.finish is not None

    @property
    def limit(self) -> int:
        """How long the answer may be: as asked, or as the cloud said, or as the drafter has room for."""
        said = self.remote.extent.limit or self.drafter.room
        return min(said if self.plan.limit is None else self.plan.limit, self.drafter.room)

    def _stands(self) -> tuple[int, list[int]] | None:
        """The answer that drafts end, where it stands without the cloud, and how far it is verified.

        It is taken at one moment: what the cloud commits while it is shown changes it no more.
        """
        self._trim()
        if self.plan.alone is None or not self.ahead or self._own is None:
            return None
        known, drafts = len(self.remote.committed), [draft.token for draft in self.ahead]
        stops = drafts[-1] in self.plan.stops
        ends = stops or known + len(drafts) >= self.limit
        if not ends or not self.plan.alone.enough([*self._own, *(draft.confidence for draft in self.ahead)]):
            return None
        return known, [*self.remote.committed, *drafts[: len(drafts) - stops]]

    async def _given(self, known: int, answer: list[int]) -> AsyncIterator[int]:
        self.account.alone = 1
        while self._shown < len(answer):
            self.account.unverified += self._shown >= known
            self._shown += 1
            yield answer[self._shown - 1]
        self._ended_alone()

    async def _news(self) -> AsyncIterator[int]:
        while self._shown < len(self.remote.committed):
            self._shown += 1
            yield self.remote.committed[self._shown - 1]

    def _drafting(self) -> bool:
        """Whether another draft may be made now."""
        known = len(self.remote.committed) + len(self.ahead)
        at_end = self.ahead and self.ahead[-1].token in self.plan.stops
        window = min(self.plan.settings.draft_tokens * self.plan.rounds, MOST_DRAFTS)
        if self.plan.alone is not None:
            window = MOST_DRAFTS
        room = (
            self.plan.alone is not None
            or len(self._under_way) < self.plan.rounds
            or len(self.ahead) - self.sent < self.plan.settings.draft_tokens
        )
        if self._streaming and (self.plan.alone is None or self._doubted):
            return False
        return not self.unsure and not at_end and known < self.limit and len(self.ahead) < window and room

    @property
    def _doubted(self) -> bool:
        """Whether the drafter cannot answer alone any more."""
        alone = self.plan.alone
        if alone is None or self._own is None:
            return True
        sure = [*self._own, *(draft.confidence for draft in self.ahead)]
        return bool(sure) and alone.hopeless(sure)

    def _ask(self) -> None:
        """Open the session in the cloud."""
        self._asked = True
        self._launch(self._open(), _Round(0, 0, 0))

    @property
    def _left(self) -> int:
        return max(self.limit - len(self.remote.committed), 1)

    async def _draft(self) -> None:
        """Make one draft, and send a round where it is time."""
        answer = [*self.remote.committed, *(draft.token for draft in self.ahead)]
        draft = await self.device.run("draft", 1, lambda: self.drafter.draft(answer))
        self._settle()
        if [*self.remote.committed, *(draft.token for draft in self.ahead)] != answer:
            return  # the cloud said something else meanwhile
        if self._streaming or not self._asked:  # nothing of it is verified: it serves to answer alone
            self._keep(draft)
            if not self._asked and self._doubted:
                self._ask()
            return
        settings, chance = self.plan.settings, 1.0
        for earlier in (*self.ahead[self.sent :], draft):
            chance *= settings.acceptance.at(earlier.confidence)
        fresh = len(self.ahead) - self.sent
        waiting = bool(self._under_way)
        worth = worth_drafting(chance, fresh, self.plan.pace, waiting)
        if draft.confidence < self.threshold or (fresh and not worth):
            self.unsure = draft.confidence < self.threshold
            self._send(self.plan.burst if self.unsure else 0)
            return
        self._keep(draft)
        full = len(self.ahead) - self.sent >= settings.draft_tokens
        if full or draft.token in self.plan.stops or len(answer) + 1 >= self.limit:
            self._send()

    def _keep(self, draft: Draft) -> None:
        self.ahead.append(draft)
        self.account.drafted += 1

    def _send(self, burst: int = 0) -> None:
        """Send a round of all drafts that are not committed, unless nothing would come of it."""
        if not self._asked:
            self._ask()
            return
        if self._streaming:
            if not self._under_way:
                self._launch(self.remote.decode(self._left), _Round(0, 0, 0))
            return
        if len(self._under_way) >= self.plan.rounds or (self._under_way and self.sent == len(self.ahead)):
            return
        base = len(self.remote.committed)
        probs = [draft.probs_V for draft in self.ahead if draft.probs_V is not None]
        stacked = np.stack(probs) if probs and len(probs) == len(self.ahead) else None
        verify = self.remote.verify([draft.token for draft in self.ahead], stacked, burst, self.plan.rest)
        self._launch(verify, _Round(base, len(self.ahead), self.sent))
        self.sent = len(self.ahead)
        self.account.rounds += 1

    def _launch(self, work: Coroutine[Any, Any, Verified | None], around: _Round) -> None:
        self._under_way[asyncio.ensure_future(work)] = around

    async def _open(self) -> None:
        going_on = None if self.plan.alone is None and self.plan.rest else self.plan.rest
        async for _ in self.remote.open(None if self._streaming else going_on, not self._streaming):
            continue

    def _settle(self) -> None:
        """Take in what came back: keep the drafts that were committed, drop those behind one that was not.

        Raises:
            RemoteError: what a round raised.
        """
        before, faults = self._settled, []
        for task in [task for task in self._under_way if task.done()]:
            around = self._under_way.pop(task)
            if (fault := task.exception()) is not None:
                faults.append(fault)
                continue
            reply = task.result()
            if reply is not None and not reply.stale and reply.accepted < around.drafts:
                self.threshold = moved(self.threshold, reply.accepted - around.first, around.drafts - around.first,
                                       self.plan.settings)  # fmt: skip
            elif reply is not None and around.drafts > around.first:
                self.threshold = moved(self.threshold, 1, 1, self.plan.settings)
        self._trim()
        if len(self.remote.committed) > before:
            self._tried = 0
        judged = self.account.accepted + self.account.rejected
        if self.plan.goes_on is not None and not self._streaming and judged >= ENOUGH:
            self._streaming = not self.plan.goes_on(self.account.accepted, judged)
            self.account.given_up = judged * self._streaming
        if faults:
            raise min(faults, key=lambda fault: isinstance(fault, AGAIN))  # what no other try mends comes first

    def _trim(self) -> None:
        """Drafts that are committed leave `ahead`; where the cloud committed another token, all of them do."""
        base = len(self.remote.committed) - self._settled
        if base <= 0 and not (self._ended and self.ahead):
            return
        new = self.remote.committed[self._settled :]
        kept = 0
        for token, draft in zip(new, self.ahead, strict=False):
            if token != draft.token:
                break
            kept += 1
        follows = kept == min(len(new), len(self.ahead))
        self._remember(len(new) if follows else None)
        self.account.accepted += kept
        self.account.rejected += not follows
        self.ahead = self.ahead[len(new) :] if follows else []
        if self._ended and self.ahead:
            if self.remote.finish == "stop":  # the next draft was judged as well
                right = self.ahead[0].token in self.plan.stops
                self.account.accepted += right
                self.account.rejected += not right
            self.ahead = []
        self.sent = max(self.sent - len(new), 0) if follows else 0
        self._settled = len(self.remote.committed)
        self.unsure = False

    def _remember(self, committed: int | None) -> None:
        """Keep how sure the drafter was of drafts that are committed; None where the answer is no longer its own.

        What was shown of answers that the edge gives alone is of whole answers of its own, and of no others.
        """
        if self._own is None or committed is None or committed > len(self.ahead):
            self._own = None
        else:
            self._own += [draft.confidence for draft in self.ahead[:committed]]

    async def _again(self, error: RemoteError) -> bool:
        """Open the session again after a wait; False where the drafter is to finish alone.

        Raises:
            RemoteError: the last try failed and the drafter may not.
        """
        await self._stop()
        self.sent, self.unsure = 0, False
        self._tried += 1
        try:
            await self.remote.patience.again(error, self._tried, self.remote.quiet)
        except RemoteError:
            if self.plan.unverified and not isinstance(error, Busy):
                return False
            raise
        self.remote.reopened += 1
        self._launch(self._open(), _Round(0, 0, 0))
        return True

    async def _alone(self) -> AsyncIterator[int]:
        """What the drafter says from what is committed on, where the cloud stayed away."""
        answer = list(self.remote.committed)
        while not self._ended and len(answer) < self.limit:
            token = (await self.device.run("draft", 1, lambda: self.drafter.draft(answer))).token
            if token in self.plan.stops:
                self._ended_alone()
                return
            answer.append(token)
            self.account.unverified += 1
            yield token

    def _ended_alone(self) -> None:
        """The end is the drafter's word: that counts where no token before it does."""
        self.account.unverified = max(self.account.unverified, 1)

    async def _stop(self) -> None:
        """Give up every round under way."""
        tasks, self._under_way = list(self._under_way), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
