"""The lock file: what it says, and that only whole ones are read or written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from msao_compile.errors import RecipeError
from msao_compile.recipe.lock import Lock, LockedModel, lock_path, read_lock, write_lock

ENTRY = LockedModel(checkpoint="org/tiny", revision="a" * 40, config_sha256="b" * 64)


def test_the_lock_lies_beside_the_recipe_under_its_name(tmp_path: Path) -> None:
    assert lock_path(tmp_path / "msao-pair.toml") == tmp_path / "msao-pair.lock.toml"


def test_what_is_written_is_read_back_and_is_plain_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.lock.toml"
    lock = Lock(models={"v1.5": ENTRY, "edge": ENTRY})
    write_lock(path, lock)
    assert read_lock(path) == lock
    assert list(tomllib.loads(path.read_text())["models"]) == ["edge", "v1.5"]
    assert [file.name for file in tmp_path.iterdir()] == ["x.lock.toml"]


def test_a_lock_that_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "x.lock.toml"
    write_lock(path, Lock(models={"edge": ENTRY}))
    before = path.stat().st_ino
    write_lock(path, Lock(models={"edge": ENTRY}))
    assert path.stat().st_ino == before


def test_no_lock_is_an_empty_one(tmp_path: Path) -> None:
    assert read_lock(tmp_path / "none.lock.toml") == Lock()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lock = ", "Invalid value"),
        ("lock = 2", "lock: Input should be 1"),
        ('[models.edge]\ncheckpoint = "org/tiny"', "models.edge.revision: Field required"),
        (f'[models.edge]\ncheckpoint = "../tiny"\nrevision = "{"a" * 40}"\nconfig_sha256 = "{"b" * 64}"', "a hub id"),
        (f'[models.edge]\ncheckpoint = "o/t"\nrevision = "main"\nconfig_sha256 = "{"b" * 64}"', "a commit of 40"),
        (
            f'[models.edge]\ncheckpoint = "o/t"\nrevision = "{"a" * 40}"\nconfig_sha256 = "b"',
            "config_sha256: String sh",
        ),
        (f'[models.edge]\ncheckpoint = "o/t"\nrevision = "{"a" * 40}"\nconfig_sha256 = "{"b" * 64}"\nx = 1', "edge.x"),
    ],
)
def test_what_is_no_lock_is_refused_with_the_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.lock.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_lock(path)
    assert str(caught.value).startswith(f"{path}: is no lock file (") and said in str(caught.value)
