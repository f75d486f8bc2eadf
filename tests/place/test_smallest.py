"""What makes something fit, exactly: with the change there is a placement, with a little less there is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from msao_compile.place.certify import Terms, place
from msao_compile.place.instance import checked
from msao_compile.place.smallest import Change
from tests.bench.placement import applied

from .small import instance, instances, link, module, request, two

pytest.importorskip("highspy")
GIB = 2**30


def asked(content: dict[str, Any]) -> tuple[str, tuple[Change, ...]]:
    """Reason and changes of an instance that has no placement."""
    found = place(checked(content, ""), Terms())
    assert found.certificate is None and found.proven
    return str(found.reason), found.changes


def feasible(content: dict[str, Any]) -> bool:
    """Whether there is a placement."""
    return place(checked(content, ""), Terms()).certificate is not None


def test_memory_of_one_device_is_told_first_and_to_the_byte() -> None:
    content = two()
    content["devices"] = [{"name": "edge", "memory_bytes": 1e9}, {"name": "cloud", "memory_bytes": 2e9}]
    content["modules"][1]["memory_bytes"] = 5e9
    reason, (change,) = asked(content)
    assert change == Change(memory_bytes={"cloud": 3e9})
    assert reason == "needs 2.8 GiB more on cloud"
    assert feasible(applied(content, change))
    assert not feasible(applied(content, Change(memory_bytes={"cloud": 3e9 - 1.0})))


def test_several_devices_are_named_where_one_is_not_enough() -> None:
    content = instance(
        {"a": 1.0, "b": 1.0}, [link("a", "b")], [module("x", 2.0, {"a": 1.0}), module("y", 3.0, {"b": 1.0})],
        [request("a", [("x", 0.0)], "y")],
    )  # fmt: skip
    reason, changes = asked(content)
    assert changes == (Change(memory_bytes={"a": 1.0, "b": 2.0}),)
    assert reason == "needs 1 bytes more on a and 2 bytes more on b"
    assert feasible(applied(content, changes[0]))


def test_a_dtype_that_is_not_allowed_is_another_way() -> None:
    content = two()
    content["modules"][1] = module(
        "head", {"fp16": 20 * GIB, "int4": 6.0}, {"edge": 2.0, "cloud": 0.1}, allowed=["fp16"]
    )
    reason, changes = asked(content)
    assert "would fit with head at int4" in reason and Change(dtypes={"head": "int4"}) in changes
    assert all(feasible(applied(content, change)) for change in changes)


def test_a_link_is_named_where_it_is_what_is_missing() -> None:
    content = two()
    content["links"] = []
    content["modules"][1]["seconds"] = {"cloud": 0.1}
    reason, changes = asked(content)
    assert reason == "no link from edge to cloud" and changes == (Change(links=(("edge", "cloud"),)),)
    assert feasible(applied(content, changes[0]))


def test_links_and_memory_are_told_together_where_neither_is_enough() -> None:
    content = two()
    content["links"] = []
    content["devices"][1]["memory_bytes"] = 3.0
    content["modules"][1]["seconds"] = {"cloud": 0.1}
    reason, (change,) = asked(content)
    assert reason == "needs 2 bytes more on cloud and no link from edge to cloud"
    assert feasible(applied(content, change))


def test_a_module_that_runs_nowhere_is_named() -> None:
    content = two()
    content["modules"][0]["seconds"] = {}
    reason, changes = asked(content)
    assert reason == "no device can run eyes: give seconds on one" and changes[0].runs_nowhere == ("eyes",)


@settings(max_examples=80, deadline=None)
@given(instances(dtypes=True))
def test_every_change_that_is_told_is_enough(content: dict[str, Any]) -> None:
    found = place(checked(content, ""), Terms())
    if found.certificate is None:
        assert found.changes
        assert all(feasible(applied(content, change)) for change in found.changes if not change.runs_nowhere)
