"""A kit unpacked in a folder of its own, and one that ran on the stand-in runner."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import kits
import pytest

from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.kit import archive, pack


@pytest.fixture(scope="session")
def packed_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of a decoder and its embeddings; nobody writes to it."""
    root = tmp_path_factory.mktemp("kit")
    folder = kits.write(root / "deployment")
    packed = pack.pack(folder, read_manifest(folder), kits.TARGET)
    return archive.write(root / "kit", packed.entries)


@pytest.fixture
def kit(packed_kit: Path, tmp_path: Path) -> Path:
    """A copy to run and to damage."""
    return Path(shutil.copytree(packed_kit, tmp_path / "kit"))


def receipt(kit: Path) -> dict[str, Any]:
    """What the kit wrote."""
    found: dict[str, Any] = json.loads((kit / "receipt.json").read_text())
    return found


def change(kit: Path, module: str, **fields: Any) -> None:
    """Change what kit.json says about a module beside its order."""
    path = kit / "kit.json"
    content = json.loads(path.read_text())
    content["modules"][module] |= fields
    path.write_text(json.dumps(content))
