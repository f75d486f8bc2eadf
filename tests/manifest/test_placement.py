"""A placement names modules that the manifest has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from manifests import MODULE, OTHER, content
from pydantic import ValidationError

from msao_compile.manifest.schema import Deployment

CERTIFICATE = {
    "objective": "p95", "objective_s": 0.25, "bound_s": 0.2, "gap": 0.2, "solver": "exact", "seconds": 1.0,
    "tolerance": 1e-6,
}  # fmt: skip


def placed(folder: Path, identity: str, **certificate: Any) -> dict[str, Any]:
    """A manifest with its one module on a device."""
    copy = {"module": "edge.decoder", "ids": [identity], "device": "phone", "dtype": None}
    return {**content(folder), "placement": {"copies": [copy], "certificate": {**CERTIFICATE, **certificate}}}


def test_a_placement_survives_writing_and_reading(tmp_path: Path) -> None:
    held = Deployment.model_validate(placed(tmp_path, MODULE))
    again = Deployment.model_validate_json(held.model_dump_json(exclude_none=True))
    assert again.placement == held.placement and held.placement is not None and not held.placement.certificate.optimal


def test_a_module_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"placement names module b+ as 'edge\.decoder', which is not listed"):
        Deployment.model_validate(placed(tmp_path, OTHER))


@pytest.mark.parametrize("fault", [{"gap": -0.1}, {"objective_s": float("nan")}, {"solver": "luck"}])
def test_a_certificate_is_no_free_text(fault: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        Deployment.model_validate(placed(tmp_path, MODULE, **fault))
