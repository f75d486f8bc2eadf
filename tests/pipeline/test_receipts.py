"""From a recipe to a kit, to a device, and back into the deployment; TensorRT-RTX plays the device's builder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import kits
import pytest
from building import Workshop, write_recipe

from msao_compile.cli.make import built_summary
from msao_compile.errors import DeploymentError
from msao_compile.manifest.digest import sha256_file
from msao_compile.manifest.signature import make_key, sign
from msao_compile.pipeline import Options, build
from msao_compile.runtime.backends import engine_file
from msao_compile.runtime.loader import verify
from msao_compile.stages.kit import archive, pack

L4 = '[targets.l4]\ndevice = "nvidia-l4"\nprecision = "fp32"\ndialect = "portable"\n'
rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds the engines of these kits")


@pytest.fixture
def recipe(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe with an L4, whose engines have orders."""
    path = write_recipe(tmp_path / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")})
    path.write_text(path.read_text().replace("[shapes", f"{L4}[shapes"))
    return path


def test_what_a_device_built_is_in_the_deployment_and_stays_there(
    workshop: Workshop, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = dataclasses.replace(workshop.options, out=tmp_path / "deployments")
    first = build(recipe, options, lambda event: None)
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
        assert "l4: 3 engines by receipt built" in built_summary(found)
        there = {file.sha256 for file in found.deployment.all_files().values() if file.path.endswith(".engine")}
        assert there == {sha256_file(path) for path in kit.glob("engines/edge/*.engine")}
    check_signatures(recipe, accepting, kit, tmp_path)
    check_kept(recipe, accepting, kit, caplog)


def check_kept(recipe: Path, accepting: Options, kit: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A receipt that names fewer engines than the one before leaves the others as proven, on the same device only."""
    path, folder = kit / "receipt.json", accepting.out / "tiny"
    assert len(list(folder.glob("engines/edge/*.engine"))) == 3
    (kit / "receipt.json.sig").unlink(missing_ok=True)
    whole = json.loads(path.read_text())
    engines = {file.relative_to(folder): file.read_bytes() for file in folder.glob("engines/edge/*.engine")}
    path.write_text(json.dumps({**whole, "modules": whole["modules"][:1]}))
    for chosen in (accepting, dataclasses.replace(accepting, receipts=())):
        found = build(recipe, chosen, lambda event: None)
        assert {"receipt-l4", "earlier-1-receipt-l4"} <= set(found.deployment.evidence)
        verify(found.folder, found.deployment)
        assert {name: (folder / name).read_bytes() for name in engines} == engines
    assert "not taken over" not in caplog.text
    path.write_text(json.dumps({**whole, "modules": whole["modules"][1:2]}))
    assert "earlier-2-receipt-l4" in build(recipe, accepting, lambda event: None).deployment.evidence
    path.write_text(json.dumps(whole))
    found = build(recipe, accepting, lambda event: None)
    assert [name for name in found.deployment.evidence if "receipt" in name] == ["receipt-l4"]
    del whole["modules"][1:]
    path.write_text(json.dumps({**whole, "device": {**whole["device"], "driver": "1.2"}}))
    found = build(recipe, accepting, lambda event: None)
    assert "its device says driver None where the newer receipt for l4 says 1.2, so the engines of" in caplog.text
    files = [folder / engine.file.path for engine in found.deployment.engines if engine.target == "l4" and engine.file]
    assert ["kit" in engine_file.read_header(file) for file in files].count(True) == 1, "the others are built here"


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
    assert "receipt-l4" in build(recipe, accepting, lambda event: None).deployment.evidence
    recipe.write_text(recipe.read_text().replace("nvidia-l4", "nvidia-a10"))
    with pytest.raises(DeploymentError, match="its kit is"):
        build(recipe, accepting, lambda event: None)
    again = build(recipe, options, lambda event: None)
    assert "receipt-l4" not in again.deployment.evidence
    assert "receipt-l4.json is not taken over: this receipt is not of this deployment" in caplog.text
