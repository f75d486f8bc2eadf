"""A placement goes into the manifest, and nothing else of it changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msao_compile.manifest.placement import PlacedCopy, Placement, PlacementCertificate
from msao_compile.manifest.schema import SCHEMA_MAJOR, SCHEMA_MINOR
from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.place import write
from tests.place.deployments import measured


def test_only_placement_and_schema_version_change_and_a_stale_signature_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = measured(tmp_path)
    (tmp_path / "deployment.json.sig").write_text("of the manifest before")
    certificate = PlacementCertificate(
        objective="mean", objective_s=1.0, bound_s=1.0, gap=0.0, solver="exact", seconds=0.1, tolerance=1e-6
    )
    copy = PlacedCopy(module="edge.decoder", ids=(held.modules[0].id,), device="phone")
    placement = Placement(copies=(copy,), certificate=certificate)
    write(tmp_path, held, placement)
    after = read_manifest(tmp_path)
    assert after.placement == placement and after.schema_version == f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}"
    assert after.model_copy(update={"placement": None, "schema_version": held.schema_version}) == held
    assert not (tmp_path / "deployment.json.sig").exists() and "sign the new one" in caplog.text
    assert not list(tmp_path.glob("*.new")) and json.loads((tmp_path / "deployment.json").read_text())
