"""Files below a folder are read; nothing else is, whatever links or names are tried."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from msao_compile.errors import PictureError
from msao_compile.runtime.serve.edge.files import read_below


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_bytes(b"secret")
    found = tmp_path / "pictures"
    (found / "deep").mkdir(parents=True)
    (found / "deep" / "a").write_bytes(b"a")
    (found / "within").symlink_to(found / "deep")
    (found / "out").symlink_to(tmp_path / "other")
    (found / "secret").symlink_to(tmp_path / "secret")
    (found / "loop").symlink_to(found / "loop")
    os.mkfifo(found / "pipe")
    return found


@pytest.mark.parametrize("name", ["deep/a", "within/a", "deep/../within/a"])
def test_a_file_that_lies_below_is_read(folder: Path, name: str) -> None:
    assert read_below(folder, folder / name) == b"a"


@pytest.mark.parametrize(
    "name", ["missing", "../secret", "secret", "out/secret", "loop", "pipe", "deep", ".", "deep/a/x", "\0"]
)
def test_everything_else_is_refused_in_the_same_words(folder: Path, name: str) -> None:
    with pytest.raises(PictureError, match="there is no picture .* give the path of a file in that folder"):
        read_below(folder, folder / name)


def test_a_link_that_is_swapped_in_after_the_path_was_resolved_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Callable[..., Path] = Path.resolve

    def resolve(path: Path, strict: bool = False) -> Path:
        found = whole(path, strict)
        if found.name == "a":
            found.unlink()
            found.symlink_to(folder.parent / "secret")
        return found

    monkeypatch.setattr(Path, "resolve", resolve)
    with pytest.raises(PictureError, match="there is no picture"):
        read_below(folder, folder / "deep" / "a")
