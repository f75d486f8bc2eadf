"""The answer as JSON has it."""

from __future__ import annotations

import json

import pytest

from msao_compile.place.answer import facts
from msao_compile.place.certify import Terms, place
from msao_compile.place.instance import checked

from .small import module, two

CONTRACT = (
    "feasible", "reason", "placement", "objective_s", "bound_s", "gap", "solver", "seconds", "greedy_objective_s",
)  # fmt: skip


def test_a_placement_is_the_contracts_and_says_where_each_request_goes() -> None:
    pytest.importorskip("highspy")
    content = two()
    content["requests"][0]["weight"] = 3.0
    told = facts(place(checked(content, ""), Terms()), "mean")
    assert set(CONTRACT) <= set(told) and json.loads(json.dumps(told)) == told
    assert told["feasible"] is True and told["reason"] is None
    assert told["placement"] == {"eyes": "edge", "head": "cloud"}
    assert told["objective_s"] == pytest.approx(3 * 0.422) and told["mean_latency_s"] == pytest.approx(0.422)
    assert told["latency_s"] == [
        {"task": "t", "source": "edge", "weight": 3.0, "seconds": pytest.approx(0.422), "encoders": ["edge"],
         "head": "cloud"}
    ]  # fmt: skip
    assert told["devices"][0] == {"name": "edge", "memory_bytes": 10.0, "used_bytes": 4.0, "free_bytes": 6.0}


def test_several_copies_are_a_list_and_dtypes_stand_with_the_copies() -> None:
    pytest.importorskip("highspy")
    content = two()
    content["modules"][0] = module("eyes", {"fp16": 9.0, "int4": 4.0}, {"edge": 0.3, "cloud": 0.01})
    content["requests"].append({**content["requests"][0], "source": "cloud"})
    told = facts(place(checked(content, ""), Terms(replicas=0)), "mean")
    assert told["placement"] == {"eyes": ["edge", "cloud"], "head": "cloud"}
    assert told["copies"][0] == {"module": "eyes", "device": "edge", "dtype": "int4", "memory_bytes": 4.0}
    assert told["copies"][-1]["dtype"] is None


def test_no_placement_is_an_answer_with_a_reason_and_changes() -> None:
    pytest.importorskip("highspy")
    content = two()
    content["modules"][1]["memory_bytes"] = 11.0
    told = facts(place(checked(content, ""), Terms()), "mean")
    assert (told["feasible"], told["placement"], told["objective_s"]) == (False, None, None)
    assert told["reason"] == "needs 1 bytes more on edge" or told["reason"] == "needs 1 bytes more on cloud"
    assert len(told["changes"]) == 1 and set(told["changes"][0]) == {"memory_bytes"}
