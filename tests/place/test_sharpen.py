"""A column for each way ends at the optimum as well, and a bound of few ways is no bound of more than it knows."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings

from msao_compile.manifest.placement import Objective
from msao_compile.place import sharpen
from msao_compile.place.greedy import greedy, packed
from msao_compile.place.latency import fits
from msao_compile.place.sharpen import sharpened, tractable
from tests.bench.instances import large

from .brute import Brute
from .small import instances, judge

pytest.importorskip("highspy")


def check(content: dict[str, Any], objective: Objective, replicas: int, proven: bool = True) -> None:
    """From a poor start: never below the least of all, and the bound never above it; both are it where all was seen."""
    held = judge(content, objective)
    known = packed(held.problem)
    if known is None or math.isinf(held.objective_s(known)):
        return
    assert tractable(held)
    found = sharpened(held, replicas, 60.0, known)
    least = Brute(content, replicas).best(objective)
    value = held.objective_s(found.copies)
    assert fits(held.problem, found.copies)
    assert found.bound_s <= least * (1 + 1e-6) + 1e-9 and least <= value * (1 + 1e-9) + 1e-12
    if proven:
        assert value == pytest.approx(least, rel=2e-6, abs=1e-9)
        assert found.bound_s == pytest.approx(least, rel=2e-6, abs=1e-9)


@pytest.mark.parametrize("objective", ["mean", "p95"])
@settings(max_examples=60, deadline=None)
@given(content=instances(dtypes=True))
def test_one_copy_of_each_module(objective: Objective, content: dict[str, Any]) -> None:
    check(content, objective, 1)


@pytest.mark.parametrize("objective", ["mean", "p95"])
@settings(max_examples=25, deadline=None)
@given(content=instances())
def test_several_copies(objective: Objective, content: dict[str, Any]) -> None:
    check(content, objective, 2)


@pytest.mark.parametrize("objective", ["mean", "p95"])
@settings(max_examples=40, deadline=None)
@given(content=instances())
def test_ways_that_were_left_out_are_in_the_bound(objective: Objective, content: dict[str, Any]) -> None:
    few, many = sharpen.FEW, sharpen.MANY
    sharpen.FEW, sharpen.MANY = 1, 2
    try:
        check(content, objective, 1, proven=False)
    finally:
        sharpen.FEW, sharpen.MANY = few, many


def test_time_that_is_over_at_once_leaves_the_start() -> None:
    held = judge(large(12, 5))
    known = packed(held.problem)
    assert known is not None and math.isfinite(held.objective_s(known))
    found = sharpened(held, 1, 0.0, known)
    assert found.copies == known and found.bound_s <= held.objective_s(known)


def test_a_medium_instance_is_proven_in_seconds() -> None:
    held = judge(large(16, 5))
    known = greedy(held)
    assert known is not None
    found = sharpened(held, 1, 60.0, known)
    assert held.objective_s(found.copies) == pytest.approx(found.bound_s, rel=1e-6)
