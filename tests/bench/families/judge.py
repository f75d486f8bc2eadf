"""What the commands left of one family, as the columns of its row: no file is read and nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

DIALECTS = ("fused", "portable")
REQUIRED = "fused"
GREEDY = "greedy tokens of the reference"
TEXT_ONLY, BATCH = "text", "batch of 2"
PASS, AMBIGUOUS, FAIL = "PASS", "AMBIGUOUS", "FAIL"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """The first thing that a command said was wrong."""

    where: str
    sentence: str


@dataclass
class Case:
    """One recorded reference: whether it holds generated tokens, and the rows of the comparison."""

    name: str
    has_tokens: bool
    rows: list[Row] = field(default_factory=list)

    def verdict(self, dialect: str) -> str | None:
        """Of all its rows in a dialect, None where nothing was compared."""
        return verdict_of(_in(dialect, self.rows))

    def tokens(self, dialect: str) -> str | None:
        """Of its greedy tokens: None where it has none, FAIL where it has some and none were compared."""
        if not self.has_tokens:
            return None
        return verdict_of(row for row in _in(dialect, self.rows) if row["subject"] == GREEDY) or FAIL


@dataclass
class Evidence:
    """Everything that the commands of one family gave; `exported` holds (dialect, component)."""

    components: list[str] = field(default_factory=list)
    split: bool = False
    exported: set[tuple[str, str]] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """By dialect, the sentence with which the build's own parity gate ended it."""
    cases: list[Case] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class Family:
    """One row of the table; per-dialect columns are mappings, None where there is nothing to judge."""

    name: str
    passes: bool
    split: bool
    export: dict[str, bool]
    parity: dict[str, str | None]
    max_abs: dict[str, float | None]
    text_only: dict[str, str | None]
    batch: dict[str, str | None]
    generate: dict[str, str | None]
    dialects: list[str]
    points: list[str]
    modules: list[str]
    cases: dict[str, dict[str, str | None]]
    """By name of the reference, the verdict in each dialect."""
    error: Problem | None
    build_s: float | None = None
    build_cpu_s: float | None = None
    build_peak_rss_bytes: int | None = None
    seconds: float = 0.0
    watched_peak_rss_bytes: int = 0
    stopped: bool = False
    """Whether a limit ended it: another limit may give another row."""
    limits: dict[str, float] = field(default_factory=dict)
    key: str = ""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Family:
        """From what `stored` gave.

        Raises:
            TypeError, KeyError: other fields, as another version writes them.
        """
        error = stored["error"]
        return cls(**{**stored, "error": None if error is None else Problem(**error)})

    def stored(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def judge(name: str, found: Evidence) -> Family:
    """The row of a family; it passes when everything holds in at least the fused dialect."""
    export = {
        dialect: bool(found.components) and all((dialect, one) in found.exported for one in found.components)
        for dialect in DIALECTS
    }
    parity = {dialect: _parity(found, dialect) for dialect in DIALECTS}
    tokens = {dialect: _worst(case.tokens(dialect) for case in found.cases) for dialect in DIALECTS}
    cases = {case.name: {dialect: case.verdict(dialect) for dialect in DIALECTS} for case in found.cases}
    passed = [
        dialect
        for dialect in DIALECTS
        if found.split
        and export[dialect]
        and parity[dialect] == PASS
        and tokens[dialect] in (None, PASS)
        and all(case[dialect] == PASS for case in cases.values())
    ]
    return Family(
        name=name,
        passes=REQUIRED in passed,
        split=found.split,
        export=export,
        parity=parity,
        max_abs={dialect: _max_abs(found, dialect) for dialect in DIALECTS},
        text_only=_about(found, TEXT_ONLY),
        batch=_about(found, BATCH),
        generate=tokens,
        dialects=passed,
        points=found.points,
        modules=found.components,
        cases=cases,
        error=found.problems[0] if found.problems else None,
    )


def _about(found: Evidence, subject: str) -> dict[str, str | None]:
    return {
        dialect: verdict_of(row for row in _in(dialect, found.rows) if row["subject"] == subject)
        for dialect in DIALECTS
    }


def verdict_of(rows: Iterable[Row]) -> str | None:
    """The worst verdict of some rows, None where there are none."""
    return _worst(str(row["verdict"]) for row in rows)


def _worst(verdicts: Iterable[str | None]) -> str | None:
    there = {verdict for verdict in verdicts if verdict is not None}
    if not there:
        return None
    if there == {PASS}:
        return PASS
    return AMBIGUOUS if there <= {PASS, AMBIGUOUS} else FAIL


def _in(dialect: str, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["dialect"] == dialect]


def _parity(found: Evidence, dialect: str) -> str | None:
    return verdict_of(_in(dialect, found.rows)) or (FAIL if dialect in found.refused else None)


def _max_abs(found: Evidence, dialect: str) -> float | None:
    """The largest deviation of the rows, else the one that the gate's sentence names."""
    # A deviation that is not finite is null in JSON.
    values = [float("inf") if row["max_abs"] is None else float(row["max_abs"]) for row in _in(dialect, found.rows)]
    named = re.search(r"max abs (\d[\d.]*(?:e[+-]?\d+)?)", found.refused.get(dialect, ""))
    if not values and named is not None:
        return float(named[1])
    worst = max(values, default=None)
    return None if worst is None or worst == float("inf") else worst
