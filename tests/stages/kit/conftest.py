"""A deployment with engines to order, the kit of it, and that kit run on the stand-in runner."""

from __future__ import annotations

import shutil
from pathlib import Path

import kits
import pytest

from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.kit import archive, pack


@pytest.fixture(scope="session")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployment; nobody writes to it."""
    return kits.write(tmp_path_factory.mktemp("orders") / "deployment", tuple(kits.IDS))


@pytest.fixture(scope="session")
def packed(orders: Path) -> pack.Packed:
    """Its kit, not yet written."""
    return pack.pack(orders, read_manifest(orders), kits.TARGET)


@pytest.fixture(scope="session")
def ran(packed: pack.Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit after a run: engines of TensorRT-RTX, phases of the stand-in; nobody writes to it."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds the engines of this kit")
    kit = archive.write(tmp_path_factory.mktemp("ran") / "kit", packed.entries)
    done = kits.run(kit, "--runner", "onnxruntime")
    assert done.returncode == 0, done.stdout + done.stderr
    return kit


@pytest.fixture
def returned(ran: Path, tmp_path: Path) -> Path:
    """A copy of what came back from the device, to damage."""
    for name in ("receipt.json", "engines"):
        copy = shutil.copytree if (ran / name).is_dir() else shutil.copy
        copy(ran / name, tmp_path / name)
    return tmp_path
