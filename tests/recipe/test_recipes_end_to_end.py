"""Each shipped recipe, but for its bound of int4, on scaled-down random checkpoints of the architectures it names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from building import Workshop, run

from msao_compile.manifest.evidence import ParityEvidence
from msao_compile.recipe.read import read_recipe
from msao_compile.recipe.targets import find
from msao_compile.runtime.loader import read_manifest, verify

from .scaled import make
from .test_real_recipes import RECIPES, config

pytestmark = pytest.mark.whole
OF_TRAINED_WEIGHTS = "int4 = { min_cosine = 0.95, argmax_agreement = 0.9 }"
"""Random ones spread over all of their range, and no token of theirs is much likelier than another."""


def hub_cache(folder: Path, checkpoints: set[str]) -> Path:
    """A hub cache as a download leaves it, that holds a scaled-down form of each checkpoint."""
    for number, checkpoint in enumerate(sorted(checkpoints)):
        home = folder / f"models--{checkpoint.replace('/', '--')}"
        make(json.loads(config(checkpoint).read_text()), home / "snapshots" / f"{number:040x}")
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(f"{number:040x}")
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_builds_and_every_row_passes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path(shutil.copy(recipe, tmp_path))
    mine.write_text(mine.read_text().replace(OF_TRAINED_WEIGHTS, "int4 = { min_cosine = 0.9 }"))
    told = read_recipe(mine)
    cache = hub_cache(tmp_path / "hub", {model.checkpoint for model in told.models.values()})
    monkeypatch.setitem(os.environ, "HF_HUB_CACHE", str(cache))
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    workshop = Workshop(tmp_path / "work")
    done = run("build", mine, workshop=workshop)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = workshop.options.out / told.name
    manifest = read_manifest(folder)
    verify(folder, manifest)
    rows = ParityEvidence.model_validate_json((folder / "evidence/parity.json").read_bytes()).rows
    assert {row.model for row in rows} == set(told.models)
    assert {row.verdict for row in rows} == {"PASS"}
    subjects = {row.subject for row in rows}
    assert {"whole", "steps"} < subjects and any(subject.startswith("split after") for subject in subjects)
    local = {name for name, choice in told.targets.items() if find(choice.device).platform_kind == "cpu"}
    ahead = {name for name, choice in told.targets.items() if "ahead-of-time" in find(choice.device).engine_build}
    for entry in manifest.engines:
        assert entry.status == ("parity" if entry.target in local else "built" if entry.target in ahead else "deferred")
    assert {point.model for point in manifest.partition_points} == set(told.models)
    assert (tmp_path / f"{recipe.stem}.lock").exists() or list(tmp_path.glob("*.lock*"))
