"""What a checkpoint has beside its weights: tokenizer, chat template and picture settings, read as the runtime will."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from msao_compile.errors import CheckpointError, InputError
from msao_compile.families.agreement import readable, refuse_strangers
from msao_compile.runtime.session import PICTURE_SETTINGS, read_preprocessor
from msao_compile.runtime.tokens import Tokenizer, read_json

WANTED = ("tokenizer", "special_tokens", "chat_template", "preprocessor", "processor", "generation", "vocab", "merges")
SUFFIXES = (".json", ".jinja", ".txt", ".model")
TEMPLATE = "chat_template.jinja"
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]


def side_files(folder: Path) -> list[Path]:
    """Tokenizer, processor and generation files that a device needs beside the weights."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name.startswith(WANTED) and os.path.splitext(path.name)[1] in SUFFIXES
    )


def start_token(folder: Path, config: Any) -> int:
    """The token that opens an answer, as transformers looks for it: all that one file says comes before the next.

    Raises:
        CheckpointError: none of them says it.
    """
    told = readable(folder / "generation_config.json")
    names = ("decoder_start_token_id", "bos_token_id")
    places = [{name: getattr(part, name, None) for name in names} for part in (config, config.get_text_config(True))]
    found = (place.get(name) for place in (told, *places) for name in names)
    tokens = [token for token in found if isinstance(token, int)]
    if not tokens:
        raise CheckpointError(
            f"{folder}: neither generation_config.json nor config.json says with which token an answer starts; add "
            "decoder_start_token_id to generation_config.json"
        )
    return tokens[0]


def lacks(folder: Path) -> str:
    """What `run` will not find in this checkpoint, in one sentence; empty where it finds everything.

    Raises:
        CheckpointError: a file is there that the runtime cannot use, or that belongs to another model.
    """
    refuse_strangers(folder, readable(folder / "config.json"))
    names = [path.name for path in side_files(folder)]
    missing = [*_missing_for_text(folder, names), *_missing_for_pictures(folder, names)]
    if not missing:
        return ""
    what = "questions about pictures" if missing == [PICTURE_SETTINGS] else "prompts"
    return (
        f"{folder}: has no {' and no '.join(missing)}, so `run` cannot answer {what}; save the checkpoint's processor "
        "there"
    )


def _missing_for_text(folder: Path, names: Collection[str]) -> list[str]:
    if "tokenizer.json" not in names:
        return ["tokenizer.json"]
    try:
        tokenizer = Tokenizer.load(folder, names)
        if not tokenizer.has_template:
            return ["chat template"]
        tokenizer.render(QUESTION)
    except InputError as error:
        said = str(error)  # of the files the runtime names all but the template's
        raise CheckpointError(
            f"{folder / TEMPLATE}: {said}" if TEMPLATE in names and "template" in said else said
        ) from error
    return []


def _missing_for_pictures(folder: Path, names: Collection[str]) -> list[str]:
    try:
        found = read_preprocessor(folder, names, read_json(folder / "tokenizer_config.json", names))
    except InputError as error:
        name = "preprocessor_config.json" if "preprocessor_config.json" in names else "processor_config.json"
        said = str(error)
        raise CheckpointError(said if str(folder) in said else f"{folder / name}: {said}") from error
    return [PICTURE_SETTINGS] if found is None else []
