"""All latencies of a request at once are those told one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings

from msao_compile.place.latency import latency_s
from msao_compile.place.tables import cells, table

from .small import instances, judge, problem


@settings(max_examples=100, deadline=None)
@given(instances(dtypes=True))
def test_each_cell_is_the_latency_of_its_options(content: dict) -> None:
    held = problem(content)
    for ask in held.asks:
        found = table(held, ask)
        assert found.size == cells(held, ask)
        for place in itertools.product(*(range(size) for size in found.shape)):
            chosen = [held.options[module][index] for module, index in zip(ask.slots, place, strict=True)]
            assert found[place] == pytest.approx(latency_s(held, ask, chosen))


@settings(max_examples=60, deadline=None)
@given(instances(dtypes=True))
def test_many_copies_are_looked_through_at_once_and_few_one_by_one(content: dict) -> None:
    held = judge(content)
    copies = tuple(tuple(range(len(options))) for options in held.problem.options)
    for number, ask in enumerate(held.problem.asks):
        found = table(held.problem, ask, copies)
        assert found.size == cells(held.problem, ask)
        if found.size:
            value, taken = held.best(number, copies)
            assert value == pytest.approx(found.min()) and found[taken] == pytest.approx(value)
