"""The certificate, and what remains where something is missing: the library, time, or a placement."""

from __future__ import annotations

import sys

import pytest

from msao_compile.errors import MissingTool
from msao_compile.place.certify import Terms, bound, place
from msao_compile.place.instance import checked
from tests.bench.instances import large

from .small import module, problem, two

CONTENT = two()


def test_the_certificate_says_that_nothing_is_better() -> None:
    pytest.importorskip("highspy")
    told = place(checked(CONTENT, ""), Terms()).certificate
    assert told is not None and told.optimal and told.solver == "exact"
    assert told.objective_s == pytest.approx(0.422) and told.bound_s == pytest.approx(0.422)


@pytest.mark.parametrize("solver", ["greedy", "local"])
def test_greedy_and_local_search_need_no_library_and_have_a_bound(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    told = place(checked(CONTENT, ""), Terms(solver=solver)).certificate  # type: ignore[arg-type]
    assert told is not None and told.solver == solver
    assert told.objective_s == pytest.approx(0.422) and told.bound_s == pytest.approx(bound(problem(CONTENT), "mean"))


@pytest.mark.parametrize("solver", ["auto", "exact"])
def test_a_proof_needs_the_library(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingTool, match=r"msao-compile\[place\]"):
        place(checked(CONTENT, ""), Terms(solver=solver))  # type: ignore[arg-type]


def test_greedy_that_finds_nothing_proves_nothing() -> None:
    content = two()
    content["modules"][1]["memory_bytes"] = 11.0
    found = place(checked(content, ""), Terms(solver="greedy"))
    assert found.certificate is None and not found.proven and "proves nothing" in str(found.reason)


def test_time_that_is_over_leaves_a_gap_and_is_kept_to() -> None:
    pytest.importorskip("highspy")
    found = place(checked(large(24, 8), ""), Terms(limit_s=1.0))
    told = found.certificate
    assert told is not None and found.greedy_objective_s is not None
    assert told.seconds < 2.5 and 0 < told.bound_s <= told.objective_s <= found.greedy_objective_s
    assert told.gap == pytest.approx(1 - told.bound_s / told.objective_s)


def test_replicas_are_as_many_as_help_and_as_may_be() -> None:
    pytest.importorskip("highspy")
    content = two()
    content["requests"].append({**content["requests"][0], "source": "cloud"})
    sizes = {}
    for replicas in (1, 2, 0):
        found = place(checked(content, ""), Terms(replicas=replicas))
        assert found.copies is not None and found.certificate is not None and found.certificate.optimal
        sizes[replicas] = ([len(held) for held in found.copies], round(found.certificate.objective_s, 6))
    assert sizes == {1: ([1, 1], 1.241), 2: ([2, 1], 0.532), 0: ([2, 1], 0.532)}


def test_a_program_whose_weights_are_all_zero_has_an_optimum_of_zero() -> None:
    pytest.importorskip("highspy")
    content = two()
    content["requests"][0]["weight"] = 0.0
    for objective in ("mean", "p95"):
        told = place(checked(content, ""), Terms(objective=objective)).certificate  # type: ignore[arg-type]
        assert told is not None and (told.objective_s, told.gap) == (0.0, 0.0)


def test_a_module_that_no_request_uses_is_placed_as_well() -> None:
    pytest.importorskip("highspy")
    content = two()
    content["modules"].append(module("rest", 6.0, {"cloud": 1.0}))
    found = place(checked(content, ""), Terms())
    assert found.copies is not None and found.copies[2] == (0,)
    assert found.copies[1] == (0,)  # the cloud has no room for the head beside it


def test_a_bound_is_what_is_known_and_not_what_was_found() -> None:
    content = two()
    content["devices"][1]["memory_bytes"] = 4.0  # the head has to stay at the edge, which the bound does not know
    told = place(checked(content, ""), Terms(solver="local")).certificate
    assert told is not None and told.objective_s == pytest.approx(2.3) and told.bound_s == pytest.approx(0.422)
    assert told.gap == pytest.approx(1 - 0.422 / 2.3) and not told.optimal
