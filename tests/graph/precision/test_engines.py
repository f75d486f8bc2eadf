"""Every precision parses and builds ahead of time with TensorRT-RTX, which needs no GPU for that.

What the engines compute was not run: that takes a GPU of the architecture they are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from msao_compile.graph.precision.convert import Conversion, convert
from msao_compile.graph.precision.observe import observed
from msao_compile.graph.precision.ranges import Ranges
from msao_compile.manifest.engine import Precision

from .samples import run
from .test_half import numbers, two_blocks

rtx: Any = pytest.importorskip("tensorrt_rtx")
SIZE = 128


class Silent(rtx.ILogger):  # type: ignore[misc]
    """Keeps errors for the failure's message."""

    def __init__(self) -> None:
        rtx.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= rtx.ILogger.ERROR:
            self.errors.append(message)


def built(path: Path, architecture: str) -> tuple[int, list[str]]:
    """Bytes of the engine (0 where there is none) and what went wrong."""
    logger = Silent()
    builder = rtx.Builder(logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return 0, [parser.get_error(number).desc() for number in range(parser.num_errors)]
    settings = builder.create_builder_config()
    settings.num_compute_capabilities = 1
    settings.set_compute_capability(getattr(rtx.ComputeCapability, architecture), 0)
    engine = builder.build_serialized_network(network, settings)
    return (0 if engine is None else int(engine.nbytes)), logger.errors


@pytest.mark.parametrize(
    ("precision", "architecture", "quantised"),
    [("fp16", "SM75", 0), ("bf16", "SM86", 0), ("int8", "SM75", 4), ("fp8", "SM89", 4), ("int4", "SM86", 4)],
)
def test_a_graph_of_each_precision_builds_for_the_oldest_gpu_that_has_it(
    tmp_path: Path, precision: Precision, architecture: str, quantised: int
) -> None:
    source = two_blocks(tmp_path / "a.onnx", SIZE)
    ranges = Ranges(observed(source, tmp_path / "observed.onnx"))
    ranges.add(run(tmp_path / "observed.onnx", x=numbers(2, SIZE)))
    facts = convert(source, tmp_path / "b.onnx", Conversion(precision, "portable", ranges=ranges.maximum))
    assert facts["quantised"] == quantised
    size_bytes, errors = built(tmp_path / "b.onnx", architecture)
    assert size_bytes and not errors


def test_a_type_that_a_gpu_lacks_does_not_build(tmp_path: Path) -> None:
    source = two_blocks(tmp_path / "a.onnx", SIZE)
    convert(source, tmp_path / "b.onnx", Conversion("bf16", "portable"))
    size_bytes, errors = built(tmp_path / "b.onnx", "SM75")
    assert not size_bytes and errors
