"""What a checkpoint has beside its weights: tokenizer, chat template and picture settings, read as the runtime will."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from msao_compile.errors import CheckpointError, InputError
from msao_compile.runtime.preprocess import from_config
from msao_compile.runtime.tokens import Tokenizer, TokenizerFiles, read_json

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


def lacks(folder: Path) -> str:
    """What `run` will not find in this checkpoint, in one sentence; empty where it finds everything.

    Raises:
        CheckpointError: a file is there that the runtime cannot use.
    """
    names = [path.name for path in side_files(folder)]
    missing = [*_missing_for_text(folder, names), *_missing_for_pictures(folder, names)]
    if not missing:
        return ""
    return (
        f"{folder}: has no {' and no '.join(missing)}, so `run` cannot answer "
        f"{'questions about pictures' if missing == [_PICTURES] else 'prompts'}; save the checkpoint's processor there"
    )


_PICTURES = "preprocessor_config.json or processor_config.json"


def _missing_for_text(folder: Path, names: Collection[str]) -> list[str]:
    if "tokenizer.json" not in names:
        return ["tokenizer.json"]
    try:
        tokenizer = Tokenizer.load(folder, names)
        if TokenizerFiles.read(folder, names).chat_template is None:
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
        config = read_json(folder / "preprocessor_config.json", names)
        processor = read_json(folder / "processor_config.json", names)
        if not config and not processor:
            return [_PICTURES]
        from_config(config or processor, {**read_json(folder / "tokenizer_config.json", names), **processor})
    except InputError as error:
        said, name = (
            str(error),
            "preprocessor_config.json" if "preprocessor_config.json" in names else "processor_config.json",
        )
        raise CheckpointError(said if str(folder) in said else f"{folder / name}: {said}") from error
    return []
