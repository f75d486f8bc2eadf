"""Hub checkpoints of a recipe: commits pinned in the lock file, files taken from Hugging Face's cache folder."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msao_compile.errors import CheckpointError, MissingTool, RecipeError
from msao_compile.families.checkpoint import weight_files
from msao_compile.recipe.lock import Lock, LockedModel, lock_path, read_lock, write_lock
from msao_compile.recipe.schema import REVISION, ModelChoice, Recipe

SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.py")
WEIGHTS = ("*.safetensors",)
NOT_READ = ("*/*", "consolidated*")
"""Folders inside a checkpoint hold other forms of it, and `consolidated` files the same weights under other names."""
NEWEST = "main"
SAID_CHARACTERS = 200

logger = logging.getLogger(__name__)


def resolve(recipe: Recipe, recipe_path: Path, frozen: bool, weights: bool) -> Recipe:
    """The recipe with a local folder for each hub checkpoint, and the lock file brought up to date.

    A commit comes from the recipe's own `revision`, else from the lock, else it is the newest one; files that are in
    Hugging Face's cache folder are never asked of the network. `weights`: fetch them too, not the small files alone.

    Raises:
        RecipeError: with `frozen`, the lock lacks a model or says something else. CheckpointError: the hub has no such
            model or commit, or its files are not those that were locked. MissingTool: the hub cannot be reached.
    """
    wanted = {name: model for name, model in recipe.models.items() if not Path(model.checkpoint).is_absolute()}
    path = lock_path(recipe_path)
    lock = read_lock(path)
    if frozen:
        _refuse_unlocked(path, lock, wanted)
    if not wanted:
        return recipe
    folders, locked = {}, {}
    for name, model in wanted.items():
        where = f"{recipe_path}: models.{name}.checkpoint"
        folders[name], locked[name] = _resolved(where, path, model, lock.models.get(name), weights)
    write_lock(path, Lock(models=locked))
    models = {
        name: model.model_copy(update={"checkpoint": str(folders[name]), "revision": None})
        if name in folders
        else model
        for name, model in recipe.models.items()
    }
    return recipe.model_copy(update={"models": models})


def _refuse_unlocked(path: Path, lock: Lock, wanted: dict[str, ModelChoice]) -> None:
    for name, model in wanted.items():
        entry = lock.models.get(name)
        if entry is None:
            raise RecipeError(
                f"{path}: has no models.{name} ({model.checkpoint}), and --frozen resolves nothing; run once without "
                "--frozen and keep the lock file with the recipe"
            )
        for field in ("checkpoint", "revision"):
            told, locked = getattr(model, field), getattr(entry, field)
            if told is not None and told != locked:
                raise RecipeError(
                    f"{path}: models.{name}.{field} is {locked}, but the recipe says {told}, and --frozen changes no "
                    "lock; run once without --frozen, or correct the recipe"
                )
    stale = sorted(set(lock.models) - set(wanted))
    if stale:
        raise RecipeError(
            f"{path}: locks models.{stale[0]}, which is no hub checkpoint of the recipe, and --frozen changes no lock; "
            "run once without --frozen"
        )


def _resolved(
    where: str, lock: Path, model: ModelChoice, entry: LockedModel | None, weights: bool
) -> tuple[Path, LockedModel]:
    known = entry is not None and entry.checkpoint == model.checkpoint and model.revision in (None, entry.revision)
    revision = entry.revision if entry is not None and known else model.revision
    if revision is None:
        revision = _newest(where, model.checkpoint)
    folder = _cache(model.checkpoint) / "snapshots" / revision
    if not _complete(folder, weights) or (not known and model.revision is None and _reachable(model.checkpoint)):
        _download(where, model.checkpoint, revision, weights)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{where}: {model.checkpoint} has no config.json at {revision}; name one that transformers can open"
        )
    found = LockedModel(
        checkpoint=model.checkpoint,
        revision=revision,
        config_sha256=hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
    )
    if entry is not None and known and entry != found:
        raise CheckpointError(
            f"{folder / 'config.json'}: its SHA-256 is {found.config_sha256}, but {lock} locked "
            f"{entry.config_sha256}; remove {folder} so that it is fetched again"
        )
    return folder, found


def _newest(where: str, checkpoint: str) -> str:
    """The commit that the hub, or where it cannot be reached the cache folder, calls `main`."""
    from huggingface_hub import HfApi

    noted = _cache(checkpoint) / "refs" / NEWEST
    try:
        with _translated(where, checkpoint, None):
            revision = HfApi().model_info(checkpoint, revision=NEWEST).sha
    except MissingTool:
        revision = noted.read_text(encoding="utf-8").strip() if noted.is_file() else ""
        if REVISION.fullmatch(revision) is None:
            raise
        logger.warning("%s: the hub cannot be reached; %s is what the local cache calls main", checkpoint, revision)
    if revision is None or REVISION.fullmatch(revision) is None:
        raise CheckpointError(f"{where}: the hub names no commit of {checkpoint}; set the model's revision yourself")
    return revision


def _reachable(checkpoint: str) -> bool:
    """Whether the hub answers: a download that starts without it would try again for half a minute."""
    from huggingface_hub import HfApi

    try:
        with _translated("", checkpoint, None):
            HfApi().model_info(checkpoint, revision=NEWEST)
    except (MissingTool, CheckpointError):
        return False
    return True


def _download(where: str, checkpoint: str, revision: str, weights: bool) -> None:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns = [*SMALL_FILES, *(WEIGHTS if weights else ())]
    with _translated(where, checkpoint, revision):
        HfApi().model_info(checkpoint, revision=revision)  # fails at once; the download would try for half a minute
        snapshot_download(checkpoint, revision=revision, allow_patterns=patterns, ignore_patterns=[*NOT_READ])


def _complete(folder: Path, weights: bool) -> bool:
    """Whether a folder of the cache has what is needed; a download that was interrupted leaves less."""
    if not (folder / "config.json").is_file():
        return False
    try:
        return not weights or bool(weight_files(folder))
    except CheckpointError:
        return False


def _cache(checkpoint: str) -> Path:
    """Where Hugging Face keeps this model: HF_HUB_CACHE, else below HF_HOME."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name
    except ModuleNotFoundError as error:
        raise MissingTool(
            "huggingface_hub is not installed, which hub checkpoints need: pip install 'msao-compile[compile]'"
        ) from error
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=checkpoint, repo_type="model")


@contextmanager
def _translated(where: str, checkpoint: str, revision: str | None) -> Iterator[None]:
    """What the hub's client raises, as one sentence: what to correct, or how to bring the files here by hand."""
    from huggingface_hub import errors

    no_answer = errors.HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, as the client's version has it

    at = f" at {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where}: {checkpoint} asks for an agreement; accept it at https://huggingface.co/{checkpoint}, log in "
            "with `hf auth login` and run again"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise CheckpointError(
            f"{where}: names no folder here and the hub has no model {checkpoint}{at}; correct the path, the id or the "
            "revision (a private model needs `hf auth login`)"
        ) from error
    except (errors.HfHubHTTPError, no_answer, ConnectionError, errors.LocalEntryNotFoundError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:SAID_CHARACTERS]
        command = f"hf download {checkpoint}" + (f" --revision {revision}" if revision else "")
        raise MissingTool(
            f"{where}: names no folder here, and {checkpoint}{at} cannot be fetched from the hub ({said}); where there "
            f"is a network run `{command}`, bring its cache folder here and set HF_HUB_CACHE to it, or name a folder"
        ) from error
