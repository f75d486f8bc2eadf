"""The answers a cloud is writing: what each committed, its row, and who has to go when there is no room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from msao_compile.errors import Busy, SessionLost
from msao_compile.runtime.cloud.rows import Row, Rows
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.wire.contract import Finish, Rule, prefix_hash

RETRY_MS = 250
"""What a client is told to wait where nothing says when a session ends."""


@dataclass
class Session:
    """One answer. `committed` is all there is to know of it: the row holds the prompt and all of them but the last.

    `turn` keeps the operations of a session in the order they came; `judged` counts the rounds that ran.
    """

    name: str
    row: Row
    sampling: SamplingParameters
    rule: Rule
    limit: int
    prompt_tokens: int = 0
    committed: list[int] = field(default_factory=list)
    finish: Finish | None = None
    used: float = 0.0
    working: int = 0
    judged: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def commit(self, tokens: Sequence[int], stops: frozenset[int]) -> int:
        """Take the verifier's tokens up to a stop token, which is not one of the answer, or the limit; how many."""
        before = len(self.committed)
        for token in tokens:
            if self.finish is not None:
                break
            if token in stops and not self.sampling.ignore_eos:
                self.finish = "stop"
                break
            self.committed.append(token)
            if len(self.committed) >= self.limit:
                self.finish = "length"
        return len(self.committed) - before

    def agrees(self, base: int, prefix: str) -> bool:
        """Whether a client's first `base` tokens are the ones committed here."""
        return base <= len(self.committed) and prefix_hash(self.committed[:base]) == prefix


class Sessions:
    """As many answers as there are rows; a finished one makes room, or the one whose client is silent longest."""

    def __init__(self, rows: Rows, idle_ms: float) -> None:
        self.rows, self.idle_ms = rows, idle_ms
        self._known: dict[str, Session] = {}
        self._asked: dict[str, set[asyncio.Future[None]]] = {}
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._known)

    def open(self, session: Session, now_ms: float) -> None:
        """Keep a session under its name; one that had it before is gone."""
        self.close(session.name)
        session.used = now_ms
        self._known[session.name] = session

    def row(self, name: str, now_ms: float) -> Row:
        """An empty row for a session, of one that is idle where all are taken.

        Raises:
            Busy: every row is in use, and none of their clients was away for long.
        """
        self.close(name)
        row = self.rows.open()
        while row is None:
            resting = (one for one in self._known.values() if not one.working)
            idle = min(resting, key=lambda one: (one.finish is None, one.used), default=None)
            away_ms = 0.0 if idle is None else self.idle_ms if idle.finish is not None else now_ms - idle.used
            if idle is None or away_ms < self.idle_ms:
                left_ms = RETRY_MS if idle is None else max(int(self.idle_ms - away_ms), 1)
                raise Busy(f"all {len(self._known)} sessions of this cloud are in use: try again later", left_ms)
            self.evicted += 1
            self.close(idle.name)
            row = self.rows.open()
        return row

    def find(self, name: str) -> Session:
        """The session of this name.

        Raises:
            SessionLost: there is none, or no longer.
        """
        if name not in self._known:
            raise SessionLost(f"session {name!r} is not known here: open it again with what was committed")
        return self._known[name]

    def check(self, session: Session) -> None:
        """Refuse one that was closed while an operation of it waited for its turn: its row is another's by now.

        Raises:
            SessionLost: as `find`.
        """
        if self._known.get(session.name) is not session:
            raise SessionLost(f"session {session.name!r} was closed meanwhile: open it again with what was committed")

    def close(self, name: str) -> bool:
        """Forget a session; whether there was one."""
        session = self._known.pop(name, None)
        if session is not None:
            self.rows.close(session.row)
        return session is not None

    @contextmanager
    def asking(self, name: str) -> Iterator[None]:
        """While a round of a session is here, be it open by now or not."""
        done = asyncio.get_running_loop().create_future()
        rounds = self._asked.setdefault(name, set())
        rounds.add(done)
        try:
            yield
        finally:
            done.set_result(None)
            rounds.discard(done)
            if not rounds:
                del self._asked[name]

    async def unasked(self, name: str) -> None:
        """When no round of a session is here."""
        while rounds := self._asked.get(name):
            await asyncio.wait(rounds)
