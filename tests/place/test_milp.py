"""Programs that a reader can solve, and what is said without the library."""

from __future__ import annotations

import sys

import pytest

from msao_compile.errors import MissingTool
from msao_compile.place.milp import Program, library, solve


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


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingTool, match=r"msao-compile\[place\].*--solver local"):
        library()
