"""`parity`: verdicts become a table and an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from msao_compile.cli.prove import overall
from msao_compile.errors import GateError
from msao_compile.manifest.evidence import ParityEvidence, ParityRow

from . import fixtures
from .conftest import Cli

ROWS = ParityEvidence.model_validate(fixtures.parity()).rows
PASSED = tuple(row for row in ROWS if row.verdict == "PASS")
UNSURE = tuple(row for row in ROWS if row.verdict != "FAIL")


def given(
    monkeypatch: pytest.MonkeyPatch, rows: tuple[ParityRow, ...], left_out: Mapping[str, str] = MappingProxyType({})
) -> None:
    evidence = ParityEvidence(rows=rows, bounds={}, left_out=dict(left_out))
    monkeypatch.setattr("msao_compile.stages.parity.check_deployment", lambda *_, gate: evidence)


@pytest.mark.parametrize(("rows", "word"), [(PASSED, "PASS"), (UNSURE, "AMBIGUOUS"), (ROWS, "FAIL"), ((), "FAIL")])
def test_the_worst_verdict_decides_and_nothing_compared_is_no_pass(rows: tuple[ParityRow, ...], word: str) -> None:
    assert overall(rows) == word


def test_a_pass_exits_0_with_the_counts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, UNSURE)
    ran = cli("parity", "d")
    assert (ran.code, ran.err) == (0, "parity: 18 PASS, 1 AMBIGUOUS\n")
    assert ran.out.splitlines()[1].split()[:5] == ["PASS", "edge", "vision_encoder", "fused", "fp32"]


def test_what_every_row_says_stands_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch, tuple(row for row in PASSED if row.model == "edge" and row.dialect == "fused"), {"edge text": "no"}
    )
    ran = cli("parity", "d")
    lines = ran.out.splitlines()
    assert lines[0].split()[:2] == ["verdict", "subject"] and "model" not in lines[0] and "dialect" not in lines[0]
    assert lines[-1].startswith("in every row: model edge; dialect fused; ")
    assert ran.err.splitlines()[0] == "not compared: edge text: no"


def test_a_failure_exits_5_and_still_gives_every_row(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, ROWS)
    ran = cli("parity", "d", "--json")
    assert ran.code == 5
    assert (ran.json["verdict"], len(ran.json["rows"]), ran.json["error"]["class"]) == ("FAIL", 20, "GateError")
    assert "parity failed in 1 of 20 comparisons, first cloud decoder (portable, ort, fp16)" in ran.err
    assert "min cosine 0.971200, bound min_cosine 0.99" in ran.err


def test_comparing_nothing_exits_5(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, ())
    ran = cli("parity", "d")
    assert ran.code == 5
    assert "compared nothing" in ran.err


def test_a_gate_that_closes_in_the_stage_exits_5(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, reference: Path | None, model: str | None, gate: bool) -> ParityEvidence:
        raise GateError("no")

    monkeypatch.setattr("msao_compile.stages.parity.check_deployment", refuse)
    assert cli("parity", "d").code == 5


def test_a_missing_reference_is_wrong_input(cli: Cli, tmp_path: Path) -> None:
    ran = cli("parity", tmp_path, "--reference", tmp_path / "gone.npz")
    assert ran.code == 2
    assert "gone.npz: there is no such file" in ran.err
