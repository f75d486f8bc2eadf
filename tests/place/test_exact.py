"""The exact program's optimum is the least of all placements, each of which was computed by other code."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from msao_compile.manifest.placement import Objective
from msao_compile.place.exact import exact
from msao_compile.place.greedy import greedy
from msao_compile.place.latency import fits

from .brute import Brute
from .small import instance, instances, judge, link, module, request, two

pytest.importorskip("highspy")
LIMIT_S = 60.0


def agrees(content: dict, objective: Objective, replicas: int) -> None:
    """Optimum, bound and feasibility are those of trying everything, also from a known placement on."""
    held = judge(content, objective)
    least = Brute(content, replicas).best(objective)
    for known in (None, greedy(held, replicas)):
        found = exact(held, replicas, LIMIT_S, known)
        assert found.infeasible == math.isinf(least)
        if not found.infeasible:
            assert found.copies is not None
            assert held.objective_s(found.copies) == pytest.approx(least, rel=1e-6, abs=1e-9)
            assert found.bound_s == pytest.approx(least, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("objective", ["mean", "p95"])
@settings(max_examples=120, deadline=None)
@given(content=instances(dtypes=True))
def test_one_copy_of_each_module(objective: Objective, content: dict) -> None:
    agrees(content, objective, 1)


@pytest.mark.parametrize("objective", ["mean", "p95"])
@settings(max_examples=50, deadline=None)
@given(content=instances())
def test_several_copies(objective: Objective, content: dict) -> None:
    agrees(content, objective, 3)


def test_encoders_that_share_a_device_wait_for_each_other() -> None:
    """Apart they take 0.4 s, together on the fast device 0.6: without that both would go there."""
    content = instance(
        {"home": 9.0, "fast": 9.0}, [link("home", "fast", mbps=8000.0)],
        [module("a", 1.0, {"home": 0.4, "fast": 0.3}), module("b", 1.0, {"home": 0.4, "fast": 0.3}),
         module("head", 1.0, {"home": 0.0})],
        [request("home", [("a", 0.0), ("b", 0.0)], "head")],
    )  # fmt: skip
    agrees(content, "mean", 1)
    held = judge(content)
    assert exact(held, 1, LIMIT_S).bound_s == pytest.approx(0.4)


def test_a_module_may_be_encoder_and_head_and_be_asked_twice() -> None:
    content = two()
    content["requests"] = [
        request("edge", [("eyes", 1e5), ("eyes", 2e5)], "head"), request("edge", [("head", 10.0)], "eyes", 0.5),
        request("cloud", [("head", 10.0)], "head", 2.0), request("cloud", [], "eyes", 0.0),
    ]  # fmt: skip
    for objective in ("mean", "p95"):
        for replicas in (1, 2):
            agrees(content, objective, replicas)


def test_large_numbers_of_bytes_are_told_apart_to_the_byte() -> None:
    content = two()
    content["devices"] = [{"name": "edge", "memory_bytes": 80e9}, {"name": "cloud", "memory_bytes": 80e9}]
    content["modules"][0]["memory_bytes"], content["modules"][1]["memory_bytes"] = 30e9, 50e9
    content["modules"][0]["seconds"]["edge"] = 9.0
    held = judge(content)
    assert exact(held, 1, LIMIT_S).bound_s == pytest.approx(1.131)  # both in the cloud, which is full to the byte
    content["modules"][0]["memory_bytes"] += 1.0
    more = judge(content)
    found = exact(more, 1, LIMIT_S)
    assert found.copies is None or fits(more.problem, found.copies)  # a byte less than HiGHS can see is no placement
