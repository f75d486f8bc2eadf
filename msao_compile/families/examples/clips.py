"""Clips of video as processors hand them over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from msao_compile.families.examples.kinds import Sight, Trial, noise, whole
from msao_compile.families.examples.pictures import packed, places, strips
from msao_compile.families.examples.sizes import channels, patch, plain_sides, stated_side


def clips(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Candidates for the clips of one request: one, one of another length, two."""
    names = sight.forward
    if "video_grid_thw" in names:
        yield from packed(sight, variant, chance, clip=True)
    elif "target_sizes_videos" in names:
        yield from strips(sight, variant, chance, clip=True)
    elif "video_position_ids" in names:
        yield from placed(sight, variant, chance)
    elif "video_token_pooling" in names:
        yield from pooled(sight, variant, chance)
    yield from frames(sight, variant, chance)


def frames(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Pixels [clips, frames, channels, height, width], or [frames, ...] of one clip."""
    key = "pixel_values_videos" if "pixel_values_videos" in sight.forward else "pixel_values"
    items = 2 if variant == 2 else 1
    stated = sight.number("num_frames", "num_image_with_embedding", default=0, of=sight.vision)
    for count in dict.fromkeys(((4, 6, 4)[variant], (2, 3, 2)[variant], stated, 8)):
        for high, wide in plain_sides(sight, variant) if count else ():
            shape = (count, channels(sight), high, wide)
            yield Trial("frames", {key: noise(chance, items, *shape)}, items, frames=count)
            if items == 1:
                yield Trial("loose frames", {key: noise(chance, *shape)}, items, frames=count)


def placed(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Patches of each frame in a row of its own, each with its column and row, and the frames of each clip."""
    unit = sight.number("pooling_kernel_size", default=2, of=sight.vision)
    counts = ((2,), (3,), (2, 2))[variant]
    where = places(((2 * unit, (2, 3, 2)[variant] * unit),) * sum(counts))
    width = channels(sight) * patch(sight) ** 2
    for size in dict.fromkeys((width, width * unit * unit)):
        inputs = {
            "pixel_values_videos": noise(chance, *where.shape[:2], size),
            "video_position_ids": where,
            "num_frames_per_video": whole(counts),
        }
        yield Trial("frames with places", inputs, len(counts), frames=counts[0])


def pooled(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Frames of patches, with the patches that each feature is pooled from."""
    high, wide = (length // patch(sight) for length in stated_side(sight) or (378, 378))
    index = np.pad(np.arange(high * wide).reshape(high, wide), ((0, high % 2), (0, wide % 2)), constant_values=-1)
    rows, columns = index.shape[0] // 2, index.shape[1] // 2
    one = index.reshape(rows, 2, columns, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    counts = ((2,), (3,), (2, 2))[variant]
    pooling = np.concatenate([np.where(one < 0, -1, one + frame * high * wide) for frame in range(sum(counts))])
    inputs = {
        "pixel_values_videos": noise(chance, sum(counts), high * wide, channels(sight) * patch(sight) ** 2),
        "video_token_pooling": whole(pooling),
        "video_grids": whole([(count, rows, columns) for count in counts]),
    }
    yield Trial("frames with pooling", inputs, len(counts), frames=counts[0])
