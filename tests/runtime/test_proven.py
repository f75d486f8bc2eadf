"""Which engine is taken: one that runs here and was proven as far as is demanded, and what is said where none was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import manifests
import pytest

from msao_compile.errors import DeploymentError, MissingTool
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.ladder import LADDER
from msao_compile.runtime.loader import read_manifest

HERE = {"target_id": "local-cpu", "platform_kind": "cpu"}


def engine(**changed: Any) -> dict[str, Any]:
    """An entry of the small deployment."""
    return {"module": manifests.MODULE, "target": "edge", "backend": "ort", "precision": "fp32", "dialect": "fused",
            "status": "parity", "compatibility": HERE, **changed}  # fmt: skip


def engines(tmp_path: Path, *entries: dict[str, Any], **asked: Any) -> Engines:
    """The small deployment with these engines."""
    folder = manifests.write(tmp_path, engines=list(entries))
    return Engines(folder, read_manifest(folder), verify=True, **asked)


@pytest.mark.parametrize("status", LADDER[:3])
def test_an_engine_of_a_cpu_that_did_not_pass_parity_is_refused_with_the_command_that_proves_one(
    tmp_path: Path, status: str
) -> None:
    with pytest.raises(DeploymentError, match=rf"as far as parity.*edge: ort {status}.*msao-compile kit"):
        engines(tmp_path, engine(status=status))._choose(manifests.MODULE)


def test_what_is_demanded_is_enough_and_is_said_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = engines(tmp_path, engine(status="built", reason="never compared"), demand="built")
    backend, file = asked._file(manifests.MODULE)
    assert (backend, file.path.name) == ("ort", "decoder.onnx")
    assert "decoder for edge is only built: never compared" in caplog.text


def test_nothing_is_lowered_by_a_demand_for_more(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="as far as qualified"):
        engines(tmp_path, engine(), demand="qualified")._choose(manifests.MODULE)


def test_an_engine_for_a_gpu_is_passed_over_where_there_is_none_and_a_cpus_is_taken(tmp_path: Path) -> None:
    gpu = engine(target="l4", backend="trt_rtx", status="built", compatibility={**HERE, "platform_kind": "discrete"})
    assert engines(tmp_path, gpu, engine())._choose(manifests.MODULE).target == "edge"
    with pytest.raises(MissingTool, match="l4: there is no NVIDIA driver"):
        engines(tmp_path, gpu)._choose(manifests.MODULE)


def test_a_graph_for_onnx_runtimes_gpu_kernels_is_not_run_on_a_cpu_instead(tmp_path: Path) -> None:
    gpu = engine(target="cuda", status="built", compatibility={**HERE, "platform_kind": "discrete"})
    with pytest.raises(MissingTool, match="cuda: there is no NVIDIA driver"):
        engines(tmp_path, gpu)._choose(manifests.MODULE)
    _, file = engines(tmp_path, gpu, target="cuda")._file(manifests.MODULE)
    assert file.settings.provider == "cuda"


def test_a_deferred_engine_is_never_taken_whatever_is_demanded(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="edge: ort deferred"):
        engines(tmp_path, engine(status="deferred"), demand="deferred")._choose(manifests.MODULE)


def test_a_target_by_name_is_the_only_one_that_is_taken(tmp_path: Path) -> None:
    both = engine(target="other"), engine()
    assert engines(tmp_path, *both, target="edge")._choose(manifests.MODULE).target == "edge"
    with pytest.raises(DeploymentError, match="found none"):
        engines(tmp_path, *both, target="third")._choose(manifests.MODULE)
