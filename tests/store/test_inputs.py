"""Digests of files that are not ours: nothing is read twice, and no change is missed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msao_compile.manifest.digest import sha256_file
from msao_compile.store import inputs
from msao_compile.store.inputs import Inputs


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    found: list[Path] = []

    def hashed(path: Path) -> str:
        found.append(path)
        return sha256_file(path)

    monkeypatch.setattr(inputs, "sha256_file", hashed)
    return found


def test_a_change_that_keeps_size_and_modification_time_is_found(weights: Path, tmp_path: Path) -> None:
    """As `rsync --inplace --times` makes it, or a disk that loses a bit."""
    before, status = Inputs(tmp_path / "inputs.json").digest(weights), weights.stat()
    with weights.open("r+b") as file:
        file.write(b"two")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = weights.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (status.st_mtime_ns, status.st_size, status.st_ino)
    found = Inputs(tmp_path / "inputs.json").digest(weights)
    assert found == sha256_file(weights) != before


def test_own_links_cost_no_second_reading(weights: Path, tmp_path: Path, read: list[Path]) -> None:
    building = Inputs(tmp_path / "inputs.json")
    building.digest(weights)
    (tmp_path / "object").hardlink_to(weights)
    building.digest(weights)
    building.settle()
    Inputs(tmp_path / "inputs.json").digest(weights)
    assert read == [weights]


def test_links_of_others_cost_one_reading(weights: Path, tmp_path: Path, read: list[Path]) -> None:
    Inputs(tmp_path / "inputs.json").digest(weights)
    (tmp_path / "other").hardlink_to(weights)
    for _ in range(2):
        Inputs(tmp_path / "inputs.json").digest(weights)
    assert read == [weights, weights]


def test_a_plan_writes_nothing(weights: Path, tmp_path: Path) -> None:
    planning = Inputs(tmp_path / "inputs.json", write=False)
    planning.digest(weights)
    planning.settle()
    assert not (tmp_path / "inputs.json").exists()


def test_what_was_removed_meanwhile_is_no_fault(weights: Path, tmp_path: Path) -> None:
    building = Inputs(tmp_path / "inputs.json")
    building.digest(weights)
    weights.unlink()
    building.settle()
