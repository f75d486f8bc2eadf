"""Pictures as processors hand them over, kind by kind, told apart by the names of the inputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from msao_compile.families.examples.kinds import Sight, Trial, noise, whole
from msao_compile.families.examples.sizes import channels, merge, patch, sides, stated_side
from msao_compile.families.examples.tiles import mosaic, plain, sized, tiles, views


def pictures(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Candidates for the pictures of one request, the likeliest first.

    Variant 0 is one picture, 1 one of another size where the kind has sizes, 2 two pictures.
    """
    names = sight.takes("image")
    kinds = (
        ("image_grid_thw", packed),
        ("image_grid_hw", packed),
        ("spatial_shapes", shaped),
        ("target_sizes", strips),
        ("image_position_ids", placed),
        ("image_token_pooling", pooled),
        ("aspect_ratio_ids", aspects),
        ("image_pixel_values", mosaic),
        ("flattened_patches", flattened),
        ("num_local_patches", views),
        ("pixel_attention_mask", tiles),
        ("image_sizes", sized),
    )
    for marker, kind in kinds:
        if marker in names:
            yield from kind(sight, variant, chance)
            break
    yield from plain(sight, variant, chance)


def packed(sight: Sight, variant: int, chance: np.random.Generator, clip: bool = False) -> Iterator[Trial]:
    """Patches of all pictures in one row, with a grid [time, height, width] of patches for each."""
    side, frame, depth = patch(sight), channels(sight), 1
    depth = sight.number("temporal_patch_size", "patch_temporal", "temporal_patch", default=1, of=sight.vision)
    key, grid_key = ("pixel_values_videos", "video_grid_thw") if clip else ("pixel_values", "image_grid_thw")
    if "image_grid_hw" in sight.forward:
        grid_key = "image_grid_hw"
    # Some towers join frames: an odd number of them, then an even one, then what stands for all.
    wanted: tuple[tuple[int, ...], ...] = (((2,),), ((3,), (4,)), ((2, 2),))[variant]
    times = (*wanted, (1, 1)) if clip else ((1, 1),)
    for unit, lengths in ((unit, lengths) for lengths in times for unit in dict.fromkeys((merge(sight), 2, 4))):
        shown = [(time, side) for time, side in zip(lengths, sides(sight, variant))]
        if clip:  # one frame on its side, so that it is told apart from a picture
            shown = [(time, side[::-1] if time == 1 else side) for time, side in shown]
        grid = whole([(time, high * unit, wide * unit) for time, (high, wide) in shown])
        count = int(grid.prod(1).sum())
        if grid_key == "image_grid_hw":
            grid = grid[:, 1:]
        shapes = (
            (count, frame * depth * side * side),
            (count, frame * side * side),
            (count, frame, side, side),
            (count, unit * side, unit * side, frame),
        )
        for shape in dict.fromkeys(shapes):
            inputs = {key: noise(chance, *shape), grid_key: grid}
            sizes_key = "video_merge_sizes" if clip else "image_merge_sizes"
            if sizes_key in sight.forward:
                inputs[sizes_key] = whole([2 if clip else 1] * len(grid))
            if clip and "video_second_per_grid" in sight.forward:
                inputs["video_second_per_grid"] = np.ones(len(grid), np.float32)
            yield Trial("packed patches", inputs, len(grid), frames=int(lengths[0]))


def shaped(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Patches of each picture in a row of its own, padded to the longest, with height and width in patches."""
    unit, width = merge(sight), channels(sight) * patch(sight) ** 2
    wanted = sides(sight, variant)
    for chosen in (wanted, wanted[:1] * len(wanted)):
        shapes = whole(chosen) * unit
        counts = shapes.prod(1)
        mask = (np.arange(counts.max())[None, :] < counts[:, None]).astype(np.int64)
        pixels = noise(chance, len(shapes), int(counts.max()), width) * mask[..., None].astype(np.float32)
        inputs = {"pixel_values": pixels, "spatial_shapes": shapes, "pixel_attention_mask": mask}
        yield Trial("patches with spatial shapes", inputs, len(shapes))


def strips(sight: Sight, variant: int, chance: np.random.Generator, clip: bool = False) -> Iterator[Trial]:
    """Patches of all pictures side by side in one strip [1, channels, patch, patches * patch].

    A clip is as many pictures as it has frames; its sizes are other ones, so that both are told apart.
    """
    side, end = patch(sight), "_videos" if clip else ""
    still = (((2, 3),), ((3, 4),), ((2, 3), (3, 2)))[variant]
    moving = (((4, 2),), ((5, 3),), ((4, 2), (4, 2), (2, 2), (2, 2)))[variant]
    for unit in (4, 2, 8):
        sizes = whole(moving if clip else still) * unit
        width = int(sizes.prod(1).sum()) * side
        inputs = {f"pixel_values{end}": noise(chance, 1, channels(sight), side, width), f"target_sizes{end}": sizes}
        yield Trial("strips with target sizes", inputs, 2 if variant == 2 else 1)


def places(shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Column and row of every patch [pictures, patches, 2], padded with -1 to the picture with the most."""
    most = max(high * wide for high, wide in shapes)
    result = np.full((len(shapes), most, 2), -1, np.int64)
    for index, (high, wide) in enumerate(shapes):
        row, column = np.indices((high, wide))
        result[index, : high * wide] = np.stack([column.ravel(), row.ravel()], -1)
    return result


def placed(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Patches of each picture in a row of its own, each with its column and row."""
    unit = sight.number("pooling_kernel_size", default=2, of=sight.vision)
    wanted = (((2, 2),), ((2, 3),), ((2, 2), (2, 3)))[variant]
    width = channels(sight) * patch(sight) ** 2
    for chosen in (wanted, wanted[:1] * len(wanted)):
        where = places(tuple((high * unit, wide * unit) for high, wide in chosen))
        for size in dict.fromkeys((width, width * unit * unit)):
            pixels = noise(chance, *where.shape[:2], size) * (where[..., :1] >= 0).astype(np.float32)
            yield Trial("patches with places", {"pixel_values": pixels, "image_position_ids": where}, len(chosen))


def pooled(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Crops of patches, with the patches that each feature is pooled from."""
    high, wide = stated_side(sight) or (378, 378)
    high, wide = high // patch(sight), wide // patch(sight)
    index = np.pad(np.arange(high * wide).reshape(high, wide), ((0, high % 2), (0, wide % 2)), constant_values=-1)
    rows, columns = index.shape[0] // 2, index.shape[1] // 2
    one = index.reshape(rows, 2, columns, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    crops = ((1,), (2,), (1, 1))[variant]
    total = sum(crops) + len(crops)
    width = channels(sight) * patch(sight) ** 2
    pooling = np.concatenate([np.where(one < 0, -1, one + crop * high * wide) for crop in range(total)])
    inputs = {
        "pixel_values": noise(chance, total, high * wide, width),
        "image_token_pooling": whole(pooling),
        # A low-resolution view and a row of crops for each picture.
        "image_grids": whole([(rows, columns, rows, columns * crop) for crop in crops]),
        "image_num_crops": whole([1 + crop for crop in crops]),
    }
    yield Trial("crops with pooling", inputs, len(crops))


def aspects(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Padded tiles [1, pictures, tiles, channels, side, side] with an aspect ratio's number for each picture."""
    side, most = (stated_side(sight) or (448, 448))[0], sight.number("max_num_tiles", default=4, of=sight.vision)
    ratios = [tuple(ratio) for ratio in getattr(sight.vision, "supported_aspect_ratios", ((1, 1), (1, 2)))]
    used = ([1, min(2, most)], [1, 1], [1, min(2, most)])[variant]
    number = next((place + 1 for place, ratio in enumerate(ratios) if ratio == tuple(used)), 1)
    items = 2 if variant == 2 else 1
    mask = np.zeros((1, items, most), np.int64)
    mask[..., : used[1]] = 1
    inputs = {
        "pixel_values": noise(chance, 1, items, most, channels(sight), side, side)
        * mask[..., None, None, None].astype(np.float32),
        "aspect_ratio_ids": np.full((1, items), number, np.int64),
        "aspect_ratio_mask": mask,
    }
    yield Trial("tiles with aspect ratios", inputs, items, runs=(1,) * items)


def flattened(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Patches [pictures, patches, 2 + values] whose first two values are row and column, counted from 1."""
    width = sight.number("patch_embed_hidden_size", default=0, of=sight.vision)
    shapes = (((3, 4),), ((4, 5),), ((3, 4), (3, 4)))[variant]
    for size in dict.fromkeys((width or channels(sight) * patch(sight) ** 2, channels(sight) * patch(sight) ** 2)):
        numbers = places(shapes)[..., ::-1].astype(np.float32) + 1
        patches = np.concatenate([numbers, noise(chance, *numbers.shape[:2], size)], -1)
        inputs = {"flattened_patches": patches}
        if "input_ids" not in sight.forward:
            inputs["attention_mask"] = np.ones(patches.shape[:2], np.int64)
        yield Trial("flattened patches", inputs, len(shapes))
