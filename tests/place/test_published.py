"""The published instances are what their seed draws, and come out as their index says; the bench does all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from msao_compile.place.certify import Terms, place
from msao_compile.place.instance import checked, read_json
from tests.bench.instances import FOLDER, INDEX, LARGE, drawn, large

from .brute import Brute

LISTED: list[dict[str, Any]] = json.loads((FOLDER / INDEX).read_text())
MOST = 20_000


def test_there_are_as_many_as_promised_and_the_seed_draws_them_again() -> None:
    assert len(LISTED) >= 95 and [entry["file"] for entry in LISTED] == [f"{one.name}.json" for one in drawn()]
    assert {path.name for path in FOLDER.glob("*.json")} == {entry["file"] for entry in LISTED} | {INDEX, LARGE}
    for one in drawn():
        assert read_json(FOLDER / f"{one.name}.json") == one.content(), one.name
    assert read_json(FOLDER / LARGE) == large()


@pytest.mark.parametrize("entry", LISTED[::4], ids=lambda entry: entry["file"])
def test_the_optimum_is_the_one_that_is_listed_and_that_of_trying_all(entry: dict[str, Any]) -> None:
    pytest.importorskip("highspy")
    content = read_json(FOLDER / entry["file"])
    found = place(checked(content, entry["file"]), Terms())
    assert (found.certificate is not None) == entry["feasible"]
    if found.certificate is None:
        assert found.proven and found.reason == entry["reason"]
        return
    assert found.certificate.optimal
    assert found.certificate.objective_s == pytest.approx(entry["optimum_s"], rel=1e-6)
    brute = Brute(content)
    if brute.size <= MOST:
        assert brute.best() == pytest.approx(found.certificate.objective_s, rel=1e-6)
