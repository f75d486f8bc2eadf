"""The answers a cloud is writing: what each committed, its row, and who has to go when there is no room."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from msao_compile.errors import Busy, SessionLost
from msao_compile.runtime.cloud.rows import Row, Rows
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.wire.contract import Finish, Rule, prefix_hash

RETRY_MS = 250
"""What a client is told to wait where nothing says when a session ends."""
CROWDED = 0.1
"""Of the time that a silent session is kept, where its client has more rows than its share and another has fewer."""
LATE_MS = 500.0
"""So much later than told may a client come back that was sent away, before its place is given to others."""


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
    client: str = ""
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

    def ended(self, told: int) -> Finish | None:
        """How the answer ended, for a client that was told so many tokens: nothing while there are others."""
        return self.finish if told >= len(self.committed) else None


class Sessions:
    """As many answers as there are rows; a finished one makes room, or the one whose client is silent longest.

    Rows are shared by clients: those of the client that has most go first, and of one that has more than its share
    soon. Who is sent away with less than others have finds the next row that is free kept for it.
    """

    def __init__(self, rows: Rows, idle_ms: float) -> None:
        self.rows, self.idle_ms = rows, idle_ms
        self._known: dict[str, Session] = {}
        self._asked: dict[str, set[asyncio.Future[None]]] = {}
        self._expected: dict[str, float] = {}
        self.evicted = self.sent_away = 0

    def __len__(self) -> int:
        return len(self._known)

    def gauges(self) -> dict[str, float]:
        """How many there are now, of how many clients, and how many had to go or could not come."""
        return {
            "sessions": len(self),
            "sessions_clients": len({one.client for one in self._known.values()}),
            "sessions_evicted": self.evicted,
            "sessions_sent_away": self.sent_away,
        }

    def open(self, session: Session, now_ms: float) -> None:
        """Keep a session under its name; one that had it before is gone."""
        self.close(session.name)
        session.used = now_ms
        self._known[session.name] = session

    def row(self, name: str, now_ms: float, client: str = "") -> Row:
        """An empty row for a session, of one that is idle where all are taken.

        Raises:
            Busy: every row is in use, and none of their clients was away for long; or what is free is kept for a
                client that has fewer rows and was sent away before.
        """
        self.close(name)
        held = Counter(one.client for one in self._known.values() if one.finish is None)
        self._expected = {one: until for one, until in self._expected.items() if until > now_ms and one != client}
        if any(held[one] < held[client] for one in self._expected):
            raise self._sent_away(client, RETRY_MS, now_ms)
        row = self.rows.open()
        while row is None:
            resting = (one for one in self._known.values() if not one.working)
            idle = min(resting, key=lambda one: (one.finish is None, self._left_ms(one, held, client, now_ms) > 0,
                                                 -held[one.client], one.used), default=None)  # fmt: skip
            left_ms = RETRY_MS if idle is None else self._left_ms(idle, held, client, now_ms)
            if idle is None or left_ms > 0:
                raise self._sent_away(client, max(int(left_ms), 1), now_ms)
            self.evicted += 1
            self.close(idle.name)
            row = self.rows.open()
        return row

    def _left_ms(self, session: Session, held: Counter[str], client: str, now_ms: float) -> float:
        """How long a resting session is kept yet, if a client wants its row that has so many as are `held`."""
        if session.finish is not None:
            return 0.0
        share = held.total() / len({*held, client})
        crowded = held[session.client] > max(share, held[client] + 1)
        return session.used + self.idle_ms * (CROWDED if crowded else 1.0) - now_ms

    def _sent_away(self, client: str, retry_ms: int, now_ms: float) -> Busy:
        self.sent_away += 1
        self._expected[client] = now_ms + retry_ms + LATE_MS
        return Busy(f"all {len(self._known)} sessions of this cloud are in use: try again later", retry_ms)

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
