"""Read a recipe file, or say in one sentence why it cannot be used."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from msao_compile.errors import RecipeError
from msao_compile.recipe import faults
from msao_compile.recipe.schema import HUB_ID, Mas, ModelChoice, Recipe, TargetChoice


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file, with its local folders and files made absolute (they are relative to the recipe file).

    A checkpoint that stays relative is a hub id: which commit and folder it is, `msao_compile.hub` finds.

    Raises:
        RecipeError: the file cannot be read, is not a recipe, or names a checkpoint folder that is not there.
    """
    try:
        recipe = Recipe.model_validate(_tuples(_parsed(path)))
    except ValidationError as error:
        raise RecipeError(f"{path}: {faults.sentence(error.errors())}") from error
    models = {name: _placed(path, name, model) for name, model in recipe.models.items()}
    mas = recipe.mas and _with_samples(path, recipe.mas)
    ranges = recipe.ranges
    if ranges is not None and ranges.samples is not None:
        ranges = ranges.model_copy(update={"samples": str(_beside(path, ranges.samples))})
    targets = {name: _with_cache(path, choice) for name, choice in recipe.targets.items()}
    return recipe.model_copy(update={"models": models, "mas": mas, "ranges": ranges, "targets": targets})


def _with_cache(path: Path, choice: TargetChoice) -> TargetChoice:
    if choice.timing_cache is None:
        return choice
    return choice.model_copy(update={"timing_cache": str(_beside(path, choice.timing_cache))})


def _with_samples(path: Path, mas: Mas) -> Mas:
    held_out = None if mas.held_out is None else str(_beside(path, mas.held_out))
    return mas.model_copy(update={"samples": str(_beside(path, mas.samples)), "held_out": held_out})


def json_schema() -> dict[str, object]:
    """JSON Schema of a recipe, for editors; the rules that span several fields are only in `read_recipe`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _parsed(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such file; give the path of a recipe") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8; save the recipe as UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: is not valid TOML: {_plainly(str(error))}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: is nested too deeply for a recipe") from error


def _plainly(complaint: str) -> str:
    written_twice = complaint.startswith(("Cannot overwrite a value", "Cannot declare", "Duplicate inline table key"))
    return f"a key or table is written twice: {complaint}" if written_twice else complaint


def _tuples(value: object) -> object:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _beside(recipe_file: Path, relative: str) -> Path:
    try:
        return (recipe_file.parent / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a character no path may have
        raise RecipeError(f"{recipe_file}: {relative!a} is not a usable path ({error}); correct it") from error


def _placed(path: Path, name: str, model: ModelChoice) -> ModelChoice:
    if model.revision is not None:
        return model
    folder = _beside(path, model.checkpoint)
    if not folder.is_dir():
        if "/" in model.checkpoint and HUB_ID.fullmatch(model.checkpoint):
            return model
        raise RecipeError(
            f"{path}: models.{name}.checkpoint names no folder at {folder}; correct the path, or write a hub id as "
            "organisation/name"
        )
    return model.model_copy(update={"checkpoint": str(folder)})
