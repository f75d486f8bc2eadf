"""Mixed-integer programs: columns and rows collected here, solved by HiGHS."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from msao_compile.errors import MissingTool

Status = Literal["optimal", "infeasible", "stopped"]
FEASIBILITY = 1e-9
"""What HiGHS may miss a row or a whole number by: bytes are small beside a device's memory."""


DIFFERS = 1e-6
"""What an optimum and the cost of its solution may differ by, relative."""
TICK_S = 0.2


@dataclass(frozen=True)
class Solved:
    """How a program ended: `values` by column, None where no solution is known; no solution is below `bound`."""

    status: Status
    values: np.ndarray | None
    bound: float


@dataclass
class Program:
    """A program to minimise: rows are sums of coefficient x column within bounds."""

    costs: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def column(self, upper: float = math.inf, cost: float = 0.0, lower: float = 0.0, whole: bool = False) -> int:
        """A new column's number."""
        self.costs.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.costs) - 1

    def switch(self, cost: float = 0.0) -> int:
        """A new column that is 0 or 1."""
        return self.column(1.0, cost, whole=True)

    def row(self, terms: Mapping[int, float], lower: float = -math.inf, upper: float = math.inf) -> None:
        """A new row."""
        self.rows.append((dict(terms), lower, upper))


def library() -> Any:
    """HiGHS.

    Raises:
        MissingTool: it is not installed.
    """
    try:
        import highspy
    except ModuleNotFoundError as error:
        raise MissingTool(
            "highspy is not installed: pip install 'msao-compile[place]', or choose --solver local, which proves less"
        ) from error
    return highspy


def solve(program: Program, limit_s: float, start: Mapping[int, float] | None = None) -> Solved:
    """Solve a program in at most so many seconds; `start` are the whole columns of a solution that is known.

    Raises:
        MissingTool: HiGHS is not installed.
    """
    began_s = time.perf_counter()
    found = _solved(program, limit_s, start)
    if start and _contradicts_itself(program, found):
        left_s = limit_s - (time.perf_counter() - began_s)
        return _solved(program, left_s, None)
    return found


def _contradicts_itself(program: Program, found: Solved) -> bool:
    """Whether an optimum is not what its solution costs: seen of HiGHS 1.16, which gave the start back where presolve
    had made it another solution. Its bound is none that is too high, but the solution is lost.
    """
    if found.status == "infeasible" or found.values is None:
        return found.status == "infeasible"
    cost = float(np.dot(program.costs, found.values))
    return found.status == "optimal" and cost > found.bound + DIFFERS * max(1.0, abs(found.bound))


def _solved(program: Program, limit_s: float, start: Mapping[int, float] | None) -> Solved:
    highspy = library()
    solver = _solver(highspy)
    solver.setOptionValue("time_limit", max(limit_s, 0.0))
    solver.passModel(_model(highspy, program))
    if start:
        columns = np.fromiter(start.keys(), np.int32, len(start))
        solver.setSolution(len(start), columns, np.fromiter(start.values(), np.float64, len(start)))
    _run(solver)
    status, info = solver.getModelStatus(), solver.getInfo()
    if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
        return Solved("infeasible", None, math.inf)
    known = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    values = np.array(solver.getSolution().col_value) if known else None
    ended: Status = "optimal" if status == highspy.HighsModelStatus.kOptimal else "stopped"
    return Solved(ended, values, float(info.mip_dual_bound))


class Growing:
    """A program without its whole numbers, to which columns are added between solutions."""

    def __init__(self, program: Program) -> None:
        self._highspy = library()
        self._solver = _solver(self._highspy)
        model = _model(self._highspy, program)
        model.integrality_ = []
        self._solver.passModel(model)

    def grow(self, columns: Sequence[tuple[float, Sequence[int]]]) -> None:
        """Columns from 0 on, each with its cost and the rows in which it counts once."""
        starts = np.cumsum([0, *(len(rows) for _, rows in columns)], dtype=np.int32)[:-1]
        index = np.array([row for _, rows in columns for row in rows], np.int32)
        costs, count = np.array([cost for cost, _ in columns]), len(columns)
        above = np.full(count, self._highspy.kHighsInf)
        self._solver.addCols(count, costs, np.zeros(count), above, len(index), starts, index, np.ones(len(index)))

    def solve(self, limit_s: float) -> tuple[float, np.ndarray | None]:
        """The optimum and the prices of the rows; None where time was up before."""
        self._solver.setOptionValue("time_limit", self._solver.getRunTime() + max(limit_s, 0.0))
        _run(self._solver)
        if self._solver.getModelStatus() != self._highspy.HighsModelStatus.kOptimal:
            return 0.0, None
        prices = np.array(self._solver.getSolution().row_dual)
        return float(self._solver.getInfo().objective_function_value), prices


def _solver(highspy: Any) -> Any:
    """A solver that is silent, exact to what floats allow, and the same every time."""
    solver = _quiet(highspy)
    for name, value in (
        ("output_flag", False), ("threads", 1), ("random_seed", 0), ("mip_rel_gap", 0.0), ("mip_abs_gap", FEASIBILITY),
        ("mip_feasibility_tolerance", FEASIBILITY), ("primal_feasibility_tolerance", FEASIBILITY),
        ("dual_feasibility_tolerance", FEASIBILITY),
    ):  # fmt: skip
        solver.setOptionValue(name, value)
    return solver


def _run(solver: Any) -> None:
    """Solve on a thread of its own: HiGHS hears no signals, and whoever presses Ctrl-C need not wait for it."""
    thread = threading.Thread(target=solver.run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(TICK_S)


def _quiet(highspy: Any) -> Any:
    """A solver that does not write its name to stdout, as HiGHS does when it is told of callbacks before options."""

    class Quiet(highspy.Highs):  # type: ignore[misc]
        def enableCallbacks(self) -> None:
            """None are used here."""

    return Quiet()


def _model(highspy: Any, program: Program) -> Any:
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(program.costs), len(program.rows)
    model.col_cost_ = np.array(program.costs)
    model.col_lower_, model.col_upper_ = np.array(program.lower), np.array(program.upper)
    model.row_lower_ = np.array([lower for _, lower, _ in program.rows])
    model.row_upper_ = np.array([upper for _, _, upper in program.rows])
    model.integrality_ = [
        highspy.HighsVarType.kInteger if whole else highspy.HighsVarType.kContinuous for whole in program.whole
    ]
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.cumsum([0, *(len(terms) for terms, _, _ in program.rows)], dtype=np.int32)
    model.a_matrix_.index_ = np.array([column for terms, _, _ in program.rows for column in terms], np.int32)
    model.a_matrix_.value_ = np.array([value for terms, _, _ in program.rows for value in terms.values()], np.float64)
    return model
