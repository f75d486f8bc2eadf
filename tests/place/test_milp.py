"""Programs that a reader can solve, and what is said without the library."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from msao_compile.errors import MissingTool
from msao_compile.place.milp import Program, library, solve
from msao_compile.place.ways import Ways

from .small import instance, judge, link, module, request


def knapsack() -> Program:
    """Values 5, 4, 3 of weights 3, 2, 2, of which 4 can be carried: the last two."""
    program = Program()
    columns = [program.switch(-value) for value in (5.0, 4.0, 3.0)]
    program.row(dict(zip(columns, (3.0, 2.0, 2.0))), upper=4.0)
    return program


def test_a_knapsack_is_filled_and_the_bound_is_the_optimum(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("highspy")
    ended = solve(knapsack(), 10.0, {0: 1.0, 1: 0.0, 2: 0.0})
    assert ended.status == "optimal" and ended.bound == pytest.approx(-7.0)
    assert ended.values is not None and ended.values.round().tolist() == [0.0, 1.0, 1.0]
    assert capfd.readouterr().out == ""  # stdout belongs to the answer


def test_rows_that_contradict_are_infeasible() -> None:
    pytest.importorskip("highspy")
    program = knapsack()
    program.row({0: 1.0, 1: 1.0, 2: 1.0}, lower=3.0)
    assert solve(program, 10.0).status == "infeasible"


def test_an_optimum_that_is_not_its_solutions_cost_is_sought_again() -> None:
    """HiGHS 1.16 ends this at cost 0 and gives the start back, which costs 1."""
    pytest.importorskip("highspy")
    held = judge(
        instance(
            {"a": 8.0, "b": 12.0, "c": 7.0}, [link("a", "b"), link("a", "c"), link("b", "c")],
            [module("x", {"fp16": 4.0, "int4": 1.0}, {"fp16": {"c": 0.05}, "int4": dict.fromkeys("abc", 0.2)}),
             module("y", 1.0, dict.fromkeys("abc", 0.01)), module("z", 3.0, dict.fromkeys("abc", 0.01))],
            [request("a", [("y", 0.0)], "x")],
        )
    )  # fmt: skip
    costs = [np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])]
    assert [len(options) for options in held.problem.options] == [4, 3, 3]
    ways = Ways(held, 1, ((3,), (2,), (2,)), costs, 0.05)
    copies, bound = ways.whole([(0, 0), (0, 2), (0, 8), (0, 10)], 10.0)
    assert bound == pytest.approx(0.0) and copies is not None
    assert costs[0][copies[1][0], copies[0][0]] == 0.0


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingTool, match=r"msao-compile\[place\].*--solver local"):
        library()
