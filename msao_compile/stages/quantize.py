"""Bring a module's fp32 graph into another precision: weights, types and Q/DQ stand in the graph itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msao_compile.graph.precision.blocks import blocks
from msao_compile.graph.precision.convert import convert
from msao_compile.graph.precision.plan import Conversion


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Convert `source` to `output`; `plan` holds precision, dialect, islands, states and ranges.

    Raises:
        StageError: the graph cannot be brought into that precision.
    """
    plan, output = arguments["plan"], Path(arguments["output"])
    output.parent.mkdir()
    states = plan["states"]
    found = convert(
        Path(arguments["source"]),
        output,
        Conversion(
            precision=plan["precision"],
            dialect=plan["dialect"],
            keep_fp32=tuple(plan["islands"]),
            ranges=plan["ranges"],
            states=tuple(name for state in states for name in (state["name"], state["output"])),
        ),
    )
    output.with_name(f"{output.name}.data").touch()  # of a module whose weights are all small enough for the graph
    kinds = {spec["name"]: spec["dtype"] for spec in found["inputs"]}
    stated = [{**state, "dtype": kinds[state["name"]]} for state in states]
    return {**found, "blocks": list(blocks(Path(arguments["source"]))), "states": stated}
