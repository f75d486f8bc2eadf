"""Pictures as pixels: whole ones, tiles of one, views of one, and the sizes that go with them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import numpy as np

from msao_compile.families.examples.kinds import Arrays, Sight, Trial, noise, whole
from msao_compile.families.examples.sizes import channels, patch, plain_sides, stated_side

# Towers that take pictures of any size, inside families whose other towers do not.
SIZED_TOWERS = ("pixtral",)


def plain(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Pixels [pictures, channels, height, width], then [1, pictures, ...]; then patches [pictures, patches, ...]."""
    if sight.dual:
        items = (3, 2, 4)[variant]
    else:
        items = 2 if variant == 2 else 1
    colours, side = channels(sight), patch(sight)
    key = "pixel_values_images" if "pixel_values_images" in sight.forward else "pixel_values"
    masked = "image_attention_mask" in sight.forward
    runs = () if masked else None
    for high, wide in plain_sides(sight, variant):
        shapes = [(items, colours, high, wide), (1, items, colours, high, wide)]
        for shape in reversed(shapes) if masked else shapes:
            inputs = {key: noise(chance, *shape), **beside(sight, items, high, wide, chance)}
            yield Trial("pixels", inputs, items, runs=runs)
        if "image_sizes" in sight.takes("image"):
            sizes = whole([(high, wide)] * items)
            inputs = {key: noise(chance, items, colours, high, wide), "image_sizes": sizes}
            yield Trial("pixels with sizes", inputs, items)
    patches = (6, 12, 6)[variant]
    yield Trial("rows of patches", {key: noise(chance, items, patches, colours * side * side)}, items)
    yield Trial("loose patches", {key: noise(chance, patches * items, 1, side, side, colours)}, items)


def beside(sight: Sight, items: int, high: int, wide: int, chance: np.random.Generator) -> Arrays:
    """What some families take beside plain pixels: a mask of pixels, or the same pictures in another size."""
    inputs: Arrays = {}
    if "pixel_mask" in sight.forward:
        inputs["pixel_mask"] = np.ones((items, high, wide), bool)
    if "high_res_pixel_values" in sight.forward:
        part = sight.part("high_res_vision_config")
        size = sight.number("image_size", default=1024, of=part)
        inputs["high_res_pixel_values"] = noise(chance, items, channels(sight), size, size)
    return inputs


def tiles(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Tiles [1, tiles, channels, height, width] with a mask of their pixels, or of whole tiles."""
    colours = channels(sight)
    # A perceiver gives each tile as many features whatever its size, so that pictures come whole and of any size.
    free = getattr(sight.config, "perceiver_config", None) is not None
    count = ((1, 1, 2) if free else (2, 3, 4))[variant]
    for high, wide in plain_sides(sight, variant):
        if free and variant == 1:
            high, wide = (
                max(1, side * part // 4 // patch(sight)) * patch(sight) for side, part in ((high, 2), (wide, 3))
            )
        pixels = noise(chance, 1, count, colours, high, wide)
        for mask in (np.ones((1, count, high, wide), bool), np.ones((1, count), bool)):
            inputs = {"pixel_values": pixels, "pixel_attention_mask": mask}
            yield Trial("tiles with a mask", inputs, 2 if variant == 2 else 1)


def sized(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Pictures with their heights and widths in pixels: tiles where the config names resolutions, else whole."""
    if getattr(sight.config, "image_grid_pinpoints", None):
        yield from anyres(sight, variant, chance)
        return
    if optional(sight, "image_sizes") and getattr(sight.vision, "model_type", None) not in SIZED_TOWERS:
        return
    multipliers = getattr(sight.vision, "channel_multiplier", None)
    joined = sight.number("spatial_merge_size", default=1, of=sight.vision)
    unit = 2 ** (len(multipliers) - 1) if multipliers else patch(sight) * joined
    most = min(4, max(2, (stated_side(sight) or (4 * unit,))[0] // unit))
    for sides in sides_of_any_size(most, variant):
        sizes = whole(sides) * unit
        high, wide = sizes.max(0)
        pixels = noise(chance, len(sides), channels(sight), int(high), int(wide))
        for picture, (own_high, own_wide) in zip(pixels, sizes):
            picture[:, own_high:, :] = 0
            picture[:, :, own_wide:] = 0
        yield Trial("pixels with sizes", {"pixel_values": pixels, "image_sizes": sizes}, len(sides))


def sides_of_any_size(most: int, variant: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Candidate sides, in merged patches, where the longest possible one is `most`.

    Over the variants height, width and area all differ, so that no axis looks as if it had one length only.
    """
    if most == 2:
        return ((((2, 2),),), (((1, 1),), ((1, 2),)), (((2, 1), (1, 1)), ((2, 1), (2, 1))))[variant]
    first, second = (most - 1, most), (most, most - 2)
    return (((first,),), ((second,),), ((first, second), (first, first)))[variant]


def optional(sight: Sight, name: str) -> bool:
    """Whether the features method of pictures can be called without this input."""
    method = sight.features("image")
    if method is None:
        return True
    parameter = inspect.signature(method[0]).parameters.get(name)
    return parameter is None or parameter.default is not inspect.Parameter.empty


def best_pinpoint(high: int, wide: int, pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The resolution that keeps most of a picture's pixels, then wastes least (LLaVA-NeXT's rule)."""

    def worth(pinpoint: tuple[int, int]) -> tuple[int, int]:
        scale = min(pinpoint[0] / high, pinpoint[1] / wide)
        kept = min(int(high * scale) * int(wide * scale), high * wide)
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=worth)


def anyres(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Pixels [pictures, tiles, channels, side, side]: one small view and the tiles of the best resolution."""
    side = (stated_side(sight) or (336, 336))[0]
    pinpoints = sorted({(int(high), int(wide)) for high, wide in sight.config.image_grid_pinpoints}, key=np.prod)
    small, large = pinpoints[0], next((one for one in pinpoints if np.prod(one) > np.prod(pinpoints[0])), pinpoints[-1])
    first, second = (large[0] * 5 // 6, large[1]), (small[0], small[1] * 5 // 6)
    for sizes in (((first,), (second,), (first, second))[variant], ((first,), (second,), (first, first))[variant]):
        counts = []
        for high, wide in sizes:
            rows, columns = (length // side for length in best_pinpoint(high, wide, pinpoints))
            counts.append(1 + max(1, rows * columns))
        pixels = noise(chance, len(sizes), max(counts), channels(sight), side, side)
        for picture, count in zip(pixels, counts):
            picture[count:] = 0
        yield Trial("tiles with sizes", {"pixel_values": pixels, "image_sizes": whole(sizes)}, len(sizes))


def mosaic(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Views and crops [pictures, 1 + crops, channels, side, side] with a mask [pictures, 1 + crops, grid, grid]."""
    side = sight.number("crop_size", "image_size", default=448, of=sight.vision)
    high, wide = ((2, 3), (4, 2), (2, 3))[variant]  # neither side is the same twice, and none is one crop
    items, grid = 2 if variant == 2 else 1, side // patch(sight)
    inputs = {
        "image_pixel_values": noise(chance, items, 1 + high * wide, channels(sight), side, side),
        "image_sizes": whole([(high * side, wide * side)] * items),
        "image_attention_mask": np.ones((items, 1 + high * wide, grid, grid), np.int64),
    }
    yield Trial("views and crops", inputs, items)


def views(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """One view [pictures, channels, side, side] and smaller crops of it [crops, channels, less, less]."""
    side = (stated_side(sight) or (1024, 1024))[0]
    crops, columns = ((2,), (3,), (2, 2))[variant], 1
    fractions = (0.75, 0.625, 504 / 728, 1.0, 0.5)
    for less in dict.fromkeys(int(side * part) // patch(sight) * patch(sight) for part in fractions):
        inputs = {
            "pixel_values": noise(chance, len(crops), channels(sight), side, side),
            "pixel_values_local": noise(chance, sum(crops), channels(sight), less, less),
            "num_local_patches": whole(crops),
        }
        if "patches_grid" in sight.forward:
            inputs["patches_grid"] = whole([(count, columns) for count in crops])
        yield Trial("views", inputs, len(crops))
