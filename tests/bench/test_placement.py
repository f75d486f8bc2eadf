"""The bars of placement are missed where a solver is."""

from __future__ import annotations

from dataclasses import replace

from tests.bench.placement import Row, bars, same

GOOD = Row("one", "mean", 2, 2, True, 1.0, 0.0, 0.1, 2.0, 1.5, 1.0, 4, 1.0, None, None)
REFUSED = replace(GOOD, feasible=False, optimum_s=None, gap=None, local_s=None, tried_s=None, changed=True)


def missed(*rows: Row) -> list[str]:
    """The names of bars that are not met."""
    return [bar.name for bar in bars(rows) if not bar.met]


def test_all_is_met_by_an_optimum_that_was_proved_found_and_tried() -> None:
    assert missed(GOOD, REFUSED) == []


def test_each_fault_misses_its_bar() -> None:
    assert missed(replace(GOOD, gap=1e-3)) == ["exact optimum with certificate"]
    assert missed(replace(GOOD, tried_s=0.99)) == ["agrees with trying all"]
    assert missed(GOOD, replace(REFUSED, tried_s=3.0)) == ["agrees with trying all"]
    assert missed(*[GOOD] * 60, replace(GOOD, local_s=1.01)) == []
    assert missed(*[GOOD] * 60, *[replace(GOOD, local_s=1.01)] * 2) == ["greedy + local search, optimal"]
    assert missed(replace(GOOD, seconds=0.3)) == ["seconds, median"]
    assert missed(GOOD, replace(REFUSED, changed=False)) == ["infeasible: the change told makes it feasible"]


def test_equal_is_within_a_millionth() -> None:
    assert same(1.0 + 5e-7, 1.0) and not same(1.0 + 2e-6, 1.0) and not same(None, 1.0) and same(0.0, 0.0)
