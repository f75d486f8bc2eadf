"""What a build says of the checkpoint files that a deployment shares."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from msao_compile.manifest.schema import Deployment, FileRef
from msao_compile.runner import Runner
from msao_compile.stock import Stock
from msao_compile.store.inputs import Inputs


def test_weights_that_could_not_be_linked_are_counted(tmp_path: Path) -> None:
    """As between two file systems."""
    weights, there = tmp_path / "model.safetensors", tmp_path / "deployment"
    weights.write_bytes(b"12345")
    there.mkdir()
    runner = SimpleNamespace(inputs=Inputs(tmp_path / "inputs.json"), planning=True)
    stock = Stock(cast(Runner, runner))
    shared = stock.share(weights)
    files = [FileRef(path=name, sha256=shared.sha256, size_bytes=5) for name in ("linked", "copied")]
    (there / "linked").hardlink_to(weights)
    shutil.copy(weights, there / "copied")
    module = SimpleNamespace(graphs=[SimpleNamespace(data=files)])
    assert stock.copied(there, cast(Deployment, SimpleNamespace(modules=[module]))) == 5
