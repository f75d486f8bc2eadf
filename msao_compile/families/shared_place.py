"""Families in which clips stand in the text where pictures do: both kinds of features in one forward."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from msao_compile.families.examples import Medium

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shared_inputs(media: Sequence[tuple[Medium, Medium]]) -> tuple[str, ...]:
    """The inputs of clips whose features go where those of pictures go; their forward takes one of both at a time."""
    places = {pair[0].modality: pair[0].placeholder for pair in media}
    if "image" not in places or places["image"] is None or places["image"] != places.get("video"):
        return ()
    return tuple(name for pair in media if pair[0].modality == "video" for name in pair[0].inputs)


@contextlib.contextmanager
def joined(model: PreTrainedModel, values: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Inside this block the model's features of pictures are followed by those of the clips in `values[names]`.

    Exact for a request of pictures alone, of clips alone, and for one in which all pictures stand before all clips.
    """
    clip = {name: values[name] for name in names if name in values}
    if not clip:
        yield values
        return
    owner: Any = next(part for part in (getattr(model, "model", None), model) if hasattr(part, "get_video_features"))
    pictures = owner.get_image_features

    def both(*args: Any, **named: Any) -> Any:
        vars(owner).pop("get_image_features")  # features of clips may be made by the method for pictures
        found = pictures(*args, **named)
        takes = inspect.signature(owner.get_video_features).parameters
        clips = owner.get_video_features(**{name: value for name, value in clip.items() if name in takes})
        vars(owner)["get_image_features"] = both
        parts = [_rows(found.pooler_output), _rows(clips.pooler_output)]
        together = torch.cat(parts)
        listed = isinstance(found.pooler_output, list | tuple)
        found.pooler_output = [together] if listed else together
        return found

    vars(owner)["get_image_features"] = both
    try:
        yield {name: value for name, value in values.items() if name not in clip}
    finally:
        vars(owner).pop("get_image_features", None)


def _rows(features: Any) -> torch.Tensor:
    joined_rows = torch.cat(list(features)) if isinstance(features, list | tuple) else features
    rows: torch.Tensor = joined_rows.reshape(-1, joined_rows.shape[-1])
    return rows
