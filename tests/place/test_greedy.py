"""Placing one module after another."""

from __future__ import annotations

import pytest

from msao_compile.place.greedy import fastest, greedy, packed
from msao_compile.place.latency import fits

from .small import instance, judge, link, module, on, problem, request, two


def test_greedy_counts_the_way_of_the_picture_where_the_fastest_device_does_not() -> None:
    held = judge(two())
    assert greedy(held) == on(held.problem, eyes="edge", head="cloud")
    assert fastest(held.problem) == on(held.problem, eyes="cloud", head="cloud")


def test_the_heaviest_module_chooses_first_where_memory_is_scarce() -> None:
    content = two()
    content["devices"][1]["memory_bytes"] = 5.0
    content["modules"][0]["seconds"]["edge"] = 1.5  # by the cloud it would be 1.02
    held = judge(content)
    assert greedy(held) == on(held.problem, eyes="edge", head="cloud")


def test_ties_go_to_more_free_memory_then_to_the_name() -> None:
    def same(sizes: dict[str, float]) -> str:
        content = instance(
            sizes, [], [module("one", 1.0, dict.fromkeys(sizes, 0.1)), module("used", 0.0, {"b": 0.1})],
            [request("b", [], "used")],
        )  # fmt: skip
        held = judge(content)
        found = greedy(held)
        assert found is not None
        return held.problem.device_names[held.problem.options[0][found[0][0]].device]

    assert same({"a": 5.0, "b": 6.0, "c": 5.0}) == "b"
    assert same({"c": 5.0, "b": 5.0, "a": 5.0}) == "a"


def test_nothing_comes_of_a_module_that_fits_nowhere() -> None:
    content = two()
    content["modules"][1]["memory_bytes"] = 11.0
    held = judge(content)
    assert greedy(held) is None and fastest(held.problem) is None and packed(held.problem) is None


def test_the_smallest_dtypes_are_packed_largest_first() -> None:
    content = instance(
        {"a": 5.0, "b": 6.0}, [link("a", "b")],
        [module("x", 3.0, {"a": 1.0, "b": 1.0}), module("y", 3.0, {"a": 1.0, "b": 1.0}),
         module("z", {"fp16": 9.0, "int4": 5.0}, {"a": 1.0, "b": 1.0})],
        [request("a", [("x", 0.0), ("y", 0.0)], "z")],
    )  # fmt: skip
    held = problem(content)
    found = packed(held)
    assert found is not None and fits(held, found)
    assert [held.device_names[held.options[module][index].device] for module, (index,) in enumerate(found)] == [
        "b", "b", "a",
    ][: len(found)]  # fmt: skip


@pytest.mark.parametrize(("replicas", "seconds"), [(1, 1.241), (2, 0.532)])
def test_copies_are_added_while_they_help(replicas: int, seconds: float) -> None:
    content = two()
    content["requests"].append(request("cloud", [("eyes", 1e6)], "head"))
    held = judge(content)
    found = greedy(held, replicas)
    assert found is not None and fits(held.problem, found)
    assert held.objective_s(found) == pytest.approx(seconds)
    if replicas == 2:
        assert [len(copies) for copies in found] == [2, 1]  # a second head would help nobody
