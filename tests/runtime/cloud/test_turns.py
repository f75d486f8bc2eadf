"""Who is next among clients that wait, by what each was given so far."""

from __future__ import annotations

import pytest

from msao_compile.runtime.cloud.turns import Turns


def taken(turns: Turns[str], count: int | None = None) -> str:
    """The next items, one after another."""
    return "".join(turns.take() for _ in range(len(turns) if count is None else count))


def test_one_prompt_of_a_client_is_next_behind_one_of_fifty_of_another() -> None:
    turns: Turns[str] = Turns()
    for _ in range(50):
        turns.add("many", "m", 10)
    assert taken(turns, 3) == "mmm"
    turns.add("one", "O", 10)
    assert taken(turns, 2) == "Om"


def test_turns_are_shared_by_tokens_and_not_by_prompts() -> None:
    turns: Turns[str] = Turns()
    for _ in range(4):
        turns.add("long", "L", 100)
    for _ in range(12):
        turns.add("short", "s", 25)
    assert taken(turns, 10) == "LssssLssss"


def test_a_clients_own_prompts_stay_in_their_order_and_of_equals_the_older_is_first() -> None:
    turns: Turns[str] = Turns()
    for item, client in zip("abcdef", "YXYXYX", strict=True):
        turns.add(client, item, 1)
    assert taken(turns) == "abcdef"


def test_nobody_saves_up_turns_while_away() -> None:
    turns: Turns[str] = Turns()
    turns.add("early", "e", 1)
    for _ in range(40):
        turns.add("busy", "b", 10)
    assert taken(turns, 21) == "e" + "b" * 20
    for _ in range(40):
        turns.add("early", "e", 10)
    assert sorted(taken(turns, 10)) == sorted("eb" * 5)


def test_what_was_given_counts_until_the_others_had_as_much() -> None:
    turns: Turns[str] = Turns()
    for _ in range(9):
        turns.add("short", "s", 10)
    turns.add("long", "L", 60)
    assert taken(turns, 2) == "sL"
    turns.add("long", "L", 60)  # it comes again at once
    assert taken(turns, 8) == "ssssssLs"


def test_clients_that_came_once_are_forgotten() -> None:
    turns: Turns[str] = Turns()
    for _ in range(300):
        turns.add("stays", "s", 1)
    for client in range(200):
        turns.add(f"passes {client}", "p", 1)
        taken(turns, 2)
    assert len(turns._lines) < 20
    taken(turns)
    assert not turns._lines and not len(turns)
    with pytest.raises(IndexError, match="nobody"):
        turns.take()


def test_the_newest_that_may_go_is_put_out_and_the_others_stay() -> None:
    turns: Turns[str] = Turns()
    for item in "abcD":
        turns.add("client", item, 1)
    assert turns.waiting() == {"client": 4} and turns.waiting(str.islower) == {"client": 3}
    assert turns.put_out("client", str.islower) == "c"
    assert turns.put_out("client", str.isdigit) is None
    assert taken(turns) == "abD"
