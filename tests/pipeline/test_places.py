"""Where a build goes is checked before its first stage, and its steps are told under the names of their models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from building import Workshop, write_recipe

from msao_compile.cli.app import main
from msao_compile.pipeline import Plan, plan

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("action", ["plan", "build"])
@pytest.mark.parametrize("option", ["--store", "--out"])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_place_that_is_a_file_is_refused_before_the_first_stage(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture, action: str, option: str, below: str
) -> None:
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")})
    (tmp_path / "afile").write_text("mine")
    capsys.readouterr()  # making the checkpoint may have said something
    places = {"--out": tmp_path / "out", "--store": tmp_path / "store", option: tmp_path / "afile" / below}
    assert main([action, str(recipe), *(str(word) for pair in places.items() for word in pair)]) == 2
    assert capsys.readouterr().err == (
        f"error: {option}: {tmp_path / 'afile'} is no folder that can be used; choose another place\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afile", "tiny.toml"]


def test_what_is_left_to_a_device_is_told_with_its_model(
    workshop: Workshop, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")})
    jetson = '[targets.jetson]\ndevice = "jetson-orin-nano-8gb"\nprecision = "fp16"\n'
    recipe.write_text(recipe.read_text().replace("[shapes", f"{jetson}[shapes"))
    found = plan(recipe, workshop.options)
    assert isinstance(found, Plan)
    left = [(one.target, one.subject, one.precision) for one in found.engines if one.place == "device"]
    assert left == [("jetson", f"edge/{name}", "fp16") for name in ("vision_encoder", "embed_tokens", "decoder")]


def test_a_checkpoint_whose_path_is_not_utf8_is_refused_and_nothing_is_written(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(checkpoint("idefics3"), os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    assert main(["init", str(folder), "-o", str(tmp_path / "r.toml")]) == 2
    assert "the checkpoint's path is not UTF-8; rename that folder" in capsys.readouterr().err
    assert not (tmp_path / "r.toml").exists()
