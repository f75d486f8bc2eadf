"""One request in the names of a model's forward: text ids with room for media, and what goes with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import InputError, UnsupportedFamily
from msao_compile.families.examples.kinds import (
    FAULTS,
    MEDIA,
    Arrays,
    Modality,
    Sight,
    look,
    tensors,
    text_ids,
    whole,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The ids put around a run of placeholders, where the config has them.
STARTS = {
    "image": (
        "vision_start_token_id",
        "image_start_token_id",
        "boi_token_id",
        "boi_token_index",
        "im_start_id",
        "image_bos_token_id",
    ),
    "video": ("vision_start_token_id", "video_start_token_id"),
    "audio": ("audio_start_token_id", "boa_token_id", "audio_bos_token_id"),
}
ENDS = {
    "image": (
        "vision_end_token_id",
        "image_end_token_id",
        "eoi_token_id",
        "eoi_token_index",
        "im_end_id",
        "image_eos_token_id",
    ),
    "video": ("vision_end_token_id", "video_end_token_id"),
    "audio": ("audio_end_token_id", "eoa_token_id", "audio_eos_token_id"),
}
CODES = {"image": 1, "video": 2, "audio": 3}

# Families whose `token_type_ids` tell the prompt (0) from the answer (1), not text (0) from pictures (1).
PROMPT_TYPES = ("paligemma", "colpali")


@dataclass(frozen=True)
class Medium:
    """Pictures, clips or sounds of one request as a family's processor gives them, and their place in the text.

    `inputs` are float32, int64 or bool. `tokens` are the lengths of the runs of `placeholder` that stand for them in
    `input_ids`, in order: () and None where media take no place in the text. Runs without a placeholder are heard along
    with the text: there are as many ids as features, and no other.
    """

    modality: Modality
    inputs: Arrays
    tokens: tuple[int, ...]
    placeholder: int | None


def first_id(config: Any, names: Sequence[str]) -> list[int]:
    """The first of these ids that the config has, as a list of one; else an empty one."""
    values = (getattr(config, name, None) for name in names)
    return next(([value] for value in values if isinstance(value, int) and not isinstance(value, bool)), [])


def bos(sight: Sight) -> list[int]:
    """The id that opens a text, where the config has one."""
    own = first_id(sight.config, ("bos_token_id",))
    return own or first_id(sight.config.get_text_config(), ("bos_token_id",))


def sequence(
    sight: Sight, media: Sequence[Medium], words: int, chance: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`input_ids` [1, length] and, of the same shape, which medium each id stands for (0 is text, then 1, 2, ...)."""
    along = sum(sum(medium.tokens) for medium in media if medium.placeholder is None)
    if along:
        return whole([text_ids(sight, along, chance)]), np.zeros((1, along), np.int64)
    text = text_ids(sight, max(2, words) + sum(len(medium.tokens) for medium in media), chance)
    ids, owners = bos(sight), [0] * len(bos(sight))

    def say(tokens: Sequence[int], owner: int = 0) -> None:
        ids.extend(tokens)
        owners.extend([owner] * len(tokens))

    spare = sum(len(medium.tokens) for medium in media)
    say(text[spare : spare + max(2, words) // 2])
    for index, medium in enumerate(media):
        for run in medium.tokens:
            # A word before each run keeps runs apart: one clip's frames are told apart by what stands between them.
            spare -= 1
            say(text[spare : spare + 1])
            say(first_id(sight.config, STARTS[medium.modality]))
            say([medium.placeholder or 0] * run, index + 1)
            say(first_id(sight.config, ENDS[medium.modality]))
    say(text[len(text) - (max(2, words) - max(2, words) // 2) :])
    return whole([ids]), whole([owners])


def types(sight: Sight, media: Sequence[Medium], ids: np.ndarray, owners: np.ndarray) -> Arrays:
    """What tells a model's forward which ids are text and which stand for media, under each name that it has."""
    modality = np.array([0, *(CODES[medium.modality] for medium in media)], np.int64)[owners]
    names = sight.forward
    result: Arrays = {}
    if "mm_token_type_ids" in names:
        result["mm_token_type_ids"] = modality
    if "moe_mm_token_type_ids" in names:
        # Experts of pictures take the ids around a run too.
        result["moe_mm_token_type_ids"] = modality.copy()
        for medium in media:
            code = CODES[medium.modality]
            bounds = first_id(sight.config, STARTS[medium.modality]) + first_id(sight.config, ENDS[medium.modality])
            beside = np.roll(modality == code, 1, axis=1) | np.roll(modality == code, -1, axis=1)
            result["moe_mm_token_type_ids"][beside & np.isin(ids, bounds)] = code
    if "token_type_ids" in names:
        marked = sight.config.model_type not in PROMPT_TYPES
        result["token_type_ids"] = (modality == 1).astype(np.int64) * marked
    if "image_embeds_position_mask" in names and media:
        result["image_embeds_position_mask"] = (modality == 1).astype(np.int64)
    return result


def crosses(sight: Sight, media: Sequence[Medium], owners: np.ndarray) -> Arrays:
    """Masks [1, length, pictures, ...] of which ids see which pictures, where pictures are looked at from beside."""
    result: Arrays = {}
    for medium in media:
        pixels = medium.inputs.get("pixel_values")
        if "image_attention_mask" in sight.forward and pixels is not None:
            result["image_attention_mask"] = np.ones((1, owners.shape[1], pixels.shape[1]), np.int64)
        if "cross_attention_mask" in sight.forward and "aspect_ratio_mask" in medium.inputs:
            # An id sees the pictures that stand before it, and the tiles that are no padding.
            seen = np.cumsum(owners > 0, axis=1)[..., None] > np.arange(pixels.shape[1] if pixels is not None else 0)
            tiles = medium.inputs["aspect_ratio_mask"][:, None]
            result["cross_attention_mask"] = seen[..., None].astype(np.int64) * tiles
    return result


def answer_ids(sight: Sight, words: int, chance: np.random.Generator) -> np.ndarray:
    """`decoder_input_ids` [1, 1 + words]: the id that opens an answer, and plain text."""
    for config in (sight.config, getattr(sight.model, "generation_config", None), sight.config.get_text_config(True)):
        start = first_id(config, ("decoder_start_token_id",)) or first_id(config, ("bos_token_id",))
        if start:
            break
    return whole([[*(start or [0]), *text_ids(sight, max(2, words), chance)]])


def pairs(sight: Sight, words: int, chance: np.random.Generator) -> Arrays:
    """Two texts [2, length], each closed by the id that a text tower may pool at."""
    text = sight.config.get_text_config()
    size = int(getattr(text, "vocab_size", 0) or 0)
    opening, closing = (
        [token for token in first_id(text, (name,)) if 0 <= token < size] for name in ("bos_token_id", "eos_token_id")
    )
    rows = [[*opening, *text_ids(sight, max(2, words), chance), *closing] for _ in range(2)]
    return {"input_ids": whole(rows), "attention_mask": np.ones_like(whole(rows))}


def compose(sight: Sight, media: Sequence[Medium], words: int, chance: np.random.Generator) -> Arrays:
    """The named inputs of one forward, whether or not the model can run them."""
    inputs: Arrays = {}
    if sight.dual:
        inputs.update(pairs(sight, words, chance))
    elif "input_ids" in sight.forward and not media_only(sight):
        ids, owners = sequence(sight, media, words, chance)
        inputs["input_ids"] = ids
        if "attention_mask" in sight.forward:
            inputs["attention_mask"] = np.ones_like(ids)
        inputs.update(types(sight, media, ids, owners))
        inputs.update(crosses(sight, media, owners))
        if "bbox" in sight.forward:
            # Where each word stands on the page: left, top, right and bottom as parts of its size.
            inputs["bbox"] = (
                np.sort(chance.random((1, ids.shape[1], 2, 2)), axis=2).reshape(1, -1, 4).astype(np.float32)
            )
    for medium in media:
        inputs.update({name: value for name, value in medium.inputs.items() if name in sight.forward})
    if sight.encoder_decoder:
        inputs["decoder_input_ids"] = answer_ids(sight, words, chance)
    return inputs


def media_only(sight: Sight) -> bool:
    """Whether an encoder-decoder reads no text at all: its first input is the medium, and no id stands for one."""
    named = (
        getattr(sight.model, "main_input_name", "input_ids") in MEDIA["image"] and sight.placeholder("image") is None
    )
    return sight.encoder_decoder and (named or "input_ids" not in sight.forward)


def request(
    model: PreTrainedModel, media: Sequence[Medium], words: int, chance: np.random.Generator
) -> dict[str, np.ndarray]:
    """The whole named inputs of one forward with batch 1: ids, masks and types [1, length], and the media's own inputs.

    `words` plain text ids stand around the media (and follow the first id of an encoder-decoder's answer). A model that
    compares texts with media gets two texts instead. Raises UnsupportedFamily where the family cannot answer the
    request without media, InputError where two media are named alike.
    """
    sight = look(model)
    names = Counter(name for medium in media for name in medium.inputs)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise InputError(
            f"{' and '.join(medium.modality for medium in media)} of one request are both given as {', '.join(twice)}: "
            "leave the encoder of one out (`exclude` in the recipe), or ask for variant 2 of the other."
        )
    inputs = compose(sight, media, words, chance)
    if not media:
        name = type(model).__name__
        if sight.dual or "input_ids" not in inputs:
            raise UnsupportedFamily(f"{name} cannot answer without media: give it a medium.")
        fault = run(model, inputs)
        if fault is not None:
            raise UnsupportedFamily(f"{name} cannot answer without media: give it a medium ({fault}).")
    return inputs


def run(model: PreTrainedModel, inputs: Mapping[str, Any]) -> str | None:
    """Runs one forward; its fault in one line, None where it ran."""
    import torch

    try:
        with torch.no_grad():
            model(**tensors(inputs))
    except FAULTS as fault:
        return f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"[:200]
    return None
