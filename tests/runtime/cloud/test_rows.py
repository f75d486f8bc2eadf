"""Rows side by side give what each row gives alone, whatever was rolled back, moved, closed and opened between."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.cloud.rows import Apart, Row, Rows, SideBySide, rows_of
from msao_compile.runtime.session import ModelSession, Request

ROWS = 4
TOKEN = st.integers(0, tiny.VOCABULARY - 1)
TOKENS = st.lists(TOKEN, min_size=1, max_size=12)
ROW = st.integers(0, ROWS - 1)
ACTION = st.one_of(
    st.tuples(st.just("step"), st.dictionaries(ROW, TOKENS, min_size=1)),
    st.tuples(st.just("step"), st.dictionaries(ROW, TOKENS, min_size=1)),
    st.tuples(st.just("rollback"), st.tuples(ROW, st.integers(0, 9))),
    st.tuples(st.just("close"), ROW),
    st.tuples(st.just("open"), st.lists(TOKEN, min_size=1, max_size=40)),
)


class Twins:
    """The same schedule on rows side by side and on rows apart."""

    def __init__(self, session: ModelSession) -> None:
        slab = session.decoder.new_slab(tiny.CAPACITY, ROWS)
        assert slab is not None
        self.sides: tuple[Rows, Rows] = (SideBySide(session, slab), Apart(session, ROWS))
        self.rows: dict[int, tuple[Row, Row]] = {}
        self.compared = 0

    def open(self, prompt: list[int]) -> None:
        name = next((name for name in range(ROWS) if name not in self.rows), None)
        pair = [side.open() for side in self.sides]
        assert (pair[0] is None) == (pair[1] is None) == (name is None)
        if name is None or pair[0] is None or pair[1] is None:
            return
        self.rows[name] = (pair[0], pair[1])
        request = Request(np.asarray(prompt, np.int64), {})
        found = [side.prefill(row, request, {}, Clock()) for side, row in zip(self.sides, self.rows[name], strict=True)]
        self.compare(*found)

    def step(self, work: dict[int, list[int]]) -> None:
        fits = {
            name: np.asarray(ids, np.int64)
            for name, ids in work.items()
            if name in self.rows and self.rows[name][1].length + len(ids) <= tiny.CAPACITY
        }
        found = [
            side.step([(self.rows[name][at], ids) for name, ids in fits.items()]) for at, side in enumerate(self.sides)
        ]
        assert [one.length for one, _ in self.rows.values()] == [other.length for _, other in self.rows.values()]
        for one, other in zip(*found, strict=True):
            self.compare(one, other)

    def rollback(self, name: int, back: int) -> None:
        if name in self.rows:
            for side, row in zip(self.sides, self.rows[name], strict=True):
                side.rollback(row, max(row.length - back, 1))

    def close(self, name: int) -> None:
        for side, row in zip(self.sides, self.rows.pop(name, ()), strict=False):
            side.close(row)

    def compare(self, one: np.ndarray, other: np.ndarray) -> None:
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-4)
        self.compared += 1


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(TOKEN, min_size=1, max_size=20), min_size=1, max_size=ROWS),
    actions=st.lists(ACTION, min_size=5, max_size=30),
)
def test_any_schedule_gives_what_each_row_gives_alone(
    verifier: ModelSession, prompts: list[list[int]], actions: list[tuple[str, object]]
) -> None:
    twins = Twins(verifier)
    for prompt in prompts:
        twins.open(prompt)
    for what, given_ in actions:
        if what == "rollback":
            twins.rollback(*given_)  # type: ignore[misc]
        else:
            getattr(twins, what)(given_)
    assert twins.compared


def test_a_row_that_has_nothing_to_do_keeps_what_it_holds(verifier: ModelSession) -> None:
    """Row 1 is longer than its neighbours, which write at places that it holds."""
    twins = Twins(verifier)
    for length in (3, 30, 4):
        twins.open(list(range(1, 2)) * length)
    for _ in range(5):
        twins.step({0: [5], 2: [6]})
    twins.step({1: [7, 8]})
    twins.step({0: [5], 1: [9], 2: [6]})


def test_a_full_row_between_two_others_keeps_what_it_holds(verifier: ModelSession) -> None:
    """No place is left beyond it, so that its neighbours have to go without it."""
    twins = Twins(verifier)
    for length in (3, tiny.CAPACITY - 1, 4):
        twins.open([3] * length)
    twins.step({0: [5, 6, 7], 2: [6]})
    twins.step({1: [9]})
    twins.step({0: [5], 2: [6, 7]})
    twins.rollback(1, 6)
    twins.step({0: [5], 1: [6, 7], 2: [8]})


def test_a_buffer_full_of_holes_is_moved_together(verifier: ModelSession) -> None:
    """Row 0 gets its holes from the steps of a longer row, until its buffer ends."""
    twins = Twins(verifier)
    twins.open([1, 2])
    twins.open([3] * 20)
    for count in range(12):
        twins.step({0: [4, 5, 6], 1: [7, 8, 9]})
        twins.rollback(0, 2)
        twins.rollback(1, 3 if count % 2 else 2)
    assert twins.rows[0][0].frontier > twins.rows[0][0].length  # there were holes


def test_very_uneven_steps_go_apart_and_give_the_same(verifier: ModelSession) -> None:
    twins = Twins(verifier)
    for prompt in ([1], [2, 3], [4], [5] * 9):
        twins.open(prompt)
    twins.step({0: [1] * 40, 1: [2], 2: [3] * 17, 3: [4] * 5})
    assert twins.compared == 8


def test_rows_run_out_and_come_back(verifier: ModelSession) -> None:
    for rows in Twins(verifier).sides:
        taken = [rows.open() for _ in range(ROWS)]
        assert None not in taken and rows.open() is None
        rows.close(taken[2])  # type: ignore[arg-type]
        assert rows.open() is not None and rows.open() is None


def test_rows_are_side_by_side_where_the_decoder_computes_the_same_so(verifier: ModelSession) -> None:
    assert isinstance(rows_of(verifier, 2), SideBySide)
    assert isinstance(rows_of(verifier, 1), Apart)


def test_a_decoder_that_looks_at_holes_is_run_one_row_at_a_time(
    verifier: ModelSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = SideBySide._run
    monkeypatch.setattr(SideBySide, "_run", lambda self, ids, mask, *rest: run(self, ids, mask | 1, *rest))
    assert isinstance(rows_of(verifier, 2), Apart)
    assert "one row at a time" in caplog.text
