"""Sizes of pictures that a config states: sides, patches, channels, and what to try where it states none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msao_compile.families.examples.kinds import Sight


def sides(sight: Sight, variant: int) -> tuple[tuple[int, int], ...]:
    """Height and width of a variant's pictures, in merged patches: more of them where texts are compared with pictures.

    Variant 1 has two attention windows where variant 0 has one.
    """
    window = sight.number("window_size", default=0, of=sight.vision) // (patch(sight) * merge(sight))
    chosen = (((2, 3),), ((max(6, window + 2), 2),), ((2, 3), (3, 2)))[variant]
    return chosen * (3, 2, 2)[variant] if sight.dual else chosen


def channels(sight: Sight) -> int:
    """Colour channels of a picture."""
    return sight.number("num_channels", "in_channels", "in_chans", default=3, of=sight.vision)


def patch(sight: Sight) -> int:
    """Side of one patch, in pixels."""
    return sight.number("patch_size", "spatial_patch_size", default=16, of=sight.vision)


def merge(sight: Sight) -> int:
    """How many patches, each way, become one feature."""
    names = ("spatial_merge_size", "merge_kernel_size", "merge_size", "downsample_factor", "pooling_kernel_size")
    return sight.number(*names, default=2, of=sight.vision)


def stated_side(sight: Sight) -> tuple[int, int] | None:
    """Height and width in pixels of the one picture size that the config names, None where it names none."""
    given = getattr(sight.vision, "model_args", None)
    if isinstance(given, dict) and isinstance(given.get("img_size"), (list, tuple)):
        return int(given["img_size"][0]), int(given["img_size"][-1])
    nested = (part for part in vars(sight.vision).values() if hasattr(part, "to_dict"))
    for part in (sight.vision, *nested, sight.config):
        for name in ("image_size", "img_size", "resolution", "input_size", "crop_size"):
            size: Any = getattr(part, name, None)
            if isinstance(size, dict):
                size = (size.get("height"), size.get("width"))
            if isinstance(size, int) and size > 1:
                return size, size
            if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
                return int(size[0]), int(size[1])
    return None


def plain_sides(sight: Sight, variant: int) -> Iterator[tuple[int, int]]:
    """Picture sizes worth trying, in pixels: what the config names, then what towers without a table accept."""
    stated = stated_side(sight)
    if stated is not None:
        yield stated
    else:
        # Twice as large the other time: a size that no config names is the caller's to choose.
        yield from ((side << (variant == 1), side << (variant == 1)) for side in (64, 224, 384, 768))
