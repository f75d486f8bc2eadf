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


def opened(sessions: Sessions, name: str, now_ms: float, limit: int = 5, client: str = "", **sampling: bool) -> Session:
    row = sessions.row(name, now_ms, client)
    session = Session(name, row, SamplingParameters(**sampling), "greedy", limit, client=client)  # type: ignore[arg-type]
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


def names(sessions: Sessions) -> set[str]:
    return set(sessions._known)


@pytest.fixture
def four(verifier: ModelSession) -> Sessions:
    """Four rows: client `many` has three, and `one` the one that is silent longest."""
    sessions = Sessions(Apart(verifier, 4), idle_ms=100)
    opened(sessions, "of-one", 0, client="one")
    for index in range(3):
        opened(sessions, f"of-many-{index}", 1 + index, client="many")
    return sessions


def test_of_idle_rows_those_of_the_client_that_has_most_go_first(four: Sessions) -> None:
    assert four.row("of-other", 500, "other") is not None
    assert names(four) == {"of-one", "of-many-1", "of-many-2"}
    assert four.gauges()["sessions_clients"] == 2


def test_a_finished_answer_goes_before_any_other_whoever_has_it(four: Sessions) -> None:
    four.find("of-one").finish = "stop"
    assert four.row("of-other", 500, "other") is not None
    assert names(four) == {"of-many-0", "of-many-1", "of-many-2"}


def test_more_rows_than_its_share_a_client_keeps_only_while_it_uses_them(four: Sessions) -> None:
    with pytest.raises(Busy) as told:
        four.row("of-other", 5, "other")
    assert told.value.retry_after_ms == 6  # a tenth of what is kept else, for the oldest of many's three
    assert four.row("of-other", 11, "other") is not None
    assert names(four) == {"of-one", "of-many-1", "of-many-2"}


def test_a_client_that_has_as_many_as_others_puts_out_nobody_before_the_time(four: Sessions) -> None:
    for index in range(3):
        four.close(f"of-many-{index}")
        opened(four, f"of-{index}", 1 + index, client=f"{index}")
    with pytest.raises(Busy) as told:
        four.row("of-one-again", 50, "one")
    assert told.value.retry_after_ms == 50


def test_a_row_that_gets_free_is_kept_for_a_client_with_fewer_that_was_sent_away(four: Sessions) -> None:
    for name in names(four):
        four.find(name).working = 1
    with pytest.raises(Busy):
        four.row("of-other", 10, "other")
    four.close("of-many-2")
    with pytest.raises(Busy):
        four.row("of-many-3", 20, "many")
    assert four.row("of-other", 270, "other") is not None
    four.close("of-many-1")
    assert four.row("of-many-3", 280, "many") is not None  # the other one came
    assert four.gauges()["sessions_sent_away"] == 2


def test_answers_that_are_finished_do_not_count_as_rows_that_a_client_has(four: Sessions) -> None:
    for name in names(four):
        four.find(name).working = 1
    with pytest.raises(Busy):
        four.row("of-one-again", 10, "one")
    for index in range(3):
        four.find(f"of-many-{index}").finish = "stop"
        four.find(f"of-many-{index}").working = 0
    assert four.row("of-many-3", 20, "many") is not None  # it has none that it writes, and `one` has one


def test_a_row_is_not_kept_for_ever_nor_for_a_client_that_has_as_many(four: Sessions) -> None:
    for name in names(four):
        four.find(name).working = 1
    for client in ("many", "other"):
        with pytest.raises(Busy):
            four.row(f"more-of-{client}", 10, client)
    four.close("of-many-2")
    with pytest.raises(Busy):  # kept for `other`, though `many` was sent away first
        four.row("of-many-3", 20, "many")
    assert four.row("of-many-3", 3000, "many") is not None
