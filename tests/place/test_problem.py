"""Delays between devices, and the options of modules."""

from __future__ import annotations

import math

import pytest

from msao_compile.place.instance import checked
from msao_compile.place.problem import delays, problem_of

from .small import link, module, two


def test_bytes_travel_for_half_a_round_trip_and_at_the_rate_of_the_link() -> None:
    table = delays(checked(two(), ""), 1e6)
    assert table == ((0.0, pytest.approx(1.01)), (pytest.approx(1.01), 0.0))


def test_a_link_leads_back_as_well_unless_the_way_back_is_given() -> None:
    content = two()
    content["links"].append(link("cloud", "edge", rtt_ms=2.0, mbps=80.0))
    table = delays(checked(content, ""), 1e6)
    assert table[0][1] == pytest.approx(1.01) and table[1][0] == pytest.approx(0.101)


def test_without_a_link_nothing_arrives() -> None:
    content = two()
    content["links"] = []
    assert delays(checked(content, ""), 0.0) == ((0.0, math.inf), (math.inf, 0.0))


def test_a_module_runs_only_where_seconds_are_given() -> None:
    content = two()
    content["modules"].append(module("rest", 1.0, {"cloud": 1.0}))
    held = problem_of(checked(content, ""))
    assert [option.device for option in held.options[2]] == [1]
    assert held.users == ((0,), (0,), ())
