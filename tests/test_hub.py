"""Hub checkpoints: resolved once, pinned in the lock, read from the cache folder without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from building import write_recipe
from hub_server import HubServer, serving

from msao_compile import hub
from msao_compile.cli.app import main
from msao_compile.errors import CheckpointError, MissingTool, RecipeError
from msao_compile.recipe.lock import Lock, LockedModel, lock_path, read_lock, write_lock
from msao_compile.recipe.read import read_recipe

OLD, NEW = "1" * 40, "2" * 40
Resolve = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of Hugging Face's; nothing listens where the hub should be."""
    folder = tmp_path / "hf"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return folder


def put(cache: Path, revision: str, files: Path, main: bool = True) -> Path:
    """A model of the cache folder as Hugging Face's client lays it out: links to blobs below a commit."""
    home = cache / "models--org--tiny"
    (home / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot = home / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in files.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    if main:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(revision)
    return snapshot


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "tiny.toml", {"edge": (Path("org/tiny"), "draft")}, targets={"edge": "fused"})


@pytest.fixture
def resolve(recipe: Path) -> Resolve:
    def folder(frozen: bool = False, weights: bool = True) -> Path:
        found = hub.resolve(read_recipe(recipe), recipe, frozen, weights)
        return Path(found.models["edge"].checkpoint)

    return folder


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub whose newest commit is OLD."""
    with serving() as hub_server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub_server.url)
        url = hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
        hub_server.commits[OLD] = small(tmp_path / "old", width=1)
        yield hub_server


def small(folder: Path, width: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "width": width}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "model.bin").write_bytes(b"not wanted")
    (folder / "consolidated.safetensors").write_bytes(b"the same again")
    return folder


def pinned(recipe: Path) -> LockedModel:
    return read_lock(lock_path(recipe)).models["edge"]


def test_the_newest_commit_is_resolved_once_and_pinned(server: HubServer, resolve: Resolve, recipe: Path,
                                                       tmp_path: Path) -> None:  # fmt: skip
    folder = resolve()
    assert folder.name == OLD
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert pinned(recipe).revision == OLD
    server.commits[NEW] = small(tmp_path / "new", width=2)
    server.seen.clear()
    assert resolve() == resolve(frozen=True) == folder
    assert server.seen == []  # what is pinned and here is not asked for
    lock_path(recipe).unlink()
    assert resolve().name == NEW


def test_a_plan_fetches_no_weights_and_a_build_fetches_them_later(server: HubServer, resolve: Resolve) -> None:
    assert [path.name for path in resolve(weights=False).iterdir()] == ["config.json"]
    assert (resolve(frozen=True, weights=True) / "model.safetensors").is_file()


def test_a_revision_in_the_recipe_is_the_one_that_is_taken(server: HubServer, recipe: Path, resolve: Resolve,
                                                           tmp_path: Path) -> None:  # fmt: skip
    server.commits[NEW] = small(tmp_path / "new", width=2)
    recipe.write_text(recipe.read_text().replace('"org/tiny"', f'"org/tiny"\nrevision = "{OLD}"'))
    assert resolve().name == pinned(recipe).revision == OLD


def test_a_model_or_commit_that_the_hub_lacks_is_wrong_input(server: HubServer, recipe: Path, resolve: Resolve) -> None:
    text = recipe.read_text()
    recipe.write_text(text.replace('"org/tiny"', f'"org/tiny"\nrevision = "{NEW}"'))
    with pytest.raises(CheckpointError, match=f"the hub has no model org/tiny at {NEW}; correct the path, the id or"):
        resolve()
    recipe.write_text(text.replace("org/tiny", "org/moon"))
    with pytest.raises(CheckpointError, match="names no folder here and the hub has no model org/moon; correct"):
        resolve()


def test_without_a_network_the_cache_folder_serves(cache: Path, tmp_path: Path, recipe: Path, resolve: Resolve,
                                                   caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    snapshot = put(cache, OLD, small(tmp_path / "old", width=1))
    assert resolve() == snapshot
    assert "the hub cannot be reached; 1111" in caplog.text
    assert pinned(recipe) == LockedModel(
        checkpoint="org/tiny",
        revision=OLD,
        config_sha256=hashlib.sha256((snapshot / "config.json").read_bytes()).hexdigest(),
    )
    assert resolve(frozen=True) == snapshot


def test_without_network_and_files_the_sentence_says_how_to_bring_them(cache: Path, recipe: Path, resolve: Resolve,
                                                                       tmp_path: Path) -> None:  # fmt: skip
    with pytest.raises(
        MissingTool, match="run `hf download org/tiny`, bring its cache folder here and set HF_HUB_CACHE"
    ):
        resolve()
    recipe.write_text(recipe.read_text().replace('"org/tiny"', f'"org/tiny"\nrevision = "{OLD}"'))
    with pytest.raises(MissingTool, match=f"run `hf download org/tiny --revision {OLD}`"):
        resolve()
    snapshot = put(cache, OLD, small(tmp_path / "old", width=1))
    for weights in snapshot.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(MissingTool, match=f"org/tiny at {OLD} cannot be fetched from the hub"):
        resolve()
    assert resolve(weights=False).name == OLD


def change(recipe: Path, **fields: Any) -> None:
    told = pinned(recipe).model_copy(update=fields)
    write_lock(lock_path(recipe), Lock(models={"edge": told}))


def test_frozen_resolves_nothing_and_changes_no_lock(cache: Path, tmp_path: Path, recipe: Path,
                                                     resolve: Resolve) -> None:  # fmt: skip
    put(cache, OLD, small(tmp_path / "old", width=1))
    with pytest.raises(
        RecipeError, match=r"tiny.lock.toml: has no models.edge \(org/tiny\), and --frozen resolves noth"
    ):
        resolve(frozen=True)
    assert not lock_path(recipe).exists()
    resolve()
    good = recipe.read_text()
    recipe.write_text(good.replace('"org/tiny"', f'"org/tiny"\nrevision = "{NEW}"'))
    with pytest.raises(RecipeError, match=f"models.edge.revision is {OLD}, but the recipe says {NEW}"):
        resolve(frozen=True)
    recipe.write_text(good.replace("org/tiny", "org/other"))
    with pytest.raises(RecipeError, match="models.edge.checkpoint is org/tiny, but the recipe says org/other"):
        resolve(frozen=True)
    recipe.write_text(good.replace("models.edge]", "models.cloud]").replace("['edge']", "['cloud']"))
    with pytest.raises(RecipeError, match=r"has no models.cloud \(org/tiny\)"):
        resolve(frozen=True)


def test_frozen_refuses_a_lock_of_a_model_that_the_recipe_lacks(cache: Path, tmp_path: Path, recipe: Path,
                                                                resolve: Resolve) -> None:  # fmt: skip
    put(cache, OLD, small(tmp_path / "old", width=1))
    resolve()
    write_lock(lock_path(recipe), Lock(models={"edge": pinned(recipe), "gone": pinned(recipe)}))
    with pytest.raises(RecipeError, match=r"locks models\.gone, which is no hub checkpoint of the recipe"):
        resolve(frozen=True)
    resolve()
    assert list(read_lock(lock_path(recipe)).models) == ["edge"]


def test_a_config_that_is_not_the_locked_one_is_refused(cache: Path, tmp_path: Path, recipe: Path,
                                                        resolve: Resolve) -> None:  # fmt: skip
    put(cache, OLD, small(tmp_path / "old", width=1))
    resolve()
    change(recipe, config_sha256="0" * 64)
    with pytest.raises(CheckpointError, match="tiny.lock.toml locked 0000"):
        resolve()


def test_a_plan_takes_a_checkpoint_from_the_cache_folder(
    cache: Path, recipe: Path, checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(cache, OLD, checkpoint("idefics3"))
    words = [str(recipe), "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    assert main(["plan", *words, "--frozen"]) == 2
    assert "and --frozen resolves nothing" in capsys.readouterr().err
    assert main(["plan", *words]) == 0
    capsys.readouterr()
    assert main(["plan", *words, "--frozen", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["stage"] == "split"
    assert pinned(recipe).revision == OLD
