"""Columns of the ways to answer: what is added, what is left out, and what prices say."""

from __future__ import annotations

import math
import time

import pytest

from msao_compile.place.tables import table
from msao_compile.place.ways import Ways

from .small import judge, on, two

pytest.importorskip("highspy")


def ways() -> Ways:
    """Of the two devices, in seconds, from the worst placement on."""
    held = judge(two())
    known = on(held.problem, eyes="cloud", head="edge")
    return Ways(held, 1, known, [table(held.problem, ask) for ask in held.problem.asks], held.objective_s(known))


def test_it_begins_with_the_known_way_and_those_that_differ_in_one_slot() -> None:
    found = ways()
    assert found.costs[0].shape == (2, 2) and sorted(flat for _, flat in found.ways) == [0, 2, 3]
    cost, rows = found.column((0, 2))
    one, starts = found.rows[0]
    assert cost == found.costs[0][1, 0] and rows == [one, starts[0] + 1, starts[1]]


def test_prices_end_at_the_optimum_and_leave_out_what_no_better_placement_uses() -> None:
    found = ways()
    priced = found.priced(time.perf_counter() + 10)
    assert priced is not None and priced.bound == pytest.approx(0.422)
    found.most = 0.43
    chosen, others = found.worth_while(priced, 10)
    assert chosen == [(0, 1)] and math.isinf(others)
    found.most = 10.0
    few, others = found.worth_while(priced, 1)
    assert few == [(0, 1)] and others == pytest.approx(1.131)  # both in the cloud is the next best
    assert found.whole(few, 10.0)[1] == pytest.approx(0.422)
