"""Rules that are asked less make the same graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxscript import rewriter
from torch._dynamo import config

from msao_compile.graph.quick import Asked, quick

HALVES = 4


def constant(value: int) -> ir.Value:
    return ir.val(f"c{value}", ir.DataType.INT64, [1], const_value=ir.tensor(np.array([value]), name=f"c{value}"))


def rotated() -> ir.Model:
    """Two halves of an axis, each by a slice, and casts, transposes and unsqueezes that rules join or drop."""
    x = ir.val("x", ir.DataType.FLOAT, [2, 2 * HALVES])
    zero, half, end, axis = (constant(value) for value in (0, HALVES, 2 * HALVES, 1))
    high = ir.node("Slice", [x, half, end, axis])
    low = ir.node("Slice", [x, zero, half, axis])
    for part in (low, high):
        part.outputs[0].shape, part.outputs[0].type = ir.Shape([2, HALVES]), x.type
    joined = ir.node("Concat", [high.outputs[0], low.outputs[0]], {"axis": 1})
    there = ir.node("Transpose", [joined.outputs[0]], {"perm": [1, 0]})
    back = ir.node("Transpose", [there.outputs[0]], {"perm": [1, 0]})
    cast = ir.node("Cast", [back.outputs[0]], {"to": ir.DataType.FLOAT})
    nodes = [high, low, joined, there, back, cast]
    graph = ir.Graph([x], cast.outputs, nodes=nodes, initializers=[zero, half, end, axis], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def rewritten() -> list[tuple[str, list[str]]]:
    model = rotated()
    rewriter.RewritePass(rewriter._DEFAULT_REWRITE_RULES)(model)
    return [(node.op_type, [str(attribute) for attribute in node.attributes.values()]) for node in model.graph]


def test_rules_that_are_asked_less_make_the_same_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    tried = rewriter.RewriteRule.try_rewrite

    def counted(rule: Any, *args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return tried(rule, *args, **options)

    monkeypatch.setattr(rewriter.RewriteRule, "try_rewrite", counted)
    plain, before = rewritten(), asked
    with quick():
        less = rewritten()
    assert less == plain
    assert {"Split", "Slice"} & {name for name, _ in plain} == {"Split"}, "a rule with two ends was applied"
    assert "Transpose" not in dict(plain)
    assert asked - before < before / 5


def test_what_a_trace_leaves_is_as_it_was() -> None:
    rules, kept = rewriter._DEFAULT_REWRITE_RULES, config.fake_tensor_cache_enabled
    with pytest.raises(KeyError), quick():
        assert not config.fake_tensor_cache_enabled
        assert all(isinstance(rule, Asked) for rule in rewriter._DEFAULT_REWRITE_RULES)
        raise KeyError
    assert (rewriter._DEFAULT_REWRITE_RULES is rules, config.fake_tensor_cache_enabled) == (True, kept)
