"""Families by transformers' `model_type`: where the code is, imported only when a checkpoint needs it."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from msao_compile.errors import CheckpointError, UnsupportedFamily
from msao_compile.families.checkpoint import read_config, skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from msao_compile.families.base import Family

FAMILIES: dict[str, tuple[str, str]] = {
    "idefics3": ("msao_compile.families.idefics3", "Idefics3"),
    "smolvlm": ("msao_compile.families.idefics3", "Idefics3"),
    "llava": ("msao_compile.families.llava", "Llava"),
    "qwen2_5_vl": ("msao_compile.families.qwen2_5_vl", "Qwen2_5VL"),
}


def find(model_type: str, architecture: str) -> Family:
    """The family that takes this checkpoint apart.

    Raises:
        UnsupportedFamily: none does; the message says what was detected and what is known.
    """
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise UnsupportedFamily(
            f"family {model_type!r} ({architecture}) is not one that can be split yet{hint}; "
            f"known families: {', '.join(sorted(FAMILIES))}"
        )
    module, name = FAMILIES[model_type]
    family: Family = getattr(importlib.import_module(module), name)()
    return family


def open_model(folder: Path) -> tuple[Family, PreTrainedModel]:
    """The family of a checkpoint and the skeleton of its model.

    Raises:
        CheckpointError: the folder is incomplete. UnsupportedFamily: no family knows it.
    """
    config = read_config(folder)
    names = config.get("architectures") or [None]
    family = find(str(config["model_type"]), str(names[0]))
    import transformers

    architecture = getattr(transformers, str(names[0]), None)
    if architecture is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: architecture {names[0]!r} is not one of transformers "
            f"{transformers.__version__}; set architectures to the class that was saved"
        )
    return family, skeleton(transformers.AutoConfig.from_pretrained(folder), architecture)
