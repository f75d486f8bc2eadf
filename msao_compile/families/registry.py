"""Families by transformers' `model_type`: where the code is, imported only when a checkpoint needs it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


SAID_CHARACTERS = 300
"""Of a foreign message: some list every architecture there is."""


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
        CheckpointError: the folder is incomplete, or no model can be made of its config. UnsupportedFamily: no family
            knows it.
    """
    config = read_config(folder)
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    family = find(str(config["model_type"]), str(name))
    import transformers

    architecture: Any = getattr(transformers, str(name), None)
    with _translated(folder / "config.json"):
        settings = transformers.AutoConfig.from_pretrained(folder)
    is_model = isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)
    if not is_model or architecture.config_class is not type(settings):
        called = f"architecture {name!r}" if name else "architectures names no class, which"
        raise CheckpointError(
            f"{folder / 'config.json'}: {called} is not a {config['model_type']} model of transformers "
            f"{transformers.__version__}; set architectures to the class that was saved"
        )
    with _translated(folder / "config.json"):
        return family, skeleton(settings, architecture)


@contextmanager
def _translated(config: Path) -> Iterator[None]:
    """Whatever a wrong value in config.json makes transformers and torch raise, as one sentence about the file."""
    from huggingface_hub.errors import StrictDataclassError

    faults = (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
    try:
        yield
    except (*faults, OSError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(
            f"{config}: transformers can make no model of these values ({said[:SAID_CHARACTERS]}); correct them or "
            "download the file again"
        ) from error
