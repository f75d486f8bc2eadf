"""What a session commits, and who makes room when there is none."""

from __future__ import annotations

import pytest
import tiny

from msao_compile.errors import Busy, SessionLost
from msao_compile.runtime.cloud.rows import Apart
from msao_compile.runtime.cloud.sessions import Session, Sessions
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire.contract import prefix_hash

STOPS = frozenset((tiny.END,))


def opened(sessions: Sessions, name: str, now_ms: float, limit: int = 5, **sampling: bool) -> Session:
    row = sessions.row(name, now_ms)
    session = Session(name, row, SamplingParameters(**sampling), "greedy", limit)  # type: ignore[arg-type]
    sessions.open(session, now_ms)
    return session


@pytest.fixture
def sessions(verifier: ModelSession) -> Sessions:
    return Sessions(Apart(verifier, 2), idle_ms=100)


def test_tokens_are_taken_up_to_a_stop_or_the_limit(sessions: Sessions) -> None:
    stops, fills = opened(sessions, "session-a", 0), opened(sessions, "session-b", 0)
    assert stops.commit([1, 2, tiny.END, 3], STOPS) == 2
    assert (stops.committed, stops.finish) == ([1, 2], "stop")
    assert fills.commit([1, 2, 3, 4, 5, 6], STOPS) == 5
    assert (fills.committed, fills.finish) == ([1, 2, 3, 4, 5], "length")
    assert fills.commit([9], STOPS) == 0


def test_a_stop_may_be_ignored(sessions: Sessions) -> None:
    session = opened(sessions, "session-a", 0, ignore_eos=True)
    assert session.commit([tiny.END, 3], STOPS) == 2
    assert session.finish is None


def test_a_client_agrees_where_its_beginning_is_ours(sessions: Sessions) -> None:
    session = opened(sessions, "session-a", 0)
    session.commit([4, 5, 6], STOPS)
    assert all(session.agrees(base, prefix_hash([4, 5, 6][:base])) for base in range(4))
    assert not session.agrees(2, prefix_hash([4, 6]))
    assert not session.agrees(4, prefix_hash([4, 5, 6, 7]))


def test_the_one_silent_longest_makes_room_and_nobody_who_is_not_silent(sessions: Sessions) -> None:
    opened(sessions, "session-a", 0)
    opened(sessions, "session-b", 30)
    with pytest.raises(Busy, match="in use") as told:
        sessions.row("session-c", 60)
    assert told.value.retry_after_ms == 40
    assert sessions.row("session-c", 100) is not None
    with pytest.raises(SessionLost, match="session-a"):
        sessions.find("session-a")
    assert sessions.find("session-b")
    assert sessions.evicted == 1


def test_a_finished_answer_makes_room_at_once(sessions: Sessions) -> None:
    opened(sessions, "session-a", 0)
    opened(sessions, "session-b", 0, limit=1).commit([1], STOPS)
    assert sessions.row("session-c", 1) is not None
    assert len(sessions) == 1


def test_one_that_works_is_never_put_out(sessions: Sessions) -> None:
    for name in ("session-a", "session-b"):
        opened(sessions, name, 0).working = 1
    with pytest.raises(Busy) as told:
        sessions.row("session-c", 1e9)
    assert told.value.retry_after_ms > 0


def test_a_name_that_is_opened_again_has_one_row(sessions: Sessions) -> None:
    first = opened(sessions, "session-a", 0)
    again = opened(sessions, "session-a", 0)
    assert sessions.find("session-a") is again
    with pytest.raises(SessionLost, match="closed meanwhile"):
        sessions.check(first)
    opened(sessions, "session-b", 0)
    assert len(sessions) == 2
    assert sessions.close("session-a") and not sessions.close("session-a")
