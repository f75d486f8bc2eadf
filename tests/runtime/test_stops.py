"""Stop sequences: the text before the one that is complete first, however the text comes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msao_compile.errors import InputError
from msao_compile.runtime.stops import TextUntil, read_stops


class Pieces:
    """A decoder whose tokens are indices of given pieces."""

    def __init__(self, pieces: Sequence[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return self.rest


def said(pieces: Sequence[str], stops: Sequence[str], rest: str = "") -> tuple[list[str], bool]:
    text, given = TextUntil(Pieces(pieces, rest), stops), []
    for token in range(len(pieces)):
        given.append(text.push(token))
        if text.ended:
            break
    given.append(text.flush())
    assert "".join(given) == text.text
    return given, text.ended


@pytest.mark.parametrize(
    ("pieces", "stops", "given", "ended"),
    [
        (["a", "b"], [], ["a", "b", ""], False),
        (["ab", "cd"], ["bc"], ["a", "", ""], True),
        (["ab", "xd"], ["bc"], ["a", "bxd", ""], False),
        (["ab"], ["bc"], ["a", "b"], False),
        (["abc"], ["abc", "b"], ["a", ""], True),
        (["a\n", "\nb"], ["\n\n"], ["a", "", ""], True),
    ],
)
def test_text_that_may_be_a_stop_sequence_is_held_back(
    pieces: list[str], stops: list[str], given: list[str], ended: bool
) -> None:
    assert said(pieces, stops) == (given, ended)


def test_a_stop_sequence_is_found_in_what_the_decoder_held_back() -> None:
    assert said(["ab"], ["bc"], rest="cd") == (["a", ""], True)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_how_the_text_is_cut_changes_nothing(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    ends = [(at + len(stop), at) for stop in stops if (at := whole.find(stop)) >= 0]
    wanted = whole[: min(ends)[1]] if ends else whole
    for cut in (pieces, list(whole), [whole]):
        given, ended = said(cut, stops)
        assert ("".join(given), ended) == (wanted, bool(ends))


def test_one_sequence_or_several_are_read_and_empty_ones_refused() -> None:
    assert (read_stops("\n"), read_stops(["a", "b"]), read_stops(())) == (("\n",), ("a", "b"), ())
    for wrong in ("", [""], [3]):
        with pytest.raises(InputError, match="give text of at least one character"):
            read_stops(wrong)
