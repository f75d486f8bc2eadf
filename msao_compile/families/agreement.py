"""Whether what lies beside a checkpoint's weights belongs to its config: tokenizer, placeholders, picture settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msao_compile.errors import CheckpointError

# processor_class and image_processor_type of one family alone -> the model types it serves. Classes that many families
# share (CLIPImageProcessor, SiglipImageProcessor, ...) say nothing about the family and are not listed.
_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen2_5_omni",
         "qwen2_5_omni_thinker", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "colqwen2")  # fmt: skip
SERVES: Mapping[str, tuple[str, ...]] = {
    "AudioFlamingo3Processor": ("audioflamingo3",),
    "AyaVisionProcessor": ("aya_vision",),
    "Blip2Processor": ("blip-2",),
    "CLIPProcessor": ("clip", "aimv2", "groupvit", "metaclip_2"),
    "Florence2Processor": ("florence2",),
    "FuyuProcessor": ("fuyu",),
    "Gemma3Processor": ("gemma3", "t5gemma2", "shieldgemma2"),
    "Idefics2Processor": ("idefics2",),
    "Idefics3Processor": ("idefics3", "smolvlm"),
    "InstructBlipProcessor": ("instructblip",),
    "InternVLProcessor": ("internvl",),
    "Llama4Processor": ("llama4",),
    "LlavaNextProcessor": ("llava_next", "granite4_vision"),
    "LlavaOnevisionProcessor": ("llava_onevision",),
    "LlavaProcessor": ("llava", "vipllava"),
    "MllamaProcessor": ("mllama",),
    "PaliGemmaProcessor": ("paligemma", "colpali"),
    "PixtralProcessor": ("llava", "mistral3", "mistral_large4", "pixtral"),
    "Qwen2AudioProcessor": ("qwen2_audio",),
    "Qwen2VLProcessor": _QWEN,
    "Qwen2_5_VLProcessor": _QWEN,
    "Qwen2_5OmniProcessor": _QWEN,
    "Qwen3VLProcessor": _QWEN,
    "SiglipProcessor": ("siglip",),
    "SmolVLMProcessor": ("idefics3", "smolvlm"),
    "VideoLlavaProcessor": ("video_llava",),
    "VoxtralProcessor": ("voxtral",),
    "WhisperProcessor": ("whisper",),
    "FuyuImageProcessor": ("fuyu",),
    "Gemma3ImageProcessor": ("gemma3", "t5gemma2", "shieldgemma2"),
    "Idefics2ImageProcessor": ("idefics2",),
    "Idefics3ImageProcessor": ("idefics3", "smolvlm"),
    "Llama4ImageProcessor": ("llama4",),
    "LlavaNextImageProcessor": ("llava_next", "llava_next_video", "granite4_vision"),
    "LlavaOnevisionImageProcessor": ("llava_onevision",),
    "MllamaImageProcessor": ("mllama",),
    "Qwen2VLImageProcessor": (*_QWEN, "video_llama_3", "dots3_note", "exaone4_5", "lfm3_vl"),
    "Qwen2_5_VLImageProcessor": _QWEN,
    "SmolVLMImageProcessor": ("idefics3", "smolvlm"),
}
FAMILIES = frozenset(family for served in SERVES.values() for family in served)
PLACEHOLDERS = ("image", "video", "audio")
DEFAULT_PLACEHOLDERS = {"idefics3": "<image>", "smolvlm": "<image>", "llava": "<image>", "qwen2_vl": "<|image_pad|>",
                        "qwen2_5_vl": "<|image_pad|>", "qwen3_vl": "<|image_pad|>", "internvl": "<IMG_CONTEXT>",
                        "gemma3": "<image_soft_token>"}  # fmt: skip
"""What transformers' processor writes for a picture where no file names its token."""
SAME_TOKEN = frozenset({*DEFAULT_PLACEHOLDERS, *_QWEN, "aya_vision", "idefics2", "llava_next", "llava_next_video",
                        "llava_onevision", "mistral3", "paligemma", "qwen2_audio", "video_llava", "vipllava",
                        "voxtral"})  # fmt: skip
"""Whose config has the id of the very token that the processor writes; elsewhere the two may be different tokens."""
WHOLE_PICTURE = ("SiglipImageProcessor", "Gemma3ImageProcessor", "LlavaOnevisionImageProcessor")
"""Give every picture the square edge that `size` tells, with no crop after it."""
COUNTED_BY_PROCESSOR = ("llava", "llava_next", "llava_next_video", "video_llava", "vipllava")
"""Their processor_config.json itself has the tower's patch_size, to count placeholders with."""
# A setting of the processor, and the names that vision configs have for it.
GEOMETRY = {
    "patch_size": ("patch_size", "spatial_patch_size"),
    "merge_size": ("spatial_merge_size",),
    "temporal_patch_size": ("temporal_patch_size",),
}


def refuse_strangers(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse side files that belong to another model than config.json; damaged ones are left to who reads them.

    Raises:
        CheckpointError: two files contradict each other; the message has both values.
    """
    files = {name: readable(folder / name) for name in
             ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")}  # fmt: skip
    for name, told in files.items():
        for section in (told, told.get("image_processor")):
            if isinstance(section, Mapping):
                _refuse_another_family(folder, name, section, config)
    for name in ("processor_config.json", "preprocessor_config.json"):
        pictures = files[name].get("image_processor")
        counts = name == "preprocessor_config.json" or config.get("model_type") in COUNTED_BY_PROCESSOR
        for section in (files[name] if counts else None, pictures):
            if isinstance(section, Mapping):
                _refuse_another_geometry(folder, name, section, config)
    words = _vocabulary(readable(folder / "tokenizer.json"))
    if words:
        _refuse_other_placeholders(folder, files, words, config)
        _refuse_too_many_words(folder, words, config)


def _refuse_another_family(folder: Path, name: str, section: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    mine = config.get("model_type")
    for key in ("processor_class", "image_processor_type"):
        told = _bare(section.get(key))
        served = SERVES.get(told)
        if served is not None and mine in FAMILIES and mine not in served:
            raise CheckpointError(
                f"{folder / name}: {key} is {told}, which serves {' and '.join(served[:2])}, but config.json says "
                f"model_type {mine!r}; put the processor files of this checkpoint beside its weights"
            )


def _refuse_another_geometry(folder: Path, name: str, section: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    vision = _thinker(config).get("vision_config")
    if not isinstance(vision, Mapping):
        return
    for setting, names in GEOMETRY.items():
        key = next((known for known in names if isinstance(vision.get(known), int)), None)
        told = _edge(section.get(setting))
        if key is not None and told is not None and told != vision[key]:
            raise _contradiction(folder / name, setting, told, f"vision_config.{key}", vision[key])
    edge = "size" if _bare(section.get("image_processor_type")) in WHOLE_PICTURE else "crop_size"
    told = None if edge == "crop_size" and section.get("do_center_crop") is False else _edge(section.get(edge))
    if told is not None and isinstance(vision.get("image_size"), int) and told != vision["image_size"]:
        raise _contradiction(folder / name, edge, told, "vision_config.image_size", vision["image_size"])


def _refuse_other_placeholders(
    folder: Path, files: Mapping[str, Mapping[str, Any]], words: Mapping[str, int], config: Mapping[str, Any]
) -> None:
    mine = _thinker(config)
    if config.get("model_type") not in SAME_TOKEN:
        return
    for kind in PLACEHOLDERS:
        told = next((mine[key] for key in (f"{kind}_token_id", f"{kind}_token_index") if key in mine), None)
        token = next((text for file in files.values() for text in _texts(file, f"{kind}_token")), None)
        if token is None and kind == "image":
            token = DEFAULT_PLACEHOLDERS.get(str(config.get("model_type")))
            token = token if token in words else None
        if not isinstance(told, int) or token is None:
            continue
        if token not in words:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'}: has no token {token!r}, which the processor writes for each {kind}, "
                f"where config.json says {kind}_token_id {told}; put this checkpoint's own tokenizer there"
            )
        if words[token] != told:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'}: the {kind} token {token!r} has the id {words[token]}, but config.json "
                f"says {kind}_token_id {told}; put the tokenizer and the config of one checkpoint there"
            )


def _refuse_too_many_words(folder: Path, words: Mapping[str, int], config: Mapping[str, Any]) -> None:
    rows = _rows(config)
    word, last = max(words.items(), key=lambda entry: entry[1])
    if rows is not None and last >= rows:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: the token {word!r} has the id {last}, but by config.json the embedding has "
            f"{rows} rows (vocab_size); put the tokenizer and the config of one checkpoint there"
        )


def _rows(config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding; None where the config leaves vocab_size to transformers' default."""
    mine = _thinker(config)
    for part in (mine.get("text_config"), mine.get("llm_config"), mine):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int):
            more = part.get("additional_vocab_size", config.get("additional_vocab_size", 0))
            mllama = 8 if config.get("model_type") == "mllama" else 0  # its embedding has eight rows for the picture
            return int(part["vocab_size"]) + (more if isinstance(more, int) else 0) + mllama
    return None


def _thinker(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the config that has the encoders and the text model: of Omni models a config inside it."""
    inner = config.get("thinker_config")
    return inner if isinstance(inner, Mapping) else config


def _bare(name: object) -> str:
    return str(name or "").removesuffix("Fast").removesuffix("Pil")


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token to id of a tokenizer.json, added tokens included; empty where it is damaged or absent."""
    model = tokenizer.get("model")
    told = model.get("vocab") if isinstance(model, Mapping) else None
    words: dict[str, int] = {}
    if isinstance(told, Mapping):
        words.update((word, number) for word, number in told.items() if isinstance(number, int))
    elif isinstance(told, list):  # unigram: the place in the list is the id
        words.update((str(entry[0]), place) for place, entry in enumerate(told) if isinstance(entry, list) and entry)
    added = tokenizer.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int):
            words[str(entry.get("content"))] = entry["id"]
    return words


def _texts(file: Mapping[str, Any], key: str) -> Iterator[str]:
    value = file.get(key)
    value = value.get("content") if isinstance(value, Mapping) else value
    if isinstance(value, str) and value:
        yield value


def _edge(value: object) -> int | None:
    """One edge of a square size, however it is written; None where it is no square."""
    if isinstance(value, Mapping):
        edges = {value.get("height"), value.get("width")}
        value = edges.pop() if len(edges) == 1 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _contradiction(path: Path, setting: str, told: int, key: str, other: int) -> CheckpointError:
    return CheckpointError(
        f"{path}: {setting} is {told}, but config.json says {key} = {other}; put the processor files of this "
        "checkpoint beside its weights"
    )


def readable(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it is absent or damaged, which is for others to say."""
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
