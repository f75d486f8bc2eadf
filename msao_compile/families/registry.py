"""Opens the model of any checkpoint that transformers knows, without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msao_compile.errors import CheckpointError, MissingTool, UnsupportedFamily
from msao_compile.families.checkpoint import read_config, skeleton
from msao_compile.families.refusals import names_remote_code, refuse_unusable, sections

if TYPE_CHECKING:
    from transformers import PreTrainedModel


AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForVision2Seq",
    "AutoModelForCausalLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSeq2SeqLM",
    "AutoModel",
)
"""Keys of an auto_map, the class that has a head before the one that has none."""
SAID_CHARACTERS = 300
"""Of a foreign message: some list every architecture there is."""


def open_checked(folder: Path, trusted: bool = False) -> PreTrainedModel:
    """The skeleton of any checkpoint's model; `trusted`: code that lies in the folder may be run.

    Raises:
        CheckpointError: the folder is incomplete, or no model can be made of its config. UnsupportedFamily:
            transformers has no such family, or it names code of its own and is not trusted.
    """
    config = read_config(folder)
    refuse_unusable(folder, config, trusted)
    names = config.get("architectures")
    return open_skeleton(folder, config, names[0] if isinstance(names, list) and names else None)


def open_skeleton(folder: Path, config: Mapping[str, Any], name: str | None) -> PreTrainedModel:
    """The model that a config.json describes, without weights; whether a family knows it is not asked.

    Raises:
        CheckpointError: no model can be made of the config. UnsupportedFamily: transformers has no such family.
            MissingTool: it is made with a library that is absent.
    """
    import transformers

    if names_remote_code(config):  # allowed: `refuse_unusable` came first
        return _open_remote(folder, config, name)
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        raise UnsupportedFamily(
            f"{folder / 'config.json'}: model_type {config['model_type']!r} is none of transformers "
            f"{transformers.__version__}; use a checkpoint of a family that transformers has"
        )
    architecture: Any = getattr(transformers, str(name), None)
    with _translated(folder / "config.json"):
        settings = transformers.AutoConfig.from_pretrained(folder)
    thinker = getattr(settings, "thinker_config", None)
    if thinker is not None:  # of an Omni model the thinker alone reads pictures and sounds and writes text
        settings, architecture = thinker, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(thinker)]
    if not _belong_together(architecture, type(settings)):
        called = f"architecture {name!r}" if name else "architectures names no class, which"
        raise CheckpointError(
            f"{folder / 'config.json'}: {called} is not a {config['model_type']} model of transformers "
            f"{transformers.__version__}; set architectures to the class that was saved"
        )
    with _translated(folder / "config.json"):
        try:
            return skeleton(settings, architecture)
        except ImportError as error:  # such as timm, of which some families take their tower
            said = " ".join(str(error).split())[:SAID_CHARACTERS]
            raise MissingTool(f"{folder / 'config.json'}: this model needs more than is installed: {said}") from error


def _belong_together(architecture: Any, settings: type) -> bool:
    """Whether a model class takes this kind of config: its own one, or one that an auto class pairs it with."""
    import transformers

    if not (isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)):
        return False
    tables = (getattr(getattr(transformers, name, None), "_model_mapping", {}) for name in AUTO_CLASSES)
    return architecture.config_class is settings or any(table.get(settings, None) is architecture for table in tables)


def _open_remote(folder: Path, config: Mapping[str, Any], name: str | None) -> PreTrainedModel:
    """Through the classes that auto_map names in the folder itself; code elsewhere is never fetched."""
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    told = config.get("auto_map") or {}
    named = (value for _, part in sections(config) for value in (part.get("auto_map") or {}).values())
    strange = next((value for value in named if "--" in str(value)), None)
    if strange is not None:
        raise UnsupportedFamily(
            f"{folder / 'config.json'}: auto_map names code in another repository ({strange}); put its files into this "
            "folder and name them without the part before '--'"
        )
    reference = next((told[key] for key in AUTO_CLASSES if key in told), None)
    with _remote_faults(folder / "config.json"), _translated(folder / "config.json"):
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
        architecture: Any = getattr(transformers, str(name), None)
        if reference is not None:
            architecture = get_class_from_dynamic_module(reference, str(folder))
        if architecture is None:
            raise ValueError(f"auto_map names none of {', '.join(AUTO_CLASSES)}")
        return skeleton(settings, architecture)


@contextmanager
def _remote_faults(config: Path) -> Iterator[None]:
    """What code that lies in a checkpoint lacks or has wrong, as one sentence."""
    try:
        yield
    except ImportError as error:
        said = " ".join(str(error).split())[:SAID_CHARACTERS]
        raise MissingTool(f"{config}: the code that auto_map names needs more than is installed: {said}") from error
    except SyntaxError as error:
        raise CheckpointError(
            f"{config}: the code that auto_map names is not Python that can be read ({error}); download it again"
        ) from error


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
