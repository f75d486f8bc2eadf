"""The lock file beside a recipe: which commit each hub checkpoint was when the recipe was first planned or built."""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from msao_compile.errors import RecipeError
from msao_compile.recipe.schema import HUB_ID, Name, Part, Revision, refuse

NOTE = "# Written by msao-compile: keep it with the recipe. Remove an entry to take the newest commit again."


def _hub_id(value: str) -> str:
    if HUB_ID.fullmatch(value) is None:
        raise refuse(f"must be a hub id, not '{value}'")
    return value


class LockedModel(Part):
    """What one model's hub checkpoint was."""

    checkpoint: Annotated[str, AfterValidator(_hub_id)]
    """The hub id that was resolved."""
    revision: Revision
    config_sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    """Of the config.json at that commit: a file that differs is not the one that was locked."""


class Lock(Part):
    """A lock file, version 1."""

    lock: Literal[1] = 1
    models: Mapping[Name, LockedModel] = {}


def lock_path(recipe_path: Path) -> Path:
    """Where the lock of a recipe lies: `smolvlm.toml` has `smolvlm.lock.toml`."""
    return recipe_path.with_name(f"{recipe_path.stem}.lock.toml")


def read_lock(path: Path) -> Lock:
    """The lock in a file; an empty one where there is no file.

    Raises:
        RecipeError: the file cannot be read or is not a lock.
    """
    try:
        return Lock.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Lock()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise _damaged(path, f"{place}: {first['msg']}") from error
    except (OSError, ValueError) as error:  # TOML and UTF-8 faults are ValueErrors
        raise _damaged(path, str(error)) from error


def write_lock(path: Path, lock: Lock) -> None:
    """Write the file whole or not at all; a lock that already says this stays untouched.

    Raises:
        RecipeError: its folder cannot be written to.
    """
    text = _toml(lock)
    with suppress(OSError):
        if path.read_bytes() == text.encode():
            return
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except OSError as error:
        raise RecipeError(
            f"{path}: the lock cannot be written ({error.strerror}); make the recipe's folder writable, or set the "
            "models' revision in the recipe and use --frozen with a lock written elsewhere"
        ) from error


def _toml(lock: Lock) -> str:
    blocks = [f"{NOTE}\nlock = {lock.lock}"]
    for name, model in sorted(lock.models.items()):
        facts = [f"{key} = {json.dumps(value)}" for key, value in model.model_dump().items()]
        blocks.append("\n".join([f"[models.{json.dumps(name)}]", *facts]))
    return "\n\n".join(blocks) + "\n"


def _damaged(path: Path, said: str) -> RecipeError:
    return RecipeError(f"{path}: is no lock file ({' '.join(said.split())}); restore it, or remove it to resolve again")
