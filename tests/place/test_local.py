"""Local search: it gets out of where greedy ends, keeps to memory, and ends in time."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings

from msao_compile.place.greedy import greedy
from msao_compile.place.latency import fits
from msao_compile.place.local import Search, improved, pruned, shaken

from .small import instance, instances, judge, link, module, on, request, two


def soon(replicas: int = 1) -> Search:
    """A search with time enough."""
    return Search(replicas, time.perf_counter() + 30)


def test_a_module_that_stands_badly_is_moved() -> None:
    held = judge(two())
    begin = on(held.problem, eyes="cloud", head="edge")
    assert improved(held, begin, soon()) == on(held.problem, eyes="edge", head="cloud")


def test_two_modules_change_places_where_neither_can_move_alone() -> None:
    content = instance(
        {"a": 1.0, "b": 1.0}, [link("a", "b")],
        [module("x", 1.0, {"a": 0.5, "b": 0.1}), module("y", 1.0, {"a": 0.1, "b": 0.5})],
        [request("a", [], "x"), request("a", [], "y")],
    )  # fmt: skip
    held = judge(content)
    assert improved(held, on(held.problem, x="a", y="b"), soon()) == on(held.problem, x="b", y="a")


def test_a_start_that_cannot_answer_is_led_to_one_that_can() -> None:
    content = instance(
        {"a": 2.0, "b": 2.0, "c": 2.0}, [link("a", "b")],
        [module("x", 1.0, {"b": 0.1, "c": 0.1}), module("y", 1.0, {"b": 0.1, "c": 0.1})],
        [request("a", [("x", 0.0)], "y")],
    )  # fmt: skip
    held = judge(content)
    found = improved(held, on(held.problem, x="c", y="c"), soon())
    assert held.objective_s(found) == pytest.approx(0.2)


def test_when_time_is_up_the_start_is_the_answer() -> None:
    held = judge(two())
    begin = on(held.problem, eyes="cloud", head="edge")
    assert improved(held, begin, Search(1, time.perf_counter() - 1)) == begin


def test_copies_that_no_request_takes_are_dropped_and_an_unused_module_keeps_one() -> None:
    content = two()
    content["modules"].append(module("rest", 1.0, {"edge": 1.0, "cloud": 1.0}))
    held = judge(content)
    assert pruned(held, ((0, 1), (0, 1), (0, 1))) == ((0,), (1,), (0,))


@settings(max_examples=80, deadline=None)
@given(instances(dtypes=True))
def test_it_never_makes_worse_or_leaves_memory(content: dict) -> None:
    held = judge(content, "p95")
    begin = greedy(held, 2)
    if begin is None:
        return
    found = improved(held, begin, soon(2))
    assert fits(held.problem, found) and held.objective_s(found) <= held.objective_s(begin)
    assert held.objective_s(pruned(held, found)) == held.objective_s(found)
    assert fits(held.problem, shaken(held, found, random.Random(0)))
