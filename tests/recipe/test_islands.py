"""Islands are written into a recipe of any layout, and nothing else of it changes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from msao_compile.errors import RecipeError
from msao_compile.recipe.islands import add_islands, with_islands

BLOCK, OTHER = "model.layers.3", "model.layers.0"
RECIPE = """\
recipe = 1        # version
name = "small"
[models.edge]
checkpoint = "."
role = "draft"
[tasks.vqa]
models = ["edge"]
[targets.l4]
device = "nvidia-l4"
precision = { decoder = "int4" }   # whole rows
"""


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("", f'\n[islands]\ndecoder = ["{BLOCK}"]\n'),
        ("[islands]\n", f'[islands]\ndecoder = ["{BLOCK}"]\n'),
        ("[islands]", f'[islands]\ndecoder = ["{BLOCK}"]\n'),
        (
            f'[islands]  # mine\nprojector = ["{OTHER}"]\n[runtime]\n',
            f'[islands]  # mine\ndecoder = ["{BLOCK}"]\nprojector = ["{OTHER}"]\n[runtime]\n',
        ),
        (
            f'[islands]\ndecoder = ["{OTHER}"]  # it drifts\n',
            f'[islands]\ndecoder = ["{BLOCK}", "{OTHER}"]  # it drifts\n',
        ),
        (
            f'[islands]\n"decoder" = [  # two\n  "{OTHER}", # first\n]\n',
            f'[islands]\n"decoder" = ["{BLOCK}", # two\n  "{OTHER}", # first\n]\n',
        ),
        (f'[islands]\ndecoder = ["{BLOCK}"]\n', f'[islands]\ndecoder = ["{BLOCK}"]\n'),
        ("[islands]\r\n[runtime]\r\n", f'[islands]\r\ndecoder = ["{BLOCK}"]\r\n[runtime]\r\n'),
    ],
)
def test_the_line_is_put_where_it_belongs_and_comments_stay(table: str, expected: str) -> None:
    changed = with_islands(RECIPE + table, {"decoder": [BLOCK]})
    assert changed is not None
    assert changed.removeprefix(RECIPE) == expected
    assert BLOCK in tomllib.loads(changed)["islands"]["decoder"]


@pytest.mark.parametrize(
    "text",
    [
        f'islands = {{ decoder = ["{OTHER}"] }}\n{RECIPE}',
        f'islands.decoder = ["{OTHER}"]\n{RECIPE}',
        f'islands.projector = ["{OTHER}"]\n{RECIPE}',
        f'{RECIPE}note = """\n[islands]\n"""\n',
    ],
)
def test_islands_in_another_form_are_left_to_the_user(text: str) -> None:
    assert with_islands(text, {"decoder": [BLOCK]}) is None


def test_a_recipe_whose_islands_cannot_be_changed_stays_and_the_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'islands.decoder = ["{OTHER}"]\n{RECIPE}')
    with pytest.raises(RecipeError, match=r'add by hand: decoder = \["model.layers.3"\]'):
        add_islands(path, {"decoder": [BLOCK]})
    assert path.read_text() == f'islands.decoder = ["{OTHER}"]\n{RECIPE}'


def test_the_file_is_replaced_whole_and_a_link_to_it_stays_one(tmp_path: Path) -> None:
    path, link = tmp_path / "r.toml", tmp_path / "link.toml"
    path.write_text(RECIPE)
    path.chmod(0o640)
    link.symlink_to(path)
    assert add_islands(link, {"decoder": [BLOCK]})
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text() == f'{RECIPE}\n[islands]\ndecoder = ["{BLOCK}"]\n'
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.toml", "r.toml"]


def test_what_a_recipe_has_already_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'{RECIPE}[islands]\ndecoder = ["{BLOCK}"]\n')
    before = path.stat().st_mtime_ns
    assert not add_islands(path, {"decoder": [BLOCK]})
    assert path.stat().st_mtime_ns == before
