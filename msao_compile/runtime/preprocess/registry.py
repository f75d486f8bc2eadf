"""Which preprocessor a checkpoint's JSON asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from msao_compile.errors import InputError
from msao_compile.runtime.preprocess import cropped, patched, tiled
from msao_compile.runtime.preprocess.prepared import Preprocessor
from msao_compile.runtime.preprocess.settings import Settings

READERS: Mapping[str, Callable[[Settings, Settings], Preprocessor]] = {
    "CLIPImageProcessor": cropped.read_clip,
    "Idefics3ImageProcessor": tiled.read,
    "LlavaImageProcessor": cropped.read_llava,
    "Qwen2VLImageProcessor": patched.read,
    "Qwen2_5_VLImageProcessor": patched.read,
    "SiglipImageProcessor": cropped.read_siglip,
    "SmolVLMImageProcessor": tiled.read,
}


def from_config(config: Mapping[str, Any], processor_config: Mapping[str, Any] | None = None) -> Preprocessor:
    """The preprocessor that equals the checkpoint's own image processor.

    Args:
        config: `preprocessor_config.json`, or `processor_config.json` with its `image_processor` section.
        processor_config: `processor_config.json`, for what a picture's text is (image_seq_len, patch_size, image_token,
            fake_image_token, global_image_token, ...). A tokenizer that renames these tokens wins in transformers:
            merge its `tokenizer_config.json` entries in before.

    Raises:
        InputError: the type is not known, or a setting is missing or of the wrong kind.
    """
    processor = processor_config if processor_config is not None else config
    section = config.get("image_processor", config)
    if not isinstance(section, Mapping):
        raise InputError(
            "The section image_processor of processor_config.json is not a table; save the checkpoint again."
        )
    name = type_name(section)
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise InputError(f"The image processor {name or '(none)'} is not known;{hint} known: {', '.join(READERS)}.")
    return READERS[name](Settings(name, section), Settings("processor_config.json", processor))


def type_name(section: Mapping[str, Any]) -> str:
    """The image processor's class without its Fast or Pil suffix; empty where the file names none."""
    name = section.get("image_processor_type") or section.get("feature_extractor_type") or ""
    bare = str(name).removesuffix("Fast").removesuffix("Pil")
    return bare.replace("FeatureExtractor", "ImageProcessor")
