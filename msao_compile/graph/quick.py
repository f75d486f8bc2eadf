"""Traces without what costs more than it gives: a fifth of the export of three encoders and a decoder.

onnxscript asks every rewrite rule about every node, and one whose pattern has two ends lists the whole graph each time.
torch keeps what each operation makes of its shapes; where lengths are symbols it looks up more than it finds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
from onnxscript import rewriter
from torch._dynamo import config


class Asked:
    """A rule that answers None, as it would, about a node of another operator than the end of its pattern."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule
        self._end = rule._target_pattern.output_nodes[0].op_identifier()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        """What the rule makes of the node."""
        if self._end is not None and self._end != node.op_identifier():
            return None
        return self._rule.try_rewrite(model, graph, node, **options)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Within, torch.export keeps no shapes, and torch.onnx asks its rules only where they may apply."""
    rules = tuple(map(Asked, rewriter._DEFAULT_REWRITE_RULES))
    with config.patch(fake_tensor_cache_enabled=False), patch.object(rewriter, "_DEFAULT_REWRITE_RULES", rules):
        yield
