"""Explanations of why a request has to be built."""

import os

import pytest
from pydantic import JsonValue

from msao_compile.store.explain import explain, nearest
from msao_compile.store.store import Store

from .requests import key

OLD = "3f9a1c" + "0" * 58
NEW = "77b0de" + "0" * 58


@pytest.mark.parametrize(
    ("old", "new", "sentences"),
    [
        (None, {"a": 1}, ["never built"]),
        ({"a": 1}, {"a": 1}, []),
        ({"inputs": {"weights": OLD}}, {"inputs": {"weights": NEW}}, ["inputs.weights 3f9a1c → 77b0de"]),
        ({"w": OLD}, {"w": OLD[:-1] + "1"}, [f"w {OLD} → {OLD[:-1]}1"]),
        ({"version": 1}, {"version": 2}, ["version 1 → 2"]),
        ({"a": 1, "b": "x"}, {"a": True}, ["a 1 → true", "b x removed"]),
        ({}, {"tools": {"torch": "2.13"}}, ["tools.torch 2.13 added"]),
        ({"batch": [1, 1, 8]}, {"batch": [1, 1, 4]}, ["batch [1,1,8] → [1,1,4]"]),
    ],
)
def test_each_field_that_differs_gets_a_sentence(
    old: dict[str, JsonValue] | None, new: dict[str, JsonValue], sentences: list[str]
) -> None:
    assert explain(old, new) == sentences


def test_the_nearest_record_is_the_latest_of_the_same_subject(store: Store) -> None:
    for weights, subject, age in (("a", "edge/x", 30), ("b", "edge/x", 10), ("c", "edge/y", 0)):
        one = key(subject, weights=weights)
        store.commit(one, {}, {})
        path = store.root / "records" / "export" / f"{one.digest}.json"
        os.utime(path, (1000 - age, 1000 - age))
    wanted = key("edge/x", version=2, weights="d")
    found = nearest(store, wanted)
    assert found is not None
    assert explain(found.key.told, wanted.told) == ["version 1 → 2", "weights b → d"]
    assert nearest(store, key("edge/z")) is None
