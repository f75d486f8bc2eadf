"""Exchange the manifest of a deployment folder, or a file beside it, in one step."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from msao_compile.manifest.schema import MANIFEST_NAME, Deployment
from msao_compile.manifest.signature import ENDING

SIGNATURE = MANIFEST_NAME + ENDING
logger = logging.getLogger(__name__)


def exchange(path: Path, data: bytes) -> None:
    """A new file in the place of the old one, which may be a link into the store: that stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def exchange_manifest(folder: Path, deployment: Deployment) -> None:
    """Write a deployment's manifest into its folder; the signature of the one before is then stale."""
    exchange(folder / MANIFEST_NAME, (deployment.model_dump_json(indent=1, exclude_none=True) + "\n").encode())


def drop_signature(folder: Path) -> None:
    """Remove the signature of the manifest before, and say so."""
    if (folder / SIGNATURE).exists():
        (folder / SIGNATURE).unlink()
        logger.warning(
            "%s: removed, because it signs the deployment.json before; sign the new one with `msao-compile sign`",
            folder / SIGNATURE,
        )
