"""The model of latency, by figures that a reader can add up, and against other code on random instances."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings

from msao_compile.place.latency import Judge, alone_s, fits, total, used_bytes

from .brute import Brute
from .small import instance, instances, judge, link, module, on, problem, request, two


def test_input_travels_then_the_encoder_then_features_the_head_and_the_reply() -> None:
    held = judge(two())
    place = held.problem
    assert held.objective_s(on(place, eyes="cloud", head="cloud")) == pytest.approx(1.01 + 0.01 + 0.1 + 0.011)
    assert held.objective_s(on(place, eyes="edge", head="cloud")) == pytest.approx(0.3 + 0.011 + 0.1 + 0.011)
    assert held.objective_s(on(place, eyes="edge", head="edge")) == pytest.approx(2.3)


def three(inputs: tuple[float, float]) -> Judge:
    """Two encoders on one device, which their inputs reach in a second for each megabyte."""
    return judge(
        instance(
            {"home": 9.0, "far": 9.0}, [link("home", "far")],
            [module("one", 1.0, {"far": 0.5}), module("two", 1.0, {"far": 0.25}), module("head", 1.0, {"far": 0.125})],
            [request("home", [("one", inputs[0]), ("two", inputs[1])], "head")],
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "seconds"),
    [
        ((0.0, 0.0), 0.875),
        ((1e6, 0.0), 1.875),  # the second waits for the first, though its own input is there
        ((0.0, 1e6), 1.375),  # the first is done before the second's input comes
        ((0.0, 0.25e6), 0.875),
    ],
)
def test_encoders_on_one_device_run_in_order_each_once_its_input_is_there(
    inputs: tuple[float, float], seconds: float
) -> None:
    held = three(inputs)
    assert held.objective_s(((0,), (0,), (0,))) == pytest.approx(seconds)


def test_a_request_without_encoders_is_its_head_and_the_reply() -> None:
    content = two()
    content["requests"] = [request("edge", [], "head", reply_bytes=1000.0)]
    held = judge(content)
    assert held.objective_s(on(held.problem, eyes="edge", head="cloud")) == pytest.approx(0.1 + 0.011)


def test_what_cannot_be_reached_takes_for_ever_whatever_its_weight() -> None:
    content = two()
    content["links"] = []
    content["requests"].append(request("edge", [], "head", weight=0.0))
    held = judge(content)
    assert held.objective_s(on(held.problem, eyes="edge", head="cloud")) == math.inf
    assert held.objective_s(on(held.problem, eyes="edge", head="edge")) == pytest.approx(2.3)


def test_each_request_takes_the_copy_that_is_best_for_it() -> None:
    content = two()
    content["requests"].append(request("cloud", [("eyes", 1e6)], "head"))
    held = judge(content)
    both = ((0, 1), (0, 1))
    assert held.latencies_s(both) == [pytest.approx(0.422), pytest.approx(0.11)]
    assert held.best(1, both)[1] == (1, 1)


@pytest.mark.parametrize(
    ("latencies", "weights", "value"),
    [
        ([1.0, 2.0, 3.0], [0.90, 0.05, 0.05], 2.0),
        ([1.0, 2.0, 3.0], [0.95, 0.01, 0.04], 1.0),
        ([3.0, 1.0], [0.05, 0.95], 1.0),
        ([3.0, 1.0], [0.06, 0.94], 3.0),
        ([2.0] * 19 + [9.0], [0.05] * 20, 2.0),
        ([9.0, 5.0], [0.0, 0.0], 0.0),
        ([9.0, 5.0], [0.0, 1.0], 5.0),
        ([math.inf, 1.0], [0.01, 0.99], math.inf),
    ],
)
def test_p95_is_the_least_that_95_percent_of_the_weight_are_at_most(
    latencies: list[float], weights: list[float], value: float
) -> None:
    assert total(latencies, weights, "p95") == value


def test_mean_is_the_sum_of_weight_and_latency() -> None:
    assert total([1.0, 2.0], [3.0, 0.5], "mean") == 4.0


def test_memory_counts_every_copy_and_a_module_that_nobody_asks_for_needs_one() -> None:
    held = problem(two())
    assert used_bytes(held, ((0, 1), (1,))) == [4.0, 9.0]
    assert fits(held, ((0, 1), (1,))) and not fits(held, ((), (1,)))
    assert not fits(held.with_room([3.0, 9.0]), ((0, 1), (1,)))
    assert fits(held.with_room([4.0, 9.0]), ((0, 1), (1,)))  # to the last byte


@settings(max_examples=60, deadline=None)
@given(instances(dtypes=True))
def test_it_is_what_other_code_says_of_the_same_file(content: dict) -> None:
    held, other = judge(content), Brute(content)
    options = held.problem.options
    for copies in itertools.islice(itertools.product(*(range(len(held)) for held in options)), 50):
        placement = {
            name: ((held.problem.device_names[options[number][index].device], options[number][index].dtype),)
            for number, (name, index) in enumerate(zip(held.problem.module_names, copies, strict=True))
        }
        latencies = held.latencies_s(tuple((index,) for index in copies))
        assert latencies == pytest.approx(other.latencies(placement))
        assert all(alone_s(held.problem, ask) <= value + 1e-12 for ask, value in zip(held.problem.asks, latencies))
        for objective in ("mean", "p95"):
            mine = total(latencies, held.weights, objective)
            assert mine == pytest.approx(other.objective(other.latencies(placement), objective))
