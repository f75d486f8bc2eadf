"""A model repository for Triton: what it holds, and when none is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from msao_compile.errors import DeploymentError, InputError, StageError
from msao_compile.runtime.loader import read_manifest
from msao_compile.runtime.serve.cloud.opening import cloud_model
from msao_compile.runtime.serve.triton.config import MOST_PICTURES
from msao_compile.stages.triton import write_repository


def test_a_repository_holds_the_deployment_and_every_array_of_the_contract(deployment: Path, tmp_path: Path) -> None:
    folder = write_repository(deployment, None, tmp_path / "repository")
    assert folder == tmp_path / "repository" / "edge"
    assert read_manifest(folder / "1" / "deployment") == read_manifest(deployment)
    config = (folder / "config.pbtxt").read_text()
    assert "decoupled: true" in config
    assert '{ name: "fields" data_type: TYPE_UINT8 dims: [ -1 ] },' in config
    assert '{ name: "drafts" data_type: TYPE_INT64 dims: [ -1 ] optional: true }' in config
    assert '{ name: "inputs_embeds" data_type: TYPE_FP32 dims: [ -1, -1, -1 ] optional: true }' in config
    assert '{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] optional: true }' in config
    assert config.count('{ name: "picture') == MOST_PICTURES
    assert "past_key_values" not in config
    assert len((folder / "1" / "model.py").read_text().splitlines()) == 3


def test_a_folder_that_holds_something_is_left_alone(deployment: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="holds something"):
        write_repository(deployment, "edge", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_model_or_deployment_that_is_not_there_writes_nothing(deployment: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not one of"):
        write_repository(deployment, "nothing", tmp_path / "repository")
    with pytest.raises(DeploymentError):
        write_repository(tmp_path, None, tmp_path / "repository")
    assert list(tmp_path.iterdir()) == []


def test_the_model_has_to_be_named_where_no_route_places_one_in_the_cloud(deployment: Path) -> None:
    manifest = read_manifest(deployment)
    with pytest.raises(InputError, match="not clear"):
        cloud_model(manifest.model_copy(update={"routes": ()}), None)
    assert cloud_model(manifest.model_copy(update={"routes": ()}), "edge").name == "edge"


def test_a_repository_that_could_not_be_finished_leaves_nothing(deployment: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(deployment, tmp_path / "broken")
    next((broken / "tokenizer").rglob("tokenizer.json")).unlink()
    with pytest.raises(StageError, match="writing the model repository failed"):
        write_repository(broken, None, tmp_path / "repository")
    assert [file.name for file in tmp_path.iterdir()] == ["broken"]
