"""A deployment seen as graphs: what GPUs would run, ONNX Runtime can."""

from __future__ import annotations

from pathlib import Path

from manifests import MODULE, content

from msao_compile.manifest.schema import Deployment, Engine
from msao_compile.manifest.variants import as_graphs, unconverted


def test_every_target_is_run_as_graphs_and_each_dialect_in_fp32_as_well(tmp_path: Path) -> None:
    given = Deployment.model_validate(content(tmp_path))
    gpu = {"target": "l4", "backend": "trt_rtx", "precision": "int4", "dialect": "scatter", "status": "deferred"}
    engine = Engine.model_validate({**given.engines[0].model_dump(), **gpu})
    both = given.model_copy(update={"engines": (*given.engines, engine)})
    found = {entry.target: entry for entry in as_graphs(both).engines}
    assert set(found) == {"edge", "l4", unconverted("fused")}  # there is no fp32 graph in scatter
    assert {(entry.backend, entry.status, entry.module) for entry in found.values()} == {("ort", "built", MODULE)}
    assert (found["l4"].precision, found["l4"].dialect) == ("int4", "scatter")
    assert (found["fused fp32"].precision, found["fused fp32"].dialect) == ("fp32", "fused")
    assert both.engines[1].backend == "trt_rtx"
