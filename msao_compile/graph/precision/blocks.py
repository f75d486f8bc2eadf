"""The repeated layers of a graph, recognised by the names of their weights, and the value that leaves each."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx_ir as ir

from msao_compile.graph.precision import norms, operators, weights
from msao_compile.manifest.bisection import BEFORE

BLOCK = re.compile(r"^((?:[A-Za-z_]\w*\.)+\d+)\.")
FEWEST = 3
"""Weights that make a block: a norm and two products; a numbered item of a small stack has fewer."""


def blocks(source: Path) -> tuple[str, ...]:
    """Dotted prefixes of the layers of a graph in the order of their use, as "vision_model.encoder.layers.0".

    Raises:
        DeploymentError: there is no graph at `source`, or its data file is damaged.
    """
    return tuple(_members(weights.opened(source)))


def _members(model: ir.Model) -> dict[str, set[str]]:
    """Names of the weights of each block."""
    found: dict[str, set[str]] = {}
    for node in model.graph:
        for name in _weights(node):
            match = BLOCK.match(name)
            if match is not None:
                found.setdefault(match[1], set()).add(name)
    return {block: names for block, names in found.items() if len(names) >= FEWEST}


def _weights(node: ir.Node) -> list[str]:
    """Dotted names among a node's constants; joined weights carry several."""
    names = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
    return [part for name in names for part in name.split("+") if "." in part]


def labels(model: ir.Model) -> dict[ir.Node, str]:
    """The block that each node belongs to; "" for those outside all.

    A node with weights belongs where they do, another where the latest of its float inputs comes from. Of a norm that
    is spelt out only the last node has a weight: the others belong where that one does.
    """
    order = {block: place for place, block in enumerate(_members(model))}
    constant, found = norms.constants_only(model), dict[ir.Node, str]()
    for node in model.graph:
        own = [block if block in order else "" for block in _blocks_of(node)]
        makers = [value.producer() for value in operators.floats(node.inputs)]
        own += [found[maker] for maker in makers if maker in constant]
        before = [found[maker] for maker in makers if maker in found]
        found[node] = max(own or before, key=lambda block: order.get(block, -1), default="")
    spelt_out = norms.norm_nodes(model)
    for node in reversed(list(model.graph)):
        takers = {found[user] for value in node.outputs for user in value.consumers() if user in found}
        if node in spelt_out and len(takers) == 1 and not any(name in order for name in _blocks_of(node)):
            found[node] = takers.pop()
    return found


def _blocks_of(node: ir.Node) -> list[str]:
    """The numbered prefix of each of a node's weights; "" for those without."""
    return [match[1] if match else "" for match in map(BLOCK.match, _weights(node))]


def inside(block: str, islands: Collection[str]) -> bool:
    """Whether a block is one of the islands or lies in one."""
    return any(block == island or block.startswith(f"{island}.") for island in islands)


def exits(model: ir.Model) -> dict[str, ir.Value]:
    """For each block the last float value that something outside of it takes.

    What nodes before all blocks make of the inputs for the first one, where they do, is that of `BEFORE`.
    """
    labelled = labels(model)
    found: dict[str, ir.Value] = {}
    for node, block in labelled.items():
        for value in operators.floats(node.outputs) if block else ():
            takers = {labelled.get(user, "") for user in value.consumers()}
            if takers - {block} or (value.is_graph_output() and not takers and block not in found):
                found[block] = value
    entering = [] if not found else _entering(labelled, *next(iter(found.items())))
    return {BEFORE: entering[-1], **found} if entering else found


def _entering(labelled: Mapping[ir.Node, str], block: str, leaving: ir.Value) -> list[ir.Value]:
    """What the first block takes of what is computed before it, in the shape of what leaves it."""
    taken = {value for node, own in labelled.items() if own == block for value in operators.floats(node.inputs)}
    made = [value for node, own in labelled.items() if not own for value in operators.floats(node.outputs)]
    return [value for value in made if value in taken and _rows(value) == _rows(leaving) != ()]


def _rows(value: ir.Value) -> tuple[object, ...]:
    """How many axes there are, and the length of the last."""
    return () if value.shape is None or not len(value.shape) else (len(value.shape), value.shape[-1])
