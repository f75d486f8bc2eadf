"""What a stage is asked for: code that lies in a checkpoint counts where it may be run, and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from building import write_recipe

from msao_compile import asks
from msao_compile.recipe.read import read_recipe
from msao_compile.runner import Options, Runner
from msao_compile.stock import Stock


@pytest.mark.parametrize("trusted", [True, False])
def test_a_changed_line_of_remote_code_asks_again_where_it_is_run(
    checkpoint: Callable[..., Path], tmp_path: Path, trusted: bool
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in checkpoint("llava").iterdir():
        (folder / file.name).symlink_to(file)
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (folder, "draft")})
    allowed = f'"draft"\ntrust_remote_code = {"true" if trusted else "false"}'
    recipe.write_text(recipe.read_text().replace('"draft"', allowed))

    def asked() -> asks.Ask:
        options = Options(tmp_path / "out", tmp_path / "store")
        return asks.split("edge", folder, Stock(Runner(read_recipe(recipe), options, tell=None)))

    (folder / "modeling.py").write_text("first")
    before = asked()
    (folder / "modeling.py").write_text("second")
    assert (asked().key.digest != before.key.digest) is trusted
    assert before.arguments(tmp_path)["trusted"] is trusted
