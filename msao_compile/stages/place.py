"""Bring a placement with its certificate into a deployment's manifest."""

from __future__ import annotations

from pathlib import Path

from msao_compile.manifest.placement import Placement
from msao_compile.manifest.schema import SCHEMA_MAJOR, SCHEMA_MINOR, Deployment
from msao_compile.store.manifest import drop_signature, exchange_manifest


def write(folder: Path, deployment: Deployment, placement: Placement) -> Deployment:
    """Write `deployment` with `placement` into its folder and give it as it is now."""
    changes = {"schema_version": f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}", "placement": placement}
    after = Deployment.model_validate(deployment.model_copy(update=changes).model_dump())
    exchange_manifest(folder, after)
    drop_signature(folder)
    return after
