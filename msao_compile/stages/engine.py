"""Build one engine file with TensorRT or TensorRT-RTX, after everything that can be known before was looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msao_compile.errors import StageError
from msao_compile.runtime.backends import trt_build

SHOWN = 3


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Build `graph` as `order` says into `output`; what it took is kept beside `weight_bytes`, for the next forecast.

    Raises:
        StageError: the parser refuses nodes, or the builder gives nothing; the reason is the library's own.
        InputError: a data type, an SM or a timing cache does not fit.
    """
    graph, order, facts = Path(arguments["graph"]), arguments["order"], arguments["facts"]
    trt_build.refuse_types(facts["precision"], order)
    refused = trt_build.verdicts(graph, order["backend"])
    if refused:
        shown = "; ".join(
            f"{one.operator} ({one.node}): {one.reason}" + (f", try {one.advice}" if one.advice else "")
            for one in refused[:SHOWN]
        )
        raise StageError(f"{facts['component']}: the parser refuses {len(refused)} nodes: {shown}")
    cache = None if arguments["timing_cache"] is None else Path(arguments["timing_cache"])
    found = trt_build.build(graph, order, Path(arguments["output"]), facts, on_progress, cache)
    return {**found, "weight_bytes": arguments["weight_bytes"]}
