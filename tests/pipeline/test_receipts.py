"""From a recipe to a kit, to a device, and back into the deployment; TensorRT-RTX plays the device's builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kits
import pytest
from building import KV_CAPACITY, Workshop, write_recipe

from msao_compile.errors import DeploymentError
from msao_compile.manifest.schema import BuildOrder, Engine, Module, ShapeProfile
from msao_compile.manifest.signature import make_key, sign
from msao_compile.pipeline import Options, build
from msao_compile.runtime.loader import verify
from msao_compile.stages import build as stage
from msao_compile.stages.kit import archive, pack

L4 = '[targets.l4]\ndevice = "nvidia-l4"\nprecision = "fp32"\ndialect = "portable"\n'
rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds the engines of these kits")


@pytest.fixture
def recipe(checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with an L4, whose engines have orders."""
    described = stage.describe

    def with_order(module: Module, *given: Any, **more: Any) -> Engine:
        entry = described(module, *given, **more)
        if entry.backend == "ort" or entry.order is not None:
            return entry
        graph = next(graph for graph in module.graphs if graph.dialect == entry.dialect)
        profiles = kits.profiles_of(graph.model_dump(mode="json"), KV_CAPACITY)
        order = BuildOrder(
            backend=entry.backend, profiles=tuple(map(ShapeProfile.model_validate, profiles)), level="draft",
            compute_capabilities=(89,),
        )  # fmt: skip
        return entry.model_copy(update={"order": order})

    monkeypatch.setattr(stage, "describe", with_order)
    path = write_recipe(tmp_path / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")})
    path.write_text(path.read_text().replace("[shapes", f"{L4}[shapes"))
    return path


def test_what_a_device_built_is_in_the_deployment_and_stays_there(
    workshop: Workshop, recipe: Path, tmp_path: Path
) -> None:
    options = dataclasses.replace(workshop.options, out=tmp_path / "deployments")
    first = build(recipe, options, lambda event: None)
    assert {engine.status for engine in first.deployment.engines if engine.target == "l4"} == {"deferred"}
    kit = archive.write(tmp_path / "kit", pack.pack(first.folder, first.deployment, "l4").entries)
    done = kits.run(kit, "--keep-going")
    assert done.returncode == 4, done.stdout + done.stderr
    accepting = dataclasses.replace(options, receipts=(kit / "receipt.json",))
    for chosen in (accepting, options):  # the second build takes over what the first one took in
        found = build(recipe, chosen, lambda event: None)
        engines = [engine for engine in found.deployment.engines if engine.target == "l4"]
        assert [engine.status for engine in engines] == ["built"] * 3
        assert [engine.compatibility.tensorrt for engine in engines] == [rtx.__version__] * 3
        verify(found.folder, found.deployment)
        assert "receipt-l4" in found.deployment.evidence
        assert len(list(found.folder.glob("engines/edge/*.engine"))) == 3
    check_signatures(recipe, accepting, kit, tmp_path)


def check_signatures(recipe: Path, accepting: Options, kit: Path, tmp_path: Path) -> None:
    """Receipts that are not signed are refused where keys are given, and the signature is kept."""
    pytest.importorskip("cryptography")
    public, _ = make_key(tmp_path / "key.pem")
    strict = dataclasses.replace(accepting, trusted_keys=public)
    with pytest.raises(DeploymentError, match="is not signed"):
        build(recipe, strict, lambda event: None)
    sign(kit / "receipt.json", tmp_path / "key.pem")
    for chosen in (strict, dataclasses.replace(strict, receipts=())):
        found = build(recipe, chosen, lambda event: None)
        assert (found.folder / "evidence/receipt-l4.json.sig").is_file()


def test_a_receipt_of_other_engines_is_refused_and_one_that_was_taken_is_left_out_with_a_warning(
    workshop: Workshop, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = dataclasses.replace(workshop.options, out=tmp_path / "deployments")
    first = build(recipe, options, lambda event: None)
    kit = archive.write(tmp_path / "kit", pack.pack(first.folder, first.deployment, "l4").entries)
    kits.run(kit, "--only", "embed_tokens")
    accepting = dataclasses.replace(options, receipts=(kit / "receipt.json",))
    assert {engine.status for engine in build(recipe, accepting, print).deployment.engines} >= {"built", "deferred"}
    recipe.write_text(recipe.read_text().replace("nvidia-l4", "nvidia-a10"))
    with pytest.raises(DeploymentError, match="its kit is"):
        build(recipe, accepting, lambda event: None)
    again = build(recipe, options, lambda event: None)
    assert {engine.status for engine in again.deployment.engines if engine.target == "l4"} == {"deferred"}
    assert "receipt-l4.json is not taken over: this receipt is not of this deployment" in caplog.text
