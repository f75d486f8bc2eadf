"""Finds by trial the media that a model takes, and asks the model how many places each takes in the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.examples.clips import clips
from msao_compile.families.examples.kinds import (
    FAULTS,
    MEDIA,
    Arrays,
    Modality,
    Sight,
    Trial,
    look,
    plain_ids,
    rows,
    tensors,
    text_ids,
    whole,
)
from msao_compile.families.examples.pictures import pictures
from msao_compile.families.examples.request import Medium, compose, media_only, run
from msao_compile.families.examples.sounds import sounds
from msao_compile.manifest.schema import ENCODERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = {"image": pictures, "video": clips, "audio": sounds}
PARTS = {"image": ("vision_config", "vision_tower_config"), "video": ("vision_config",), "audio": ("audio_config",)}
WORDS = 6

# How a forward says how many features it has when the placeholders are not as many.
COUNTED = (r"features:? \(?(\d+)", r"value tensor of shape \[(\d+)", r"source of size \[?(\d+)")


def modalities(model: PreTrainedModel) -> tuple[str, ...]:
    """What a checkpoint takes beside text, of image, video and audio: an input of its forward, and a tower for it."""
    sight = look(model)
    found = []
    for modality, names in MEDIA.items():
        takes = any(name in sight.forward for name in names)
        if modality == "video" and not takes:
            takes = video_as_pictures(sight) or isinstance(getattr(sight.config, "num_image_with_embedding", None), int)
        if modality == "image" and video_as_pictures(sight):
            takes = False
        absent = any(getattr(sight.config, part, "") is None for part in PARTS[modality])
        stated = [getattr(sight.config, f"{modality}_token_{end}", "") for end in ("id", "index")]
        nameless = None in stated and not any(isinstance(value, int) for value in stated)
        if takes and not absent and not (modality != "image" and nameless):
            found.append(modality)
    return tuple(found)


def video_as_pictures(sight: Sight) -> bool:
    """Whether clips come under the name that pictures have elsewhere."""
    method = sight.features("video")
    return method is not None and "pixel_values" in method[1] and "pixel_values_videos" not in sight.forward


def medium(model: PreTrainedModel, modality: Modality, variant: int, chance: np.random.Generator) -> Medium:
    """An example of a modality that the model is known to run, named and shaped as the family's processor does it.

    Variant 0 is one item, 1 one of another size (another grid, length or number of tiles; the same where the family
    knows one size only), 2 several. A model that compares texts with media gets three, two and four of them.
    Raises UnsupportedFamily with everything that was tried where nothing runs.
    """
    sight = look(model)
    faults: list[str] = []
    # Where no second size or number runs, the family knows one only. Without text there is no room for a second item.
    variants = [0] if media_only(sight) and variant == 2 else list(dict.fromkeys((variant, 0)))
    for trial in (trial for chosen in variants for trial in KINDS[modality](sight, chosen, chance)):
        trial = with_question(sight, trial, 7 if variant == 1 else 5, chance)
        counts, fault = counted(sight, modality, trial)
        if fault is None:
            said = []
            for candidate in placed(sight, modality, trial, counts, chance):
                fault = run(model, compose(sight, (candidate,), WORDS, chance))
                if fault is None:
                    return candidate
                said.append(fault)
            fault = said[0] if said else "there is no place for this many items, or nothing says for how many features"
        faults.append(f"{trial.shapes()}: {fault}")
    method = sight.features(modality)
    named = f"get_{modality}_features({', '.join(method[1])})" if method else f"no get_{modality}_features"
    raise UnsupportedFamily(
        f"No example {modality} input of {type(model).__name__} ran. It has {named} and forward("
        f"{', '.join(sight.forward)}). Tried: {'; '.join(dict.fromkeys(faults)) or 'nothing'}. To build the rest, "
        f"leave it out: [export] exclude = ['{ENCODERS[modality]}']."
    )


def with_question(sight: Sight, trial: Trial, words: int, chance: np.random.Generator) -> Trial:
    """The trial with the question that a Q-Former reads beside the pictures, where the family has one."""
    if "qformer_input_ids" not in sight.forward:
        return trial
    size = sight.number("vocab_size", default=100, of=sight.part("qformer_config"))
    ids = whole([[token % size for token in text_ids(sight, words, chance)]] * trial.items)
    extra = {"qformer_input_ids": ids, "qformer_attention_mask": np.ones_like(ids)}
    return Trial(trial.label, {**trial.inputs, **extra}, trial.items, trial.runs, trial.frames)


def counted(sight: Sight, modality: Modality, trial: Trial) -> tuple[tuple[int, ...], str | None]:
    """How many features the method gives for each item, and its fault; () where it cannot say."""
    import torch

    method = sight.features(modality)
    known = {name: value for name, value in trial.inputs.items() if method is not None and name in method[1]}
    if method is None or not any(name in known for names in MEDIA.values() for name in names):
        return (), None
    if "input_ids" in method[1]:
        # It reads the placeholders themselves: only a whole forward can tell.
        return (), None
    try:
        with torch.no_grad():
            features: Any = method[0](**tensors(known))
    except FAULTS as fault:
        return (), f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"[:200]
    pooled = getattr(features, "pooler_output", features)
    if isinstance(pooled, (list, tuple)) and len(pooled) == trial.items:
        return tuple(rows(one) for one in pooled), None
    total = rows(features)
    if any(value.dtype == np.int64 and len(value) > 1 and (value != value[:1]).any() for value in known.values()):
        alone = one_by_one(method[0], known, trial.items)
        if sum(alone) == total:
            return alone, None
    return shared(trial, total), None


def one_by_one(method: Callable[..., Any], inputs: Arrays, items: int) -> tuple[int, ...]:
    """The features that the method gives for each item alone; () where the inputs are not one row an item."""
    import torch

    if any(len(value) != items for value in inputs.values()):
        return ()
    try:
        with torch.no_grad():
            single = [{name: value[item : item + 1] for name, value in inputs.items()} for item in range(items)]
            return tuple(rows(method(**tensors(one))) for one in single)
    except FAULTS:
        return ()


def shared(trial: Trial, total: int) -> tuple[int, ...]:
    """The features of all items dealt out: by the sizes that come with them, else evenly."""
    for name in ("image_grid_thw", "video_grid_thw", "target_sizes"):
        sizes = trial.inputs.get(name)
        if (
            sizes is not None
            and len(sizes) == trial.items
            and total * int(sizes[0].prod()) % int(sizes.prod(1).sum()) == 0
        ):
            areas = sizes.prod(1)
            return tuple(int(total * area // areas.sum()) for area in areas)
    return (total // trial.items,) * trial.items if trial.items and total % trial.items == 0 else ()


def placed(
    sight: Sight, modality: Modality, trial: Trial, counts: tuple[int, ...], chance: np.random.Generator
) -> Iterator[Medium]:
    """Ways to give the items their places in the text, the likeliest first."""
    if trial.runs == () or sight.dual:
        yield Medium(modality, trial.inputs, (), None)
        return
    ids = [sight.placeholder(modality)]
    if modality == "video":
        # Some families let a clip's features stand where pictures' do.
        ids.append(sight.placeholder("image"))
    known = [token for token in dict.fromkeys(ids) if token is not None]
    if not known and "image_embeds_position_mask" in sight.forward:
        known = [int(plain_ids(sight)[-1])]
    if not known:
        if modality == "audio" and counts and "input_ids" in sight.forward:
            # One feature is heard with each id, so that there are as many ids as features.
            yield Medium(modality, trial.inputs, counts, None)
        # Without room in the text a second item would be a second request.
        if all(len(value) == 1 for value in trial.inputs.values()):
            yield Medium(modality, trial.inputs, (), None)
        return
    for token in known:
        if trial.runs is not None:
            yield Medium(modality, trial.inputs, trial.runs, token)
            continue
        tried: set[tuple[int, ...]] = set()
        # Asking the forward itself costs a run: only where what the method counted does not fit.
        for counting in (True, False):
            lengths = counts if counting else probed(sight, modality, trial, token, chance)
            if not lengths or lengths in tried:
                continue
            tried.add(lengths)
            yield Medium(modality, trial.inputs, lengths, token)
            if trial.frames > 1 and all(length % trial.frames == 0 for length in lengths):
                frames = tuple(length // trial.frames for length in lengths for _ in range(trial.frames))
                yield Medium(modality, trial.inputs, frames, token)


def probed(sight: Sight, modality: Modality, trial: Trial, token: int, chance: np.random.Generator) -> tuple[int, ...]:
    """The features of each item as the forward itself counts them: it is given two placeholders each, and complains."""
    wrong = Medium(modality, trial.inputs, (2,) * trial.items, token)
    fault = run(sight.model, compose(sight, (wrong,), WORDS, chance))
    for pattern in COUNTED if fault else ():
        found = re.search(pattern, fault or "")
        if found and int(found[1]) > 0 and int(found[1]) % trial.items == 0:
            return (int(found[1]) // trial.items,) * trial.items
    return ()
